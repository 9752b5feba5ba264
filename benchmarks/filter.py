"""Time the CLIP filter's selection on 1,000,000 scores of 1,000 classes. Run: python benchmarks/filter.py"""

from __future__ import annotations

import argparse
import time

import numpy as np

from pipeline_lib.manifests import resolve_threshold, select


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--per-class", type=int, default=300)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    class_index = rng.integers(0, options.classes, options.images).astype(np.int32)
    # About half of the classes pass more than the cap, the others fewer: both branches are timed.
    ease = rng.uniform(0.0, 0.6, options.classes)[class_index]
    probability = np.where(rng.random(options.images) < ease, 0.5, 0.0005 * rng.random(options.images))
    own_probability = probability.astype(np.float32)
    valid = rng.random(options.images) > 0.001
    threshold = resolve_threshold("1/N", options.classes)
    started = time.perf_counter()
    selection = select(
        class_index, own_probability, valid, options.classes, threshold, options.per_class, options.per_class, 0
    )
    seconds = time.perf_counter() - started
    print(
        f"filter: {seconds:.3f} s for {options.images} images, {options.classes} classes, "
        f"{int(selection.kept.sum())} kept"
    )


if __name__ == "__main__":
    main()
