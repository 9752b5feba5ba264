"""Top-1 accuracy, and what a method gains over a baseline with an interval over the test images.

The intervals say how far a number would move with other test images of the same kind. How far it moves with another
seed of training is another question, answered by `seed_spread`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK_VALUES = 2_000_000  # resampling weights held at once


@dataclass(frozen=True)
class Gain:
    """A gain in percentage points with its bootstrap interval.

    value: the gain; low, high: ends of the percentile interval that covers `level`; n: test images (distinct ones,
    where data sets share them); resamples: bootstrap resamples drawn.
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    resamples: int


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """What a method gains on each test image of one data set.

    pool: name of the collection of real images that the test images come from; source_ids: int64 [N], which image of
    the pool each is (data sets of one pool that name the same id share that image); difference: float [N], method
    minus baseline correctness, from -1 to 1, as `paired_difference` gives it.
    """

    pool: str
    source_ids: NDArray[np.int64]
    difference: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "source_ids", np.asarray(self.source_ids, dtype=np.int64))
        object.__setattr__(self, "difference", np.asarray(self.difference, dtype=np.float64))
        if self.difference.ndim != 1 or len(self.difference) == 0 or self.source_ids.shape != self.difference.shape:
            raise ValueError(
                f"pool {self.pool!r}: source_ids have shape {self.source_ids.shape}, difference "
                f"{self.difference.shape}; allowed is [N] for both, N at least 1"
            )
        if not (np.abs(self.difference) <= 1).all():  # false for NaN too
            raise ValueError(f"pool {self.pool!r}: a difference is outside [-1, 1]; give fractions, not percent")


def top1(predictions: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Top-1 accuracy in percent, mean over seeds. predictions: integers [n_seeds, N]; labels: integers [N].

    Raises ValueError for other shapes or no images.
    """
    return 100.0 * float(_correct(predictions, labels).mean())


def per_class_top1(
    predictions: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], n_classes: int
) -> NDArray[np.float64]:
    """Top-1 accuracy of each class in percent, mean over seeds: float64 [n_classes], NaN for a class without images."""
    correct = _correct(predictions, labels).mean(axis=0)
    labels = np.asarray(labels)
    if not (labels.min() >= 0 and labels.max() < n_classes):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}; allowed is 0 to {n_classes - 1}")
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, weights=correct, minlength=n_classes)
    accuracy: NDArray[np.float64] = np.full(n_classes, np.nan)
    np.divide(100.0 * sums, counts, out=accuracy, where=counts > 0)
    return accuracy


def paired_difference(
    method: NDArray[np.integer[Any]], baseline: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Method minus baseline correctness of each test image, each averaged over its seeds: float64 [N], -1 to 1.

    method: predictions [n_seeds, N]; baseline: predictions [n_other_seeds, N] of the same images; labels: [N].
    """
    difference: NDArray[np.float64] = _correct(method, labels).mean(axis=0) - _correct(baseline, labels).mean(axis=0)
    return difference


def paired_bootstrap_gain(
    method: NDArray[np.integer[Any]],
    baseline: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Gain:
    """Gain in top-1 of method over baseline, with the paired percentile bootstrap interval over the test images.

    Shapes as in `paired_difference`. An image is drawn with both its correctnesses, so that what is hard for both does
    not widen the interval (Efron and Tibshirani 1993, chapter 13). Raises ValueError for shapes or settings.
    """
    difference = paired_difference(method, baseline, labels)
    record = PairedDifference("", np.arange(len(difference)), difference)
    return average_gain([record], resamples=resamples, level=level, seed=seed)


def average_gain(
    records: Sequence[PairedDifference], *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Gain:
    """Mean over data sets of their gains, each data set counted once whatever its size, with a bootstrap interval.

    Images are drawn by (pool, source id): data sets that share test images get the same draw, as such gains are
    correlated and treating them as independent would make the interval too narrow; pools are drawn independently. A
    data set that a resample leaves without an image makes that resample undefined, and it is not counted (this happens
    only where a data set is a handful of images in a larger pool).

    Raises ValueError without records, for resamples < 1, or a level outside (0, 1).
    """
    if not records:
        raise ValueError("there is no data set to average over; give at least one")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; allowed is 1 or more (10000 is usual)")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; allowed is between 0 and 1, 0.95 for a 95% interval")
    pools: dict[str, list[PairedDifference]] = defaultdict(list)
    for record in records:
        pools[record.pool].append(record)
    total = np.zeros(resamples)
    n = 0
    for pool, members in pools.items():
        sums, n_images = _resample_pool(members, resamples, _pool_generator(seed, pool))
        total += sums
        n += n_images
    means = total[np.isfinite(total)] / len(records)
    if not len(means):
        raise ValueError("every resample left a data set without images; give data sets with more test images")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    value = float(np.mean([record.difference.mean() for record in records]))
    return Gain(100.0 * value, 100.0 * float(low), 100.0 * float(high), level, n, resamples)


def _resample_pool(
    members: Sequence[PairedDifference], resamples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], int]:
    """Sum over the pool's data sets of their resampled mean differences [resamples], and the number of images."""
    ids, inverse = np.unique(np.concatenate([member.source_ids for member in members]), return_inverse=True)
    profile = np.zeros(
        (len(ids), 2 * len(members))
    )  # per image: in each data set its summed difference, then its count
    start = 0
    for column, member in enumerate(members):
        rows = inverse[start : start + len(member.difference)]
        start += len(rows)
        profile[:, 2 * column] = np.bincount(rows, weights=member.difference, minlength=len(ids))
        profile[:, 2 * column + 1] = np.bincount(rows, minlength=len(ids))
    # Correctness averaged over a few seeds takes few values, so most images are alike. How often each kind of image is
    # drawn is multinomial: exact, and far cheaper than drawing every image. Rounding unites kinds that differ in ulps.
    kinds, multiplicity = np.unique(profile.round(12), axis=0, return_counts=True)
    result = np.empty(resamples)
    size = max(1, _CHUNK_VALUES // len(kinds))
    for begin in range(0, resamples, size):
        end = min(begin + size, resamples)
        drawn = rng.multinomial(len(ids), multiplicity / len(ids), size=end - begin).astype(np.float64) @ kinds
        with np.errstate(invalid="ignore"):  # 0 / 0 where a data set has no image in the resample
            result[begin:end] = (drawn[:, 0::2] / drawn[:, 1::2]).sum(axis=1)
    return result, len(ids)


def _pool_generator(seed: int, pool: str) -> np.random.Generator:
    digest = hashlib.sha256(pool.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def _correct(predictions: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels have shape {labels.shape}; allowed is [N], N at least 1")
    if predictions.ndim != 2 or not len(predictions) or predictions.shape[1] != len(labels):
        raise ValueError(
            f"predictions have shape {predictions.shape}; allowed is [n_seeds, {len(labels)}], a row a seed, "
            "for a single one too"
        )
    correct: NDArray[np.float64] = (predictions == labels).astype(np.float64)
    return correct
