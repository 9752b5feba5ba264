"""Classifier Tuning with few real images, with synthetic images, or with both (paper section 3.2 and A.7.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from pipeline_lib.classifiers.descent import Schedule, Term, cpu_threads, descend
from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.tuning import CachedImages, TunedHead, check_images, check_seeds, empty_classes
from pipeline_lib.methods import Training

_Kind = Literal["real", "synthetic"]
# Phases that follow each other, and the images of each; those that come first make the epochs.
_PHASES: dict[Training, tuple[tuple[_Kind, ...], ...]] = {
    "real": (("real",),),
    "synthetic": (("synthetic",),),
    "mix": (("synthetic", "real"),),
    "real_then_synthetic": (("real",), ("synthetic",)),
    "synthetic_then_real": (("synthetic",), ("real",)),
}


@dataclass(frozen=True, kw_only=True)
class FewShotSettings(Schedule):
    """How a head is tuned on real images, on synthetic images or on both; defaults: the paper's (A.7.2).

    epochs: of each phase; learning_rate: on one kind of images at a time; mix_learning_rate: of mix training;
    soft_target_weight and temperature: of the loss on synthetic images, 0 is cross-entropy (CE), which real images
    always have.
    """

    mix_learning_rate: float = 1e-3
    real_batch_size: int = 32
    synthetic_batch_size: int = 512
    soft_target_weight: float = 0.0
    temperature: float = 2.0


def tune_few_shot(
    real: Examples | None,
    synthetic: Examples | None,
    initial: Head,
    training: Training,
    settings: FewShotSettings,
    seed: int,
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> TunedHead:
    """Tune a head, from `initial`, on real images, on synthetic images, or on both.

    - "real", "synthetic": what `tuning.tune` does, on one kind of images.
    - "real_then_synthetic", "synthetic_then_real": two such phases, each with its own optimiser and cosine.
    - "mix": in each step a batch of both; their losses are added 1:1. A pass over the synthetic images is an epoch.
      The real images are cycled, in shuffled passes that follow each other without a break: all are seen equally
      often, give or take one, whatever the sizes. (The released code starts a new pass with each epoch, and with a
      frozen encoder ignores its batch sizes while its cosine does not.)

    real, synthetic: `Examples` as `tuning.tune` takes features and labels; what `training` does not use may be None.
    Soft targets, where settings.soft_target_weight > 0, are what `initial` says of a synthetic image, in a second phase
    too. The seed decides the order of the images; a phase has the order that training on its images alone would have.

    threads: CPU threads, as in `tuning.tune`. Raises ValueError for images that are missing or that break this, for a
    seed that is out of range and for an unknown training, and FloatingPointError where it diverges.
    """
    if training not in _PHASES:
        raise ValueError(f"training is {training!r}; allowed are {', '.join(_PHASES)}")
    check_seeds([seed])
    phases = _PHASES[training]
    given: dict[_Kind, Examples | None] = {"real": real, "synthetic": synthetic}
    used = {kind: _checked(given[kind], kind, training, initial) for phase in phases for kind in phase}
    schedule = replace(settings, learning_rate=settings.mix_learning_rate) if training == "mix" else settings
    head, losses, steps = initial, list[float](), 0
    with cpu_threads(threads):
        terms = {kind: _term(kind, examples, initial, settings, device) for kind, examples in used.items()}
        for phase in phases:
            descent = descend([terms[kind] for kind in phase], head, schedule, seed)
            head, steps = descent.head, steps + descent.steps
            losses += descent.epoch_losses
    empty = empty_classes(initial, *(examples.labels for examples in used.values()))
    return TunedHead(head, seed, tuple(losses), steps, empty)


def tune_with_chosen_epochs(
    real: Examples,
    validation: Examples,
    initial: Head,
    settings: FewShotSettings,
    most_steps: int,
    seed: int,
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> tuple[TunedHead, int]:
    """Tune a head on real images for as many epochs as is best on validation images; returns it, and how many.

    A few shots are a step or two an epoch, mix training makes many steps whatever the shots: what it gains may be the
    steps, not the synthetic images. So this control may choose: the settings' epochs, and their doubles up to the
    `most_steps` that mix training makes. The head with the most correct validation images wins; of several, the one
    with the smallest mean cross-entropy on them, then the one with fewer epochs.

    Raises ValueError without validation images, and as `tune_few_shot` does.
    """
    if not len(validation):
        raise ValueError("there are no validation images to choose the number of epochs on")
    per_epoch = math.ceil(len(real) / settings.real_batch_size)
    epochs, candidates = settings.epochs, list[tuple[int, float, int, TunedHead]]()
    while True:
        schedule = replace(settings, epochs=epochs)
        tuned = tune_few_shot(real, None, initial, "real", schedule, seed, device, threads)
        logits = tuned.head.logits(validation.features).astype(np.float64)
        wrong = int((logits.argmax(axis=1) != validation.labels).sum())
        loss = (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), validation.labels]).mean()
        candidates.append((wrong, float(loss), epochs, tuned))
        if epochs * per_epoch >= most_steps:
            break
        epochs = min(2 * epochs, math.ceil(most_steps / per_epoch))
    _, _, epochs, tuned = min(candidates, key=lambda candidate: candidate[:3])
    return tuned, epochs


def _checked(examples: Examples | None, kind: _Kind, training: Training, initial: Head) -> Examples:
    if examples is None or not len(examples):
        raise ValueError(f"there are no {kind} images; training {training!r} needs some")
    try:
        check_images(examples.features, examples.labels, initial)
    except ValueError as error:
        raise ValueError(f"{kind} images: {error}") from error
    return examples


def _term(
    kind: _Kind, examples: Examples, initial: Head, settings: FewShotSettings, device: str | torch.device
) -> Term:
    synthetic = kind == "synthetic"
    weight = settings.soft_target_weight if synthetic else 0.0
    images = CachedImages(examples.features, examples.labels, initial, weight > 0, torch.device(device))
    size = settings.synthetic_batch_size if synthetic else settings.real_batch_size
    return Term(images, size, weight, settings.temperature)
