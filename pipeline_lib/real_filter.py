"""Real filtering (RF): which synthetic images lie too close to real shots of another class (paper section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.classifiers.examples import Examples

_BLOCK_VALUES = 2**24  # features or similarities looked at together, float32: 64 MiB


@dataclass(frozen=True, eq=False)
class RealFilter:
    """What real filtering says of N synthetic images.

    too_close: bool [N]; other_similarity: float32 [N], cosine with the nearest shot of another class; nearest: int32
    [N], position of that shot; threshold: the cosine above which an image is too close.
    """

    too_close: NDArray[np.bool_]
    other_similarity: NDArray[np.float32]
    nearest: NDArray[np.int32]
    threshold: float


def real_filter(
    features: NDArray[np.floating[Any]],
    class_index: NDArray[np.integer[Any]],
    shots: Examples,
    validation: Examples,
    quantile: float,
) -> RealFilter:
    """Find the synthetic images that are closer to real shots of another class than real images are.

    features: floats [N, d] of any length (cosines are compared); class_index: integers [N]; shots, validation: real
    images of the same draw.

    The paper drops images "very close" to real samples of other classes, without saying how close; there is no released
    code. Here real images say it: each of them, shots and validation images, has a cosine with its nearest shot of
    another class, and the `quantile` of these (in (0, 1], interpolated linearly) is the threshold. What exceeds it,
    strictly, is too close. So the threshold follows encoder and classes, and no test image is looked at.

    An image whose features are zero or not finite has similarity NaN and nearest shot -1, and is not too close. Beside
    features, shots and result, memory holds a few blocks of 64 MiB.

    Raises ValueError for lengths or a quantile that break this, shots of fewer than two classes, and real images whose
    features are zero or not finite.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile is {quantile}; allowed is a number above 0, up to 1")
    class_index = np.asarray(class_index)
    dimension = shots.features.shape[1]
    if features.ndim != 2 or features.shape[1] != dimension or class_index.shape != (len(features),):
        raise ValueError(
            f"features have shape {features.shape}, class_index {class_index.shape}; allowed are [N, {dimension}], as "
            f"the shots have it, and [N]"
        )
    if len(np.unique(shots.labels)) < 2:
        raise ValueError(
            f"{len(shots)} shots are of {len(np.unique(shots.labels))} classes; real filtering compares with shots of "
            f"other classes, so it takes two classes or more"
        )
    real = Examples(
        np.concatenate([shots.features, validation.features]), np.concatenate([shots.labels, validation.labels])
    )
    of_real, _ = _nearest_other(real.features, real.labels, shots)
    if np.isnan(of_real).any():
        raise ValueError(
            f"features of {int(np.isnan(of_real).sum())} of {len(real)} real images are zero or not finite; embed them "
            f"again, or leave these images out"
        )
    threshold = float(np.quantile(of_real, quantile))
    similarity, nearest = _nearest_other(features, class_index, shots)
    return RealFilter(similarity > threshold, similarity, nearest, threshold)


def _nearest_other(
    features: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], shots: Examples
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Of each image, cosine and position of the nearest shot of another class: float32 [N], int32 [N]."""
    keys = _normalised(shots.features)
    similarity = np.full(len(features), np.nan, np.float32)
    nearest = np.full(len(features), -1, np.int32)
    n_rows = max(1, _BLOCK_VALUES // max(keys.shape))
    for start in range(0, len(features), n_rows):
        rows = slice(start, start + n_rows)
        cosines = _normalised(features[rows]) @ keys.T
        cosines[labels[rows, None] == shots.labels] = -np.inf
        found = cosines.argmax(axis=1)
        highest = cosines[np.arange(len(found)), found]
        usable = np.isfinite(highest)
        similarity[rows][usable], nearest[rows][usable] = highest[usable], found[usable]
    return similarity, nearest


def _normalised(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """L2-normalised rows; NaN where a row is zero or not finite."""
    unit = vectors.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit
