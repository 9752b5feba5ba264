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
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.losses import soft_target_cross_entropy

_CHECK_ROWS = 65_536
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
    soft_target_logits: NDArray[np.floating[Any]] | None = None,
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> list[TunedHead]:
    """Tune one head for each seed, all from `initial`; the result of a seed does not depend on the other seeds.

    features: float16 or float32 [N, d], L2-normalised, finite; labels: integers [N] in [0, n_classes);
    soft_target_logits: float [N, n_classes], the zero-shot head's logits of the same rows, needed where
    settings.soft_target_weight > 0. A seed decides the order of the images, drawn anew for each epoch; the last,
    partial batch is used. The learning rate of step t (from 0) of the `total` steps really made is
    `learning_rate * 0.5 * (1 + cos(pi * t / total))`.

    threads: CPU threads. A step is so little work that one thread is nearly as fast as several, which lose many times
    more by waiting for each other where other processes use the cores; and rounding then depends on no core count.

    Raises ValueError for lengths, labels, features or seeds that break this, and FloatingPointError where it diverges.
    """
    _check(features, labels, initial, settings, seeds, soft_target_logits)
    data = _tensor(features, device)
    targets = _tensor(labels.astype(np.int64), device)
    soft = None
    if settings.soft_target_weight > 0 and soft_target_logits is not None:
        soft = _tensor(soft_target_logits, device)
    counts = np.bincount(labels, minlength=initial.n_classes)
    empty = tuple(name for name, count in zip(initial.class_names, counts, strict=True) if count == 0)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [_tune_one(data, targets, initial, settings, int(seed), soft, empty) for seed in seeds]
    finally:
        torch.set_num_threads(threads_before)


def _tune_one(
    features: Tensor,
    labels: Tensor,
    initial: Head,
    settings: TuningSettings,
    seed: int,
    soft: Tensor | None,
    empty: tuple[str, ...],
) -> TunedHead:
    # Seeds are tuned one after the other, not as one stack of heads: a batched product may round differently, and
    # Adam, which divides a small gradient by its own size, makes such differences large.
    device = features.device
    weight = torch.tensor(initial.weight, device=device, requires_grad=True)
    bias = torch.tensor(initial.bias, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [weight, bias], lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    n, size = len(labels), settings.batch_size
    total = settings.epochs * math.ceil(n / size)
    step = 0
    losses = []
    for epoch in range(settings.epochs):
        order = torch.randperm(n, generator=generator).to(device)
        summed = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, n, size):
            rows = order[start : start + size]
            optimizer.param_groups[0]["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
            logits = torch.nn.functional.linear(features[rows].float(), weight, bias)
            batch_soft = None if soft is None else soft[rows].float()
            loss = soft_target_cross_entropy(
                logits, labels[rows], batch_soft, settings.temperature, settings.soft_target_weight
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            clip_grad_norm_([weight, bias], settings.max_grad_norm)
            optimizer.step()
            summed += loss.detach().double() * len(rows)
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
    features: NDArray[Any],
    labels: NDArray[Any],
    initial: Head,
    settings: TuningSettings,
    seeds: Sequence[int],
    soft: NDArray[Any] | None,
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
    _check_rows(features, "features", unit=True)
    if settings.soft_target_weight > 0:
        if soft is None or soft.shape != (n, n_classes):
            found = None if soft is None else soft.shape
            raise ValueError(f"soft_target_logits have shape {found}; soft_target_weight > 0 needs ({n}, {n_classes})")
        _check_rows(soft, "soft_target_logits", unit=False)


def _check_rows(array: NDArray[Any], name: str, unit: bool) -> None:
    infinite = stretched = 0
    for start in range(0, len(array), _CHECK_ROWS):
        block = array[start : start + _CHECK_ROWS].astype(np.float32)
        finite = np.isfinite(block).all(axis=1)
        infinite += int((~finite).sum())
        if unit:
            norms = np.sqrt(np.einsum("nd,nd->n", block, block))
            stretched += int((finite & (np.abs(norms - 1) > _UNIT_TOLERANCE)).sum())
    if infinite:
        raise ValueError(f"{infinite} of {len(array)} rows of {name} are not finite; leave invalid images out")
    if stretched:
        raise ValueError(f"{stretched} of {len(array)} rows of {name} do not have length 1; L2-normalise each row")


def _tensor(array: NDArray[Any], device: str | torch.device) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # an Arrow buffer; it is only read here
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)
