"""Classifier Tuning with batch norm in train mode: images pass through the encoder in every step (paper Table 6).

The encoder's weights are fixed, those of its batch-norm layers too. What changes are the statistics: while the head is
tuned, a batch is normalised by its own mean and variance, and running statistics follow them; afterwards the encoder
predicts with these. (Batch norm frozen is `tuning`, on features that are encoded once.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline_lib.classifiers.descent import Term, descend
from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.tuning import TunedHead, TuningSettings, check_labels, check_seeds, empty_classes

if TYPE_CHECKING:
    from pipeline_lib.encoders import Encoder


def tune_with_batch_norm(
    images: Sequence[Tensor],
    labels: NDArray[np.integer[Any]],
    initial: Head,
    settings: TuningSettings,
    seed: int,
    encoder: Encoder,
    soft_targets: NDArray[np.floating[Any]] | None = None,
) -> TunedHead:
    """Tune a head as `tuning.tune` does, on features that the encoder makes of each batch, batch norm in train mode.

    images: what `encoder.prepare` gave; labels: integers [N] in [0, n_classes); soft_targets, needed where
    settings.soft_target_weight > 0: logits of the untouched zero-shot model float [N, n_classes]. Order of the images,
    schedule and loss are those of `tune`; but a last batch of a single image joins the one before it, for a single
    image's variance, where a feature map is one pixel, is of one value.

    Call it within `encoder.adapting()`. It begins with the encoder's own statistics, whatever was done before, and ends
    with the adapted ones, with which `encoder.encode` then predicts.

    Raises ValueError for an encoder without batch norm, and for lengths, labels, soft targets or a seed that break
    this; MemoryError where a batch is too large, which cannot be halved here; FloatingPointError where it diverges.
    """
    check_seeds([seed])
    check_labels(labels, len(images), initial.n_classes)
    if not encoder.has_batch_norm:
        raise ValueError("the image encoder has no batch norm: there is nothing to train; tune on its cached features")
    for name, value in (("batch_size", settings.batch_size), ("number of images", len(images))):
        if value < _EncodedImages.smallest_batch:
            raise ValueError(f"the {name} is {value}; batch norm in train mode needs 2 or more images")
    soft = settings.soft_target_weight > 0
    if soft and (soft_targets is None or soft_targets.shape != (len(images), initial.n_classes)):
        found = None if soft_targets is None else soft_targets.shape
        raise ValueError(
            f"soft_targets have shape {found}; allowed is ({len(images)}, {initial.n_classes}), the zero-shot logits "
            f"of each image"
        )
    encoder.reset_batch_norm()
    encoded = _EncodedImages(images, labels, encoder, soft_targets if soft else None)
    term = Term(encoded, settings.batch_size, settings.soft_target_weight, settings.temperature)
    descent = descend([term], initial, settings, seed)
    return TunedHead(descent.head, seed, descent.epoch_losses, descent.steps, empty_classes(initial, labels))


class _EncodedImages:
    """Training images that the encoder makes features of, batch by batch: `descent.Images`."""

    smallest_batch = 2

    def __init__(
        self,
        images: Sequence[Tensor],
        labels: NDArray[np.integer[Any]],
        encoder: Encoder,
        soft_targets: NDArray[np.floating[Any]] | None,
    ):
        self.device, self.place = torch.device(encoder.device), torch.device("cpu")
        self._images, self._encoder = images, encoder
        self._labels = torch.from_numpy(labels.astype(np.int64))
        self._soft = None if soft_targets is None else torch.from_numpy(soft_targets.astype(np.float32))

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `descent.Images`."""
        try:
            features = self._encoder.encode_training([self._images[row] for row in rows.tolist()])
        except MemoryError as error:
            raise MemoryError(
                f"{len(rows)} images at once are too many for the encoder, and batch norm needs the whole batch; lower "
                f"the batch size ({error})"
            ) from None
        soft = None if self._soft is None else self._soft[rows].to(self.device)
        return features, self._labels[rows].to(self.device), soft
