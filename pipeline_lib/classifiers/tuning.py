"""Classifier Tuning (CT): train a linear head on cached, frozen image features (paper section 3.1 and A.7.1).

The result is the last epoch's. (The released code keeps the epoch that is best on the test set.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.losses import soft_target_cross_entropy

_BLOCK_ROWS = 16_384  # looked at together where all are looked at once
_SOFT_TARGETS_HELD = 2**26  # logits of soft targets, float32: 256 MiB
_UNIT_TOLERANCE = 1e-2  # float16 moves the norm of a unit vector by less than 1e-3


@dataclass(frozen=True)
class TuningSettings:
    """How a head is tuned; defaults: the paper's for zero-shot recognition (A.7.1), clipping as in the released code.

    soft_target_weight: 0 is cross-entropy (CE), 0.5 the paper's soft-target cross-entropy (SCE). The learning rate is
    that of the first step; weight decay is decoupled (AdamW) and acts on weight and bias.
    """

    epochs: int = 30
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    batch_size: int = 512
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    soft_target_weight: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for name, possible, allowed in (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a positive number"),
            ("max_grad_norm", self.max_grad_norm > 0, "a positive number, infinity for no clipping"),
            ("temperature", 0 < self.temperature < math.inf, "a positive number"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or a positive number"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("soft_target_weight", 0 <= self.soft_target_weight <= 1, "0 (cross-entropy) to 1"),
        ):
            if not possible:
                raise ValueError(f"tuning setting {name} is {getattr(self, name)}; allowed is {allowed}")


@dataclass(frozen=True, eq=False)
class TunedHead:
    """A tuned head and how it came about.

    epoch_losses: mean training loss of each epoch, each batch's taken just before its step; steps: optimiser steps
    made; empty_classes: names of classes without a training image (their rows only learn what they are not).
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
    _check(features, labels, initial, settings, seeds)
    counts = np.bincount(labels, minlength=initial.n_classes)
    empty = tuple(name for name, count in zip(initial.class_names, counts, strict=True) if count == 0)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        images = _Images(features, labels, initial, settings.soft_target_weight > 0, torch.device(device))
        return [_tune_one(images, initial, settings, int(seed), empty) for seed in seeds]
    finally:
        torch.set_num_threads(threads_before)


class _Images:
    """The training images, gathered batch by batch."""

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
        features, labels = self._moved(self._features[rows]), self._labels[rows].to(self.device)
        if self._soft is not None:
            return features, labels, self._soft[rows].to(self.device)
        return features, labels, F.linear(features, *self._initial) if self._initial else None

    def _moved(self, features: Tensor) -> Tensor:
        if self.place != self.device:
            features = features.pin_memory().to(self.device, non_blocking=True)
        return features.float()


def _fits(features: Tensor, device: torch.device) -> bool:
    """Whether features may be moved to the device whole, leaving it room to work."""
    return device.type != "cuda" or features.nbytes < torch.cuda.mem_get_info(device)[0] // 2


def _tune_one(images: _Images, initial: Head, settings: TuningSettings, seed: int, empty: tuple[str, ...]) -> TunedHead:
    # Seeds are tuned one after the other, not as one stack of heads: a batched product may round differently, and
    # Adam, which divides a small gradient by its own size, makes such differences large.
    device = images.device
    weight = torch.tensor(initial.weight, device=device, requires_grad=True)
    bias = torch.tensor(initial.bias, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [weight, bias], lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    n, size = len(images), settings.batch_size
    total = settings.epochs * math.ceil(n / size)
    step = 0
    losses = []
    for epoch in range(settings.epochs):
        order = torch.randperm(n, generator=generator).to(images.place)
        summed = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, n, size):
            features, labels, soft = images.batch(order[start : start + size])
            optimizer.param_groups[0]["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
            loss = soft_target_cross_entropy(
                F.linear(features, weight, bias), labels, soft, settings.temperature, settings.soft_target_weight
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            clip_grad_norm_([weight, bias], settings.max_grad_norm)
            optimizer.step()
            summed += loss.detach().double() * len(labels)
            step += 1
        losses.append(float(summed) / n)
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"tuning with seed {seed}: the loss of epoch {epoch} is {losses[-1]}; lower the learning rate "
                f"({settings.learning_rate})"
            )
    head = Head(weight.detach().cpu().numpy(), bias.detach().cpu().numpy(), initial.class_names)
    return TunedHead(head, seed, tuple(losses), step, empty)


def _check(
    features: NDArray[Any], labels: NDArray[Any], initial: Head, settings: TuningSettings, seeds: Sequence[int]
) -> None:
    if features.ndim != 2 or features.shape[1] != initial.dimension:
        raise ValueError(f"features have shape {features.shape}; the initial head takes [N, {initial.dimension}]")
    n, n_classes = len(features), initial.n_classes
    if n == 0:
        raise ValueError("there are no training images; generate some, or lower the filter's threshold")
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; allowed is one integer for each of {n} features")
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {n} labels are out of range, the first is {int(labels[outside][0])}; "
            f"allowed is 0 to {n_classes - 1}"
        )
    if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
        raise ValueError(f"seeds are {list(seeds)}; give at least one, each once, from 0 to 2**63 - 1")
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
