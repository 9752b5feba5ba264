"""Time Classifier Tuning: 30 epochs on 8,000 images x 1,024 dimensions, one seed. Run: python benchmarks/tuning.py"""

from __future__ import annotations

import argparse
import time

import numpy as np

from pipeline_lib.classifiers.head import zero_shot_head
from pipeline_lib.classifiers.tuning import TuningSettings, tune


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--dimension", type=int, default=1_024)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--soft-target-weight", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(options.images, options.dimension)).astype(np.float32)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    names = [f"class {i}" for i in range(options.classes)]
    head = zero_shot_head(rng.normal(size=(options.classes, 1, options.dimension)), 100.0, names)
    labels = rng.integers(0, options.classes, options.images)
    settings = TuningSettings(epochs=options.epochs, soft_target_weight=options.soft_target_weight)
    started = time.perf_counter()
    result = tune(features, labels, head, settings, [0], options.device, options.threads)[0]
    seconds = time.perf_counter() - started
    print(
        f"tuning: {seconds:.2f} s for {options.epochs} epochs, {result.steps} steps, {options.images} images x "
        f"{options.dimension} d, {options.classes} classes, {options.device}, {options.threads} threads"
    )


if __name__ == "__main__":
    main()
