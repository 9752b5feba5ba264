"""The CLIP filter (CF), real filtering (RF) and the cap as a pure selection over arrays: which images are kept, and for
each image why."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.real_filter import RealFilter


class Reason(enum.IntEnum):
    """Why an image is in or out; `reason.name.lower()` is the word for people."""

    KEPT = 0  # passed the threshold
    BELOW_THRESHOLD = 1  # did not
    OVER_CAP = 2  # passed, but its class had more than per_class
    INVALID = 3  # blank, or its score is not finite
    FALLBACK = 4  # kept although it did not pass: its class had fewer than a minimum
    NO_FILTER = 5  # kept, no threshold was set
    TOO_CLOSE = 6  # passed, but lies too close to a real shot of another class (RF)


KEPT_REASONS = (Reason.KEPT, Reason.FALLBACK, Reason.NO_FILTER)


@dataclass(frozen=True, eq=False)
class Selection:
    """kept: bool [N]; reason: int8 [N], values of `Reason`."""

    kept: NDArray[np.bool_]
    reason: NDArray[np.int8]


def resolve_threshold(threshold: str | float | None, n_classes: int) -> float | None:
    """The probability that an image must exceed: "1/N" is 1/n_classes (paper A.7.1), None is no filter.

    Raises ValueError for anything else but a number in [0, 1).
    """
    if threshold is None:
        return None
    if n_classes < 1:
        raise ValueError(f"n_classes is {n_classes}; allowed is 1 or more")
    if threshold == "1/N":
        return 1.0 / n_classes
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < 1:
        raise ValueError(f'filter threshold is {threshold!r}; allowed is "1/N", a number from 0 to below 1, or null')
    return float(threshold)


def select(
    class_index: NDArray[np.integer[Any]],
    own_probability: NDArray[np.floating[Any]] | None,
    valid: NDArray[np.bool_],
    n_classes: int,
    threshold: float | None,
    per_class: int | None,
    min_per_class: int,
    seed: int,
    real_filter: RealFilter | None = None,
    min_left: int = 0,
) -> Selection:
    """Choose the images to train on, class by class (paper section 3.1, CF; released `select_glide_ims_by_clip.py`;
    section 3.2, RF).

    class_index: integers [N]; own_probability: float [N], may be None where threshold is; valid: bool [N]; real_filter:
    what it says of the N images, None for no real filtering. In this order:

    - An image passes where own_probability > threshold, strictly, compared in own_probability's own precision (so a
      uniform softmax over N classes does not pass 1/N). With threshold None every valid image passes.
    - A class with fewer than min_per_class passed images is filled up to that number with its most confident other
      valid images, earlier ones first among equals. The released code is per_class=800, min_per_class=800.
    - Of these images those that real_filter finds too close to another class are dropped. A class with fewer than
      min_left remaining images is filled up to that number with those that were dropped, farthest from other classes
      first.
    - Of a class with more than per_class remaining images (None: no cap), per_class are drawn at random.

    The draw gives each image of a class a random priority, in the order of the class's rows, from a stream of (seed,
    class): so it does not depend on other classes or on how they are interleaved, a smaller cap keeps a part of what a
    larger one keeps, and another threshold, images appended, or real filtering, change as little of the draw as they
    can.

    Raises ValueError for lengths, classes or numbers that break this.
    """
    class_index, valid, usable, passed = _check(class_index, own_probability, valid, n_classes, threshold)
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class is {per_class}; allowed is 1 or more, or null for all")
    for name, minimum in (("min_per_class", min_per_class), ("min_left", min_left)):
        if minimum < 0 or (per_class is not None and minimum > per_class):
            raise ValueError(f"{name} is {minimum}; allowed is 0 to per_class ({per_class})")
    if real_filter is not None and real_filter.too_close.shape != class_index.shape:
        raise ValueError(f"real_filter is of {real_filter.too_close.shape} images; there are {class_index.shape}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; allowed is 0 or more")
    passing = Reason.NO_FILTER if threshold is None else Reason.KEPT
    reason = np.where(passed, passing, np.where(usable, Reason.BELOW_THRESHOLD, Reason.INVALID)).astype(np.int8)

    classes = _Classes(class_index, n_classes)
    if own_probability is not None:
        others, uncertainty = usable & ~passed, -own_probability
        for label in np.flatnonzero(classes.counts(passed) < min_per_class).tolist():
            _fill(reason, classes.rows(label), others, uncertainty, min_per_class)
    if real_filter is not None:
        dropped = real_filter.too_close & _kept(reason)
        reason[dropped] = Reason.TOO_CLOSE
        for label in np.flatnonzero(classes.counts(_kept(reason)) < min_left).tolist():
            _fill(reason, classes.rows(label), dropped, real_filter.other_similarity, min_left)
    if per_class is not None:
        left = _kept(reason)
        for label in np.flatnonzero(classes.counts(left) > per_class).tolist():
            rows = classes.rows(label)
            priority = np.random.default_rng([seed, label]).random(len(rows))
            among = np.flatnonzero(left[rows])
            drawn = among[np.argsort(priority[among], kind="stable")]
            reason[rows[drawn[per_class:]]] = Reason.OVER_CAP
    return Selection(_kept(reason), reason)


class _Classes:
    """The images of each class."""

    def __init__(self, class_index: NDArray[np.int64], n_classes: int):
        self._class_index, self._n_classes = class_index, n_classes
        # 16-bit keys are sorted by radix, in time linear in N; wider ones are not.
        key = class_index.astype(np.uint16) if n_classes <= 2**16 else class_index
        self._order = np.argsort(key, kind="stable")
        self._ends = np.cumsum(np.bincount(class_index, minlength=n_classes))

    def rows(self, label: int) -> NDArray[np.int64]:
        """Positions of the images of a class, ascending."""
        return self._order[self._ends[label - 1] if label else 0 : self._ends[label]]

    def counts(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many images of each class are chosen: int64 [n_classes]; chosen: bool [N]."""
        return np.bincount(self._class_index[chosen], minlength=self._n_classes)


def _kept(reason: NDArray[np.int8]) -> NDArray[np.bool_]:
    return np.isin(reason, KEPT_REASONS)


def _fill(
    reason: NDArray[np.int8],
    rows: NDArray[np.int64],
    candidates: NDArray[np.bool_],
    ascending: NDArray[np.floating[Any]],
    minimum: int,
) -> None:
    """Take back as many of a class's candidates as it lacks for the minimum, lowest values of `ascending` first."""
    n_missing = minimum - int(_kept(reason[rows]).sum())
    among = rows[candidates[rows]]
    reason[among[np.argsort(ascending[among], kind="stable")[:n_missing]]] = Reason.FALLBACK


def counts_per_class(
    class_index: NDArray[np.integer[Any]], reason: NDArray[np.integer[Any]], n_classes: int
) -> NDArray[np.int64]:
    """How many images of each class have each reason: int64 [n_classes, len(Reason)], columns in `Reason`'s order.

    Raises ValueError where lengths differ, or a class or reason is out of range.
    """
    class_index, reason = np.asarray(class_index), np.asarray(reason)
    if class_index.shape != reason.shape:
        raise ValueError(f"class_index has shape {class_index.shape}, reason {reason.shape}; give one of each an image")
    for name, values, limit in (("class_index", class_index, n_classes), ("reason", reason, len(Reason))):
        if values.size and not (values.min() >= 0 and values.max() < limit):
            raise ValueError(f"{name} goes from {values.min()} to {values.max()}; allowed is 0 to {limit - 1}")
    cell = class_index.astype(np.int64) * len(Reason) + reason
    return np.bincount(cell, minlength=n_classes * len(Reason)).reshape(n_classes, len(Reason)).astype(np.int64)


def _check(
    class_index: NDArray[Any],
    own_probability: NDArray[Any] | None,
    valid: NDArray[Any],
    n_classes: int,
    threshold: float | None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    class_index, valid = np.asarray(class_index), np.asarray(valid)
    n = len(class_index)
    if class_index.shape != (n,) or valid.shape != (n,) or (n and valid.dtype != np.bool_):
        raise ValueError(
            f"class_index has shape {class_index.shape}, valid {valid.dtype} {valid.shape}; "
            "give one integer and one bool an image"
        )
    if n and not np.issubdtype(class_index.dtype, np.integer):
        raise ValueError(f"class_index is {class_index.dtype}; allowed are integers")
    if n and not (class_index.min() >= 0 and class_index.max() < n_classes):
        raise ValueError(
            f"class_index goes from {class_index.min()} to {class_index.max()}; allowed is 0 to {n_classes - 1}"
        )
    class_index, valid = class_index.astype(np.int64, copy=False), valid.astype(np.bool_, copy=False)
    if threshold is not None and (not math.isfinite(threshold) or threshold < 0):
        raise ValueError(f"threshold is {threshold}; allowed is a number from 0, or None for no filter")
    if own_probability is None:
        if threshold is not None:
            raise ValueError(f"threshold is {threshold} but there are no scores; score the images first")
        return class_index, valid, valid, valid
    if own_probability.shape != (n,):
        raise ValueError(f"own_probability has shape {own_probability.shape}; allowed is ({n},), one an image")
    usable = valid & np.isfinite(own_probability)
    return class_index, valid, usable, usable if threshold is None else usable & (own_probability > threshold)
