"""Gradient descent on a head: AdamW, clipped gradients, a cosine, and batches of one kind of images or of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.losses import soft_target_cross_entropy

_EPSILON = 1e-8  # AdamW's, added to the root of the mean square
_NORM_EPSILON = 1e-6  # added to the norm that clipping divides by, as torch does

# Settings of a schedule and of the classes that add to it: what is possible, and in words what is allowed.
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda value: value >= 1, "1 or more"),
    **dict.fromkeys(("batch_size", "real_batch_size", "synthetic_batch_size"), (lambda value: value >= 1, "1 or more")),
    **dict.fromkeys(
        ("learning_rate", "mix_learning_rate", "temperature"), (lambda value: 0 < value < math.inf, "a positive number")
    ),
    "weight_decay": (lambda value: 0 <= value < math.inf, "0 or a positive number"),
    "max_grad_norm": (lambda value: value > 0, "a positive number, infinity for no clipping"),
    "betas": (lambda value: all(0 <= beta < 1 for beta in value), "two numbers from 0 to below 1"),
    "soft_target_weight": (lambda value: 0 <= value <= 1, "0 (cross-entropy) to 1"),
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a head is trained; defaults: the paper's (A.7), clipping as in the released code.

    The learning rate is that of the first step; weight decay is decoupled (AdamW) and acts on weight and bias. Raises
    ValueError for a setting, also of a class that adds some, that is not possible.
    """

    epochs: int = 30
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            possible, allowed = _ALLOWED[name]
            if not possible(value):
                raise ValueError(f"tuning setting {name} is {value}; allowed is {allowed}")


class Images(Protocol):
    """Training images, of which batches can be had.

    device: where a head on them is trained; place: where the rows of a batch are looked up; smallest_batch: fewer
    images at a time cannot be had.
    """

    device: torch.device
    place: torch.device
    smallest_batch: int

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features float32 [B, d], labels int64 [B] and logits of the soft targets float32 [B, n_classes], if there
        are any, on the device; rows: int64 [B], at `place`."""


@dataclass(frozen=True, eq=False)
class Term:
    """A term of the loss of a step: the mean over a batch of these images (see `losses`)."""

    images: Images
    batch_size: int
    soft_target_weight: float = 0.0
    temperature: float = 2.0

    def loss(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The loss of the head `weight`, `bias` on the images of these rows, a scalar."""
        features, labels, soft = self.images.batch(rows)
        logits = F.linear(features, weight, bias)
        return soft_target_cross_entropy(logits, labels, soft, self.temperature, self.soft_target_weight)

    def batch_sizes(self) -> list[int]:
        """Sizes of the batches of one pass. The last may be partial; where it is too small, it joins the one before."""
        whole, rest = divmod(len(self.images), self.batch_size)
        sizes = [self.batch_size] * whole
        if rest and (rest >= self.images.smallest_batch or not sizes):
            sizes.append(rest)
        elif rest:
            sizes[-1] += rest
        return sizes

    def passes(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Rows of the batches of one shuffled pass after the other, without end."""
        sizes = self.batch_sizes()
        while True:
            yield from torch.split(self._shuffled(generator), sizes)

    def cycle(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Rows of batches that all have the same size, and that run across the ends of shuffled passes, without end.

        At any time all images were seen equally often, give or take one. A batch is never larger than a pass.
        """
        size = min(self.batch_size, len(self.images))
        rows = self._shuffled(generator)
        while True:
            if len(rows) < size:
                rows = torch.cat([rows, self._shuffled(generator)])
            yield rows[:size]
            rows = rows[size:]

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.images), generator=generator).to(self.images.place)


@dataclass(frozen=True, eq=False)
class Descent:
    """The head of the last step; the mean loss of each epoch, each batch's taken just before its step, summed over the
    terms; and the number of steps made."""

    head: Head
    epoch_losses: tuple[float, ...]
    steps: int


def descend(terms: Sequence[Term], start: Head, schedule: Schedule, seed: int) -> Descent:
    """Train a head from `start` on the sum of the terms, one batch of each in every step.

    A pass over the images of the first term is an epoch, and its last, partial batch is used; the images of other terms
    are cycled. The learning rate of step t (from 0) of the `total` steps really made is `learning_rate * 0.5 * (1 +
    cos(pi * t / total))`. The seed decides the order of the images, drawn anew for each pass.

    Raises FloatingPointError where it diverges.
    """
    head = _AdamW(start, schedule, terms[0].images.device)
    generator = torch.Generator().manual_seed(seed)
    main, *others = terms
    rows = [main.passes(generator), *(term.cycle(generator) for term in others)]
    batches = len(main.batch_sizes())
    total = schedule.epochs * batches
    epoch_losses = []
    for epoch in range(schedule.epochs):
        losses: list[Tensor] = []
        counts: list[int] = []
        for step in range(epoch * batches, (epoch + 1) * batches):
            drawn = [next(batch) for batch in rows]
            each = [term.loss(batch, head.weight, head.bias) for term, batch in zip(terms, drawn, strict=True)]
            rate = schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
            head.step(reduce(torch.add, each), rate)
            losses += [loss.detach() for loss in each]
            counts += [len(batch) for batch in drawn]
        epoch_losses.append(_mean_losses(losses, counts, len(terms)))
        if not math.isfinite(epoch_losses[-1]):
            raise FloatingPointError(
                f"tuning with seed {seed}: the loss of epoch {epoch} is {epoch_losses[-1]}; lower the learning rate "
                f"({schedule.learning_rate})"
            )
    return Descent(head.numpy(start.class_names), tuple(epoch_losses), total)


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """Within it torch computes with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mean_losses(losses: Sequence[Tensor], counts: Sequence[int], n_terms: int) -> float:
    """Sum over the terms, which take turns, of the mean loss of an image."""
    values = torch.stack(list(losses)).tolist()  # the one time in an epoch that a GPU is waited for
    mean = 0.0
    for term in range(n_terms):
        seen = counts[term::n_terms]
        mean += sum(value * count for value, count in zip(values[term::n_terms], seen, strict=True)) / sum(seen)
    return mean


class _AdamW:
    """Weight and bias of a head, in one vector, and AdamW on them, its gradient clipped by its norm.

    On a CPU the values are to the bit those of torch.optim.AdamW and clip_grad_norm_. These take half the time of a
    step on a small head with what is not arithmetic; and one vector needs half as many operations as two tensors.
    """

    def __init__(self, start: Head, schedule: Schedule, device: torch.device):
        self._schedule = schedule
        self._values = torch.tensor(np.concatenate([start.weight.reshape(-1), start.bias]), device=device)
        n = start.n_classes
        self.weight = self._values[:-n].view(n, -1).requires_grad_()
        self.bias = self._values[-n:].requires_grad_()
        self._gradient, self._mean, self._square, self._root = (torch.zeros_like(self._values) for _ in range(4))
        self._steps = 0

    def step(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of the loss, at this learning rate."""
        schedule, (beta1, beta2) = self._schedule, self._schedule.betas
        gradients = [gradient.reshape(-1) for gradient in torch.autograd.grad(loss, (self.weight, self.bias))]
        self._steps += 1
        with torch.no_grad():
            torch.cat(gradients, out=self._gradient)
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in gradients]))
            self._gradient.mul_((schedule.max_grad_norm / (norm + _NORM_EPSILON)).clamp_(max=1.0))
            self._mean.lerp_(self._gradient, 1 - beta1)
            self._square.mul_(beta2).addcmul_(self._gradient, self._gradient, value=1 - beta2)
            root = torch.sqrt(self._square, out=self._root)
            root.div_((1 - beta2**self._steps) ** 0.5).add_(_EPSILON)
            self._values.mul_(1 - rate * schedule.weight_decay)
            self._values.addcdiv_(self._mean, root, value=-rate / (1 - beta1**self._steps))

    def numpy(self, class_names: tuple[str, ...]) -> Head:
        """The head as it is now."""
        weight, bias = (tensor.detach().cpu().numpy().copy() for tensor in (self.weight, self.bias))
        return Head(weight, bias, class_names)
