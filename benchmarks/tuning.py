"""Time Classifier Tuning: 30 epochs on 8,000 images x 1,024 dimensions, one seed; then few-shot tuning in its small.

Run: python benchmarks/tuning.py
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.few_shot_tuning import FewShotSettings, tune_few_shot
from pipeline_lib.classifiers.head import Head, zero_shot_head
from pipeline_lib.classifiers.tuning import TuningSettings, tune
from pipeline_lib.methods import Training

_REPEATS = 5  # the fastest counts: a run is a fraction of a second
_TRAININGS: tuple[Training, ...] = ("real", "synthetic", "mix", "real_then_synthetic", "synthetic_then_real")


def main() -> None:
    """Print a line for tuning, and one for each way to train on few real and some synthetic images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--dimension", type=int, default=1_024)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--soft-target-weight", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    examples, head = _made_up(options.images, options.dimension, options.classes)
    settings = TuningSettings(epochs=options.epochs, soft_target_weight=options.soft_target_weight)
    started = time.perf_counter()
    result = tune(examples.features, examples.labels, head, settings, [0], options.device, options.threads)[0]
    seconds = time.perf_counter() - started
    print(
        f"tuning: {seconds:.2f} s for {options.epochs} epochs, {result.steps} steps, {options.images} images x "
        f"{options.dimension} d, {options.classes} classes, {options.device}, {options.threads} threads"
    )
    # The miniature study's: 16 shots, 40 synthetic images of 10 classes each, 256 dimensions.
    real, head = _made_up(160, 256, 10)
    synthetic, _ = _made_up(400, 256, 10)
    small = FewShotSettings(synthetic_batch_size=25)
    for training in _TRAININGS:
        seconds = math.inf
        for _ in range(_REPEATS):
            started = time.perf_counter()
            result = tune_few_shot(real, synthetic, head, training, small, 0, options.device, options.threads)
            seconds = min(seconds, time.perf_counter() - started)
        print(f"few-shot tuning, {training}: {result.steps} steps, {result.steps / seconds:.0f} steps/s")


def _made_up(n: int, dimension: int, n_classes: int) -> tuple[Examples, Head]:
    """Images, stored as features are, and a head."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, dimension)).astype(np.float32)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    names = [f"class {i}" for i in range(n_classes)]
    head = zero_shot_head(rng.normal(size=(n_classes, 1, dimension)), 100.0, names)
    return Examples(features, rng.integers(0, n_classes, n)), head


if __name__ == "__main__":
    main()
