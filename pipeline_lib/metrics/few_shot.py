"""Accuracies of few-shot methods and their differences, with intervals over drawn shots and test images.

A few-shot accuracy would move with other real shots and with other test images, and the interval covers both. Each seed
draws its shots and is tested on the same images: of a difference d[s, i] at seed s and test image i, there is a part of
the seed, a part of the image, and a part of the two together. The mean over s and i has the variance

    var(seed) / n_seeds + var(image) / n + var(together) / (n_seeds n).

It is estimated by what the means over images vary from seed to seed, divided by n_seeds, plus what the means over seeds
vary from image to image, divided by n. The part of the two together is in both, counted twice, which makes the
interval too wide rather than too narrow. Each half-width has its own quantile, Student's t of n_seeds - 1 and the
normal one, and the two are added in quadrature. In simulated studies the 95% interval covers 93% to 99%. What it does
not cover: another draw of the synthetic images' noise, or another generator.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.metrics.outcomes import Outcome


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of accuracies in percentage points.

    low, high: ends of the interval that covers `level`, None where one seed or one test image tells no spread; n_seeds:
    seeds that it is the mean of, 0 if no run has any; n: test images (distinct ones, where data sets share them).
    """

    value: float
    low: float | None
    high: float | None
    level: float
    n_seeds: int
    n: int


def contrast(terms: Iterable[tuple[float, Outcome]], *, level: float = 0.95) -> Contrast:
    """The sum of `weight x accuracy` over terms (weight, run), with its interval: one term of weight 1 is an accuracy,
    weights 1 and -1 a difference, weights +-1/n_datasets the mean difference over data sets, each counted once.

    The same seed and the same test image are paired, within a data set and between data sets of a pool; pools are
    independent. The interval is as this module's text says, without the part of the seeds where no run has any, cut to
    what the sum can be (0 to 100 for an accuracy).

    Raises ValueError without terms, for a level outside (0, 1), for runs of different seeds, or runs of one data set on
    different test images.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; allowed is between 0 and 1, 0.95 for a 95% interval")
    by_dataset: dict[str, list[tuple[float, Outcome]]] = defaultdict(list)
    for weight, run in terms:
        by_dataset[run.dataset].append((weight, run))
    runs = [run for group in by_dataset.values() for _, run in group]
    if not runs:
        raise ValueError("there is no run to sum over; give at least one")
    seeds = {run.seeds for run in runs if run.seeds}
    if len(seeds) > 1:
        raise ValueError(f"runs have different seeds, {sorted(seeds)}; a contrast pairs them, give runs of the same")
    n_seeds = len(seeds.pop()) if seeds else 0

    per_seed = np.zeros(n_seeds or 1)
    influences: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = defaultdict(list)
    lowest = highest = 0.0
    for group in by_dataset.values():
        first = group[0][1]
        difference = _difference(group)
        per_seed += difference.mean(axis=1)
        mean = difference.mean(axis=0)
        influences[first.pool].append((first.source_ids, (mean - mean.mean()) / len(mean)))
        lowest += sum(min(weight, 0.0) for weight, _ in group)
        highest += sum(max(weight, 0.0) for weight, _ in group)
    variances, sizes = zip(*(_variance_of_images(members) for members in influences.values()), strict=True)
    value, n = float(per_seed.mean()), sum(sizes)
    if n_seeds == 1 or min(sizes) == 1:
        return Contrast(100 * value, None, None, level, n_seeds, n)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(sum(variances))
    if n_seeds:
        spread = math.sqrt(float(per_seed.var(ddof=1)) / n_seeds)
        half = math.hypot(half, t_quantile((1 + level) / 2, n_seeds - 1) * spread)
    low, high = max(value - half, lowest), min(value + half, highest)
    return Contrast(100 * value, 100 * low, 100 * high, level, n_seeds, n)


def t_quantile(share: float, degrees: int) -> float:
    """The value that Student's t of a whole number of degrees of freedom stays below with probability `share`.

    share: between 0.5 and 1. Bisects the closed form of the distribution (Abramowitz and Stegun 1964, 26.7.3 and
    26.7.4), as scipy is not among what the tables need. Raises ValueError for other arguments.
    """
    if not 0.5 < share < 1 or degrees < 1:
        raise ValueError(f"share is {share}, degrees {degrees}; allowed is between 0.5 and 1, and 1 or more")
    below, above = 0.0, math.pi / 2  # the angle whose tangent is t / sqrt(degrees)
    while below < (middle := (below + above) / 2) < above:
        if _share_within(middle, degrees) < 2 * share - 1:
            below = middle
        else:
            above = middle
    return math.sqrt(degrees) * math.tan(above)


def _share_within(angle: float, degrees: int) -> float:
    """How probable it is that |t| < sqrt(degrees) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = sine * cosine if odd else sine
    total = 0.0
    for number in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (number - 1) / number
    return 2 / math.pi * (angle + total) if odd else total


def _difference(group: list[tuple[float, Outcome]]) -> NDArray[np.float64]:
    """The weighted sum of what is correct, by seed and test image: [n_seeds, N], one row without seeds."""
    first = group[0][1]
    for _, run in group:
        if run.pool != first.pool or not np.array_equal(run.source_ids, first.source_ids):
            raise ValueError(f"{first.dataset}: runs were tested on different images; give runs on the same")
    total: NDArray[np.float64] = np.zeros((1, len(first.source_ids)))
    for weight, run in group:
        total = total + weight * run.correct
    return total


def _variance_of_images(members: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> tuple[float, int]:
    """Variance that one pool's images give to the sum, and how many there are.

    An image that several data sets show is one draw: what it moves in each of them is added before squaring.
    """
    ids, inverse = np.unique(np.concatenate([source_ids for source_ids, _ in members]), return_inverse=True)
    moved = np.bincount(inverse, weights=np.concatenate([influence for _, influence in members]))
    n = len(ids)
    return float(np.square(moved).sum()) * n / max(n - 1, 1), n
