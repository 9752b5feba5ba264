"""CoOp (Zhou et al., 2022, arXiv:2109.01134): the words before the class name are learned from the shots.

One context of learned vectors for all classes, the class name at the end ("unified context", "end" in the paper), both
towers of CLIP frozen. Differences from the original's code: images are not augmented, as their features are cached,
where the original crops and flips anew in each epoch; precision is float32. The last epoch is the result, as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline_lib.classifiers.descent import cpu_threads
from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.text_tower import TextTower
from pipeline_lib.errors import NotComputableError

KEY = "few_shot.coop.context_tokens"
# Of the original's configuration (rn50.yaml), or the defaults of its training library where that says nothing.
_INITIAL_STD = 0.02
_WARM_UP_RATE = 1e-5  # of the first epoch
_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True)
class CoOpSettings:
    """How a context is learned; defaults: the original's. The learning rate is SGD's after the epoch of warm-up."""

    context_tokens: int = 16
    learning_rate: float = 2e-3
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, possible, allowed in (
            ("context_tokens", self.context_tokens >= 1, "1 or more"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a positive number"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
        ):
            if not possible:
                raise ValueError(f"CoOp's setting {name} is {getattr(self, name)}; allowed is {allowed}")


def train_coop(
    shots: Examples,
    tower: TextTower,
    class_names: Sequence[str],
    settings: CoOpSettings,
    epochs: int,
    seed: int,
    threads: int = 1,
) -> tuple[Head, dict[str, Any]]:
    """Learn a context from the shots; returns the head that it gives, and how many steps were made with what loss.

    The prompt of a class is the context, its name (an underscore is read as a space) and a full stop; head.weight is
    logit scale x L2-normalised text feature, bias 0. The seed decides the initial context, normal with standard
    deviation 0.02, and the order of the shots, drawn anew for each epoch. As in the original, a last, partial batch is
    left out unless it is the only one; and the learning rate is 1e-5 in the first epoch, in epoch e (from 0) it is
    `learning_rate * 0.5 * (1 + cos(pi * (e - 1) / epochs))`.

    threads: CPU threads; see `tuning.tune`.

    Raises `NotComputableError` where context and class name do not fit into the text encoder's positions, ValueError
    for shots that the encoder or the classes do not fit, and FloatingPointError where it diverges.
    """
    texts = [name.replace("_", " ") + "." for name in class_names]
    _check_room(tower, class_names, texts, settings.context_tokens)
    if len(shots) == 0 or not 0 <= shots.labels.min() <= shots.labels.max() < len(class_names):
        raise ValueError(f"CoOp: {len(shots)} shots; allowed is one or more, with labels below {len(class_names)}")
    if epochs < 1:
        raise ValueError(f"CoOp: {epochs} epochs; allowed is 1 or more")
    with cpu_threads(threads):
        generator = torch.Generator().manual_seed(seed)
        context = _initial_context(settings.context_tokens, tower.width, generator).to(tower.device).requires_grad_()
        prompts = tower.prompts(texts, settings.context_tokens)
        scaled = tower.logit_scale * torch.from_numpy(shots.features.astype(np.float32)).to(tower.device)
        labels = torch.from_numpy(shots.labels).to(tower.device)
        optimizer = torch.optim.SGD([context], momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
        size = min(settings.batch_size, len(shots))
        steps = len(shots) // size
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = _rate(epoch, epochs, settings.learning_rate)
            order = torch.randperm(len(shots), generator=generator).to(tower.device)
            losses = []
            for rows in torch.split(order[: steps * size], size):
                loss = F.cross_entropy(scaled[rows] @ tower.features(prompts, context).T, labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"CoOp with seed {seed}: the loss of epoch {epoch} is {mean}; lower the learning rate "
                    f"({settings.learning_rate})"
                )
        with torch.no_grad():
            weight = (tower.logit_scale * tower.features(prompts, context)).cpu().numpy()
    head = Head(weight, np.zeros(len(weight), np.float32), tuple(class_names))
    return head, {"epochs": epochs, "steps": epochs * steps, "last_loss": round(mean, 5)}


def _initial_context(n: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.empty(n, width).normal_(std=_INITIAL_STD, generator=generator)


def _rate(epoch: int, epochs: int, learning_rate: float) -> float:
    """The cosine begins after the epoch of warm-up, but is as long as if there were none: it ends above 0."""
    if epoch == 0:
        return _WARM_UP_RATE
    return learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def _check_room(tower: TextTower, class_names: Sequence[str], texts: Sequence[str], context_tokens: int) -> None:
    lengths = tower.lengths(texts)
    longest = max(range(len(texts)), key=lengths.__getitem__)
    largest = tower.context_length - lengths[longest]
    if context_tokens <= largest:
        return
    remedy = f"write {largest} at the most" if largest >= 1 else "no value fits: give the class a shorter name"
    raise NotComputableError(
        f"{KEY}: {context_tokens} tokens and the class name {class_names[longest]!r}, {lengths[longest]} with start, "
        f"full stop and end, do not fit into the {tower.context_length} positions of the text encoder; {remedy}"
    )
