"""Scores of images under a head: how sure the zero-shot classifier is that an image shows its own class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.classifiers.head import Head

_BLOCK_VALUES = 4_194_304  # float32 values of the larger of features and logits in a block: 16 MiB


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of N images, in their order.

    own_probability: float32 [N], softmax(logits) at the image's own class; predicted_class: int32 [N]; max_probability:
    float32 [N], softmax(logits) at the predicted class. A row whose features are not finite has NaN, -1 and NaN.
    """

    own_probability: NDArray[np.float32]
    predicted_class: NDArray[np.int32]
    max_probability: NDArray[np.float32]


def score(features: NDArray[np.floating[Any]], class_index: NDArray[np.integer[Any]], head: Head) -> Scores:
    """Softmax scores of image features under a head, for the CLIP filter (paper section 3.1: softmax(100 * cos)).

    features: float16 or float32 [N, d], L2-normalised as the head expects; class_index: integers [N] in [0, n_classes),
    the class that each image was made for. Computed in float32 in blocks of rows, so that memory beyond the input and
    the result, 12 bytes an image, does not grow with N. Ties go to the lowest class.

    Raises ValueError for features of another dimension, lengths that differ, or classes that the head lacks.
    """
    features = np.asarray(features)
    class_index = np.asarray(class_index)
    if features.ndim != 2 or features.shape[1] != head.dimension:
        raise ValueError(f"features have shape {features.shape}; the head takes [N, {head.dimension}]")
    n = len(features)
    if class_index.shape != (n,) or (n and not np.issubdtype(class_index.dtype, np.integer)):
        raise ValueError(
            f"class_index is {class_index.dtype} {class_index.shape}; allowed is one integer for each of {n} features"
        )
    if n and not (class_index.min() >= 0 and class_index.max() < head.n_classes):
        raise ValueError(
            f"class_index goes from {class_index.min()} to {class_index.max()}; the head has classes 0 to "
            f"{head.n_classes - 1}: score with the head of the same class names"
        )
    own = np.empty(n, np.float32)
    predicted = np.empty(n, np.int32)
    highest = np.empty(n, np.float32)
    size = max(1, _BLOCK_VALUES // max(head.n_classes, head.dimension))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        own[rows], predicted[rows], highest[rows] = _score_block(features[rows], class_index[rows], head)
    return Scores(own, predicted, highest)


def _score_block(
    features: NDArray[Any], class_index: NDArray[Any], head: Head
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    row = np.arange(len(features))
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are marked below
        logits = head.logits(features)
        predicted = logits.argmax(axis=1)
        logits -= logits[row, predicted][:, None]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1, dtype=np.float32)
        own = logits[row, class_index] / total
        highest = 1.0 / total
    bad = ~np.isfinite(total)
    if bad.any():
        own[bad] = highest[bad] = np.nan
        predicted[bad] = -1
    return own, predicted, highest
