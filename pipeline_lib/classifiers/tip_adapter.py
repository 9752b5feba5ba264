"""Tip-Adapter and Tip-Adapter-F (Zhang et al., 2022, arXiv:2207.09519): the shots as a cache beside the zero-shot head.

Differences from the original's code. Features are cached: a key is the feature of a shot as it is, where the original
averages ten augmented views, and Tip-Adapter-F learns from those features, where it augments anew in each epoch.
Tip-Adapter-F's result is the last epoch's, where the original keeps the epoch that is best on the test set. And the
search is the same for all data sets: every (alpha, beta) that any of its configurations tries, where each of these has
a range of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.head import Head
from pipeline_lib.sections_few_shot import TipAdapter as TipAdapterSettings

# `search_scale` of the original's configurations (11 data sets), upper ends of beta and alpha; and `search_step`, how
# many of each are tried.
_SCALES = ((7, 3), (10, 10), (12, 5), (12, 10), (13, 13), (20, 10), (30, 30), (50, 50))
_BETAS, _ALPHAS, _SMALLEST = 200, 20, 0.1
_LARGEST_EXPONENT = 40  # of the kernel on validation images: float32 overflows at 88, and test images may be nearer
_EPSILON = 1e-4  # AdamW's in the original; its weight decay and betas are torch's defaults
_WEIGHT_DECAY = 0.01
_BLOCK = 2**19  # float32 values worked on together: 2 MiB, which a core's cache holds


@dataclass(frozen=True, eq=False)
class TipAdapter:
    """A zero-shot head and a cache beside it: logits = head + alpha * sum over keys of the class exp(-beta (1 - cos)).

    keys: float32 [K, d], features of the shots, or what they were tuned to; labels: int32 [K], their classes. Other
    types are converted. Raises ValueError where shapes disagree, a label is no class of the head, or a value is not
    finite.
    """

    head: Head
    keys: NDArray[np.float32]
    labels: NDArray[np.integer[Any]]
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", np.ascontiguousarray(self.keys, dtype=np.float32))
        object.__setattr__(self, "labels", np.ascontiguousarray(self.labels, dtype=np.int32))
        shapes = self.keys.shape, self.labels.shape
        if shapes != ((len(self.labels), self.head.dimension), (len(self.labels),)) or len(self.labels) == 0:
            raise ValueError(
                f"cache: keys have shape {shapes[0]}, labels {shapes[1]}; allowed are [K, {self.head.dimension}] and "
                f"[K], one key or more"
            )
        _check_labels(self.labels, self.head)
        if not (np.isfinite(self.keys).all() and math.isfinite(self.alpha) and math.isfinite(self.beta)):
            raise ValueError(f"cache: a key, alpha ({self.alpha}) or beta ({self.beta}) is not finite")

    def logits(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Logits float32 [N, n_classes] of L2-normalised features [N, d] (float16, 32 or 64; computed in float32).

        Raises ValueError where the features are not [N, d] with the head's d.
        """
        logits = self.head.logits(features)
        cache = _Cache(self.keys, self.labels, self.head.n_classes)
        rows = max(1, _BLOCK // len(self.keys))
        for start in range(0, len(logits), rows):
            block = slice(start, start + rows)
            logits[block] += np.float32(self.alpha) * cache.sums(cache.affinities(features[block]), self.beta)
        return logits


def tip_adapter(shots: Examples, validation: Examples, head: Head) -> TipAdapter:
    """Tip-Adapter, without training: the shots are the keys; alpha and beta are searched on the validation images.

    head: the zero-shot head. The pair with the most correct validation images wins; of several, which few images make
    common, that with the smallest mean cross-entropy on them, then the smallest alpha, then the smallest beta. (The
    original takes the first it comes to, a small beta with a small alpha, next to zero-shot CLIP: with one image per
    class that loses most of what the cache adds.)

    Raises ValueError where shots, validation images and head do not fit together, or there are none.
    """
    return _searched(TipAdapter(head, shots.features, shots.labels, alpha=1.0, beta=1.0), validation)


def fine_tune(
    shots: Examples,
    validation: Examples,
    head: Head,
    settings: TipAdapterSettings,
    seed: int,
    device: str = "cpu",
    threads: int = 1,
) -> TipAdapter:
    """Tip-Adapter-F: the keys are tuned on the shots, with alpha and beta of the settings; then both are searched as in
    `tip_adapter`, for the tuned keys.

    AdamW, epsilon 1e-4, weight decay 0.01; the learning rate of step t (from 0) of the `total` steps really made is
    `learning_rate * 0.5 * (1 + cos(pi * t / total))`. The seed decides the order of the shots, drawn anew for each
    epoch; the last, partial batch is used. threads: CPU threads; see `tuning.tune`.

    Raises as `tip_adapter`, and FloatingPointError where it diverges.
    """
    start = TipAdapter(head, shots.features, shots.labels, settings.alpha, settings.beta)
    return _searched(replace(start, keys=_tuned_keys(start, settings, seed, device, threads)), validation)


def _tuned_keys(
    start: TipAdapter, settings: TipAdapterSettings, seed: int, device: str, threads: int
) -> NDArray[np.float32]:
    import torch
    import torch.nn.functional as F

    from pipeline_lib.classifiers.descent import cpu_threads

    n = len(start.keys)
    generator = torch.Generator().manual_seed(seed)
    total = settings.epochs * math.ceil(n / settings.batch_size)
    step = 0
    with cpu_threads(threads):
        features = torch.tensor(start.keys, device=device)
        zero_shot = torch.tensor(start.head.logits(start.keys), device=device)
        labels = torch.tensor(start.labels, dtype=torch.int64, device=device)
        values = F.one_hot(labels, start.head.n_classes).float()
        keys = features.clone().requires_grad_()
        optimizer = torch.optim.AdamW([keys], eps=_EPSILON, weight_decay=_WEIGHT_DECAY)
        for epoch in range(settings.epochs):
            order = torch.randperm(n, generator=generator).to(device)
            for rows in torch.split(order, settings.batch_size):
                optimizer.param_groups[0]["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
                cached = torch.exp(settings.beta * (features[rows] @ keys.T - 1)) @ values
                loss = F.cross_entropy(zero_shot[rows] + settings.alpha * cached, labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
            if not math.isfinite(last := float(loss.detach())):
                raise FloatingPointError(
                    f"Tip-Adapter-F with seed {seed}: the loss of epoch {epoch} is {last}; lower the learning rate "
                    f"({settings.learning_rate})"
                )
        tuned: NDArray[np.float32] = keys.detach().cpu().numpy()
    return tuned


class _Cache:
    """The keys, those of a class side by side."""

    def __init__(self, keys: NDArray[np.float32], labels: NDArray[np.integer[Any]], n_classes: int):
        order = np.argsort(labels, kind="stable")
        self._keys, self._n_classes = keys[order], n_classes
        self._classes, self._firsts = np.unique(labels[order], return_index=True)

    def affinities(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Cosines less 1, float32 [N, K], of features [N, d] and keys, in the order that `sums` takes."""
        affinities: NDArray[np.float32] = features.astype(np.float32, copy=False) @ self._keys.T
        affinities -= 1
        return affinities

    def sums(self, affinities: NDArray[np.float32], beta: float | NDArray[np.float64]) -> NDArray[np.float32]:
        """exp(beta * affinity) summed over the keys of each class, float32 [..., n_classes]; beta broadcasts with
        affinities [..., K]."""
        kernel = np.exp(np.asarray(beta, np.float32) * affinities)
        sums = np.zeros((*kernel.shape[:-1], self._n_classes), np.float32)
        sums[..., self._classes] = np.add.reduceat(kernel, self._firsts, axis=-1)
        return sums


def _searched(adapter: TipAdapter, validation: Examples) -> TipAdapter:
    """The same cache with the alpha and beta that are best on the validation images."""
    if len(validation) == 0:
        raise ValueError("Tip-Adapter: there are no validation images to choose alpha and beta on")
    _check_labels(validation.labels, adapter.head)
    search = _Search(adapter, validation)
    limit = _LARGEST_EXPONENT / max(search.largest_affinity, 1e-6)  # of beta; tuned keys may be longer than 1
    if limit < _SMALLEST:
        raise FloatingPointError("Tip-Adapter-F: the tuned keys are too long for any beta; lower the learning rate")
    grids = []
    for alphas, betas in (_grid(*scale) for scale in _SCALES):
        possible = betas[betas <= limit]
        grids.append((alphas, possible, search.correct(alphas, possible)))
    most = max(correct.max() for _, _, correct in grids)
    candidates: list[tuple[float, float, float]] = []
    for alphas, betas, correct in grids:
        best = (correct == most).any(axis=1)
        losses = search.losses(alphas, betas[best])
        candidates += [
            (losses[row, column], alphas[column], betas[best][row])
            for row, column in zip(*np.nonzero(correct[best] == most), strict=True)
        ]
    _, alpha, beta = min(candidates)
    return replace(adapter, alpha=float(alpha), beta=float(beta))


def _grid(largest_beta: float, largest_alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The alphas and betas that a configuration of the original tries: both begin at 0.1 and end before the largest."""
    alphas = _SMALLEST + np.arange(_ALPHAS) * (largest_alpha - _SMALLEST) / _ALPHAS
    betas = _SMALLEST + np.arange(_BETAS) * (largest_beta - _SMALLEST) / _BETAS
    return alphas, betas


class _Search:
    """How well a cache does on validation images, for many alphas and betas."""

    def __init__(self, adapter: TipAdapter, validation: Examples):
        self._cache = _Cache(adapter.keys, adapter.labels, adapter.head.n_classes)
        self._features, self._labels = validation.features, validation.labels
        self._zero_shot = adapter.head.logits(validation.features)
        self._width = max(len(adapter.keys), _ALPHAS * adapter.head.n_classes)  # values for an image and a beta
        self.largest_affinity = max(float(affinities.max()) for _, affinities in self._affinities())

    def correct(self, alphas: NDArray[np.float64], betas: NDArray[np.float64]) -> NDArray[np.int64]:
        """The number of images that are recognised, int64 [len(betas), len(alphas)]."""
        counts = np.zeros((len(betas), len(alphas)), np.int64)
        for block, labels, logits in self._logits(alphas, betas):
            counts[block] += (logits.argmax(axis=-1) == labels).sum(axis=-1)
        return counts

    def losses(self, alphas: NDArray[np.float64], betas: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean cross-entropy of the images, float64 [len(betas), len(alphas)]."""
        summed = np.zeros((len(betas), len(alphas)))
        for block, labels, logits in self._logits(alphas, betas):
            shifted = logits - logits.max(axis=-1, keepdims=True)
            own = np.take_along_axis(shifted, np.broadcast_to(labels[:, None], (*shifted.shape[:-1], 1)), axis=-1)
            losses = np.log(np.exp(shifted).sum(axis=-1)) - own[..., 0]
            summed[block] += losses.sum(axis=-1, dtype=np.float64)
        return summed / len(self._labels)

    def _logits(
        self, alphas: NDArray[np.float64], betas: NDArray[np.float64]
    ) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float32]]]:
        """Blocks of betas and images: which betas, the labels [v], the logits [b, len(alphas), v, n_classes]."""
        for rows, affinities in self._affinities():
            step = max(1, _BLOCK // (self._width * len(affinities)))
            for first in range(0, len(betas), step):
                block = slice(first, first + step)
                sums = self._cache.sums(affinities, betas[block, None, None])
                logits = self._zero_shot[rows] + alphas.astype(np.float32)[:, None, None] * sums[:, None]
                yield block, self._labels[rows], logits

    def _affinities(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Blocks of images: which, and their affinities."""
        images = max(1, _BLOCK // self._width)
        for start in range(0, len(self._labels), images):
            rows = slice(start, start + images)
            yield rows, self._cache.affinities(self._features[rows])


def _check_labels(labels: NDArray[np.integer[Any]], head: Head) -> None:
    if labels.min() < 0 or labels.max() >= head.n_classes:
        raise ValueError(f"labels are {labels.min()} to {labels.max()}; allowed is 0 to {head.n_classes - 1}")
