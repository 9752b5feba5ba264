"""Classifier Tuning (CT): train a linear head on cached, frozen image features (paper section 3.1 and A.7.1).

The result is the last epoch's. (The released code keeps the epoch that is best on the test set.)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline_lib.classifiers.descent import Schedule, Term, cpu_threads, descend
from pipeline_lib.classifiers.head import Head

_BLOCK_ROWS = 16_384  # looked at together where all are looked at once
_SOFT_TARGETS_HELD = 2**26  # logits of soft targets, float32: 256 MiB
_UNIT_TOLERANCE = 1e-2  # float16 moves the norm of a unit vector by less than 1e-3


@dataclass(frozen=True, kw_only=True)
class TuningSettings(Schedule):
    """How a head is tuned; defaults: the paper's for zero-shot recognition (A.7.1).

    soft_target_weight: 0 is cross-entropy (CE), 0.5 the paper's soft-target cross-entropy (SCE).
    """

    batch_size: int = 512
    soft_target_weight: float = 0.0
    temperature: float = 2.0


@dataclass(frozen=True, eq=False)
class TunedHead:
    """A tuned head and how it came about.

    epoch_losses: mean training loss of each epoch, each batch's taken just before its step (of two phases, one after
    the other; of mix training, the sum of both losses); steps: optimiser steps made; empty_classes: names of classes
    without a training image (their rows only learn what they are not).
    """

    head: Head
    seed: int
    epoch_losses: tuple[float, ...]
    steps: int
    empty_classes: tuple[str, ...]


def tune(
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    initial: Head,
    settings: TuningSettings,
    seeds: Sequence[int],
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> list[TunedHead]:
    """Tune one head for each seed, all from `initial`; the result of a seed does not depend on the other seeds.

    features: float16 or float32 [N, d], L2-normalised, finite; labels: integers [N] in [0, n_classes). Soft targets,
    where settings.soft_target_weight > 0, are what `initial` says of each image. A seed decides the order of the
    images, drawn anew for each epoch; the last, partial batch is used. The learning rate of step t (from 0) of the
    `total` steps really made is `learning_rate * 0.5 * (1 + cos(pi * t / total))`.

    Beside the features, which are used where they lie unless they fit on the GPU, memory holds 16 bytes an image, and
    the logits of the soft targets where these are few (256 MiB at the most).

    threads: CPU threads. A step is so little work that one thread is nearly as fast as several, which lose many times
    more by waiting for each other where other processes use the cores; and rounding then depends on no core count.

    Raises ValueError for lengths, labels, features or seeds that break this, and FloatingPointError where it diverges.
    """
    check_seeds(seeds)
    check_images(features, labels, initial)
    with cpu_threads(threads):
        images = CachedImages(features, labels, initial, settings.soft_target_weight > 0, torch.device(device))
        term = Term(images, settings.batch_size, settings.soft_target_weight, settings.temperature)
        # Seeds are tuned one after the other, not as one stack of heads: a batched product may round differently, and
        # Adam, which divides a small gradient by its own size, makes such differences large.
        descents = {int(seed): descend([term], initial, settings, int(seed)) for seed in seeds}
    empty = empty_classes(initial, labels)
    return [
        TunedHead(descent.head, seed, descent.epoch_losses, descent.steps, empty) for seed, descent in descents.items()
    ]


class CachedImages:
    """Training images whose features are cached, gathered batch by batch: `descent.Images`.

    soft_targets: whether batches come with what `initial` says of them.
    """

    smallest_batch = 1

    def __init__(
        self,
        features: NDArray[Any],
        labels: NDArray[Any],
        initial: Head,
        soft_targets: bool,
        device: torch.device,
    ):
        self.device = device
        self._features = _tensor(features)
        if _fits(self._features, device):
            self._features = self._features.to(device)
        self.place = self._features.device
        self._labels = _tensor(labels.astype(np.int64)).to(self.place)
        self._initial: tuple[Tensor, Tensor] | None = None
        self._soft: Tensor | None = None
        if soft_targets:
            self._initial = (torch.tensor(initial.weight, device=device), torch.tensor(initial.bias, device=device))
            # Few are computed once; many are computed again in each epoch rather than held: at the paper's scale they
            # would take 8 GB.
            if len(labels) * initial.n_classes <= _SOFT_TARGETS_HELD:
                starts = range(0, len(labels), _BLOCK_ROWS)
                blocks = (self._moved(self._features[start : start + _BLOCK_ROWS]) for start in starts)
                self._soft = torch.cat([F.linear(block, *self._initial).to(self.place) for block in blocks])

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features float32 [B, d], labels int64 [B] and logits of the soft targets float32 [B, n_classes], on the
        device; rows: int64 [B], at `place`."""
        # index_select is four times as fast as indexing by rows.
        features = self._moved(self._features.index_select(0, rows))
        labels = self._labels.index_select(0, rows).to(self.device)
        if self._soft is not None:
            return features, labels, self._soft.index_select(0, rows).to(self.device)
        return features, labels, F.linear(features, *self._initial) if self._initial else None

    def _moved(self, features: Tensor) -> Tensor:
        if self.place != self.device:
            features = features.pin_memory().to(self.device, non_blocking=True)
        return features.float()


def _fits(features: Tensor, device: torch.device) -> bool:
    """Whether features may be moved to the device whole, leaving it room to work."""
    return device.type != "cuda" or features.nbytes < torch.cuda.mem_get_info(device)[0] // 2


def empty_classes(initial: Head, *labels: NDArray[np.integer[Any]]) -> tuple[str, ...]:
    """Names of the classes that none of the labels has."""
    present = np.unique(np.concatenate(labels))
    return tuple(name for index, name in enumerate(initial.class_names) if index not in present)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError for seeds that cannot be used, or come twice."""
    if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
        raise ValueError(f"seeds are {list(seeds)}; give at least one, each once, from 0 to 2**63 - 1")


def check_labels(labels: NDArray[Any], n: int, n_classes: int) -> None:
    """Raises ValueError where these are not the labels of n > 0 images."""
    if n == 0:
        raise ValueError("there are no training images; generate some, or lower the filter's threshold")
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; allowed is one integer for each of {n} images")
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {n} labels are out of range, the first is {int(labels[outside][0])}; "
            f"allowed is 0 to {n_classes - 1}"
        )


def check_images(features: NDArray[Any], labels: NDArray[Any], initial: Head) -> None:
    """Raises ValueError for features and labels that a head like this cannot be tuned on (see `tune`)."""
    if features.ndim != 2 or features.shape[1] != initial.dimension:
        raise ValueError(f"features have shape {features.shape}; the initial head takes [N, {initial.dimension}]")
    n = len(features)
    check_labels(labels, n, initial.n_classes)
    infinite = stretched = 0
    for start in range(0, n, _BLOCK_ROWS):
        block = features[start : start + _BLOCK_ROWS].astype(np.float32)
        finite = np.isfinite(block).all(axis=1)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        infinite += int((~finite).sum())
        stretched += int((finite & (np.abs(norms - 1) > _UNIT_TOLERANCE)).sum())
    if infinite:
        raise ValueError(f"{infinite} of {n} rows of features are not finite; leave invalid images out")
    if stretched:
        raise ValueError(f"{stretched} of {n} rows of features do not have length 1; L2-normalise each row")


def _tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # an Arrow buffer; it is only read here
        return torch.from_numpy(np.ascontiguousarray(array))
