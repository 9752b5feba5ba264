"""The miniature study's target data sets: real Fashion-MNIST images shown in the ways the paper's data sets differ.

Everything is rendered from real photographs by fixed rules; nothing is learned here. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.datasets.fashion_mnist import CLASS_NAMES
from pipeline_lib.datasets.registry import builtin_datasets
from pipeline_lib.miniature import imaging, scenes

SCENE_SEED = 20_220  # colours and places of the "scene" target; not a seed of any corpus


@dataclass(frozen=True)
class Target:
    """One target data set, as `pipeline_lib/datasets/definitions` has it.

    Templates have one `{}`, filled with a class name.
    """

    kind: str
    classes: tuple[int, ...]  # labels of Fashion-MNIST, ascending; a class index is a position in this tuple
    head: tuple[str, ...]  # prompts of the zero-shot head
    basic: str  # prompt for the generator, basic strategy

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in class-index order."""
        return tuple(CLASS_NAMES[label] for label in self.classes)


TARGETS: dict[str, Target] = {
    dataset.fashion_mnist: Target(
        dataset.fashion_mnist,
        tuple(CLASS_NAMES.index(name) for name in dataset.class_names),
        tuple(dataset.head_templates),
        dataset.prompt_template,
    )
    for dataset in builtin_datasets().values()
    if dataset.fashion_mnist is not None
}


def select(kind: str, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a split that belong to a target, int64 [K], and their class indices, int64 [K]."""
    lookup = np.full(len(CLASS_NAMES), -1, np.int64)
    lookup[list(_target(kind).classes)] = np.arange(len(_target(kind).classes))
    rows = np.flatnonzero(lookup[labels] >= 0)
    return rows, lookup[labels[rows]]


def render(kind: str, images: NDArray[np.uint8], indices: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
    """Show photographs as one target does: uint8 [N, 28, 28] -> uint8 [N, 32, 32, 3].

    Args:
        indices: int64 [N], numbers of the images in their split; they choose colours and places of "scene" and
            matter nowhere else. Default: 0..N-1.
    """
    _target(kind)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (imaging.GARMENT, imaging.GARMENT):
        raise ValueError(f"images must be uint8 [N, 28, 28], got {images.dtype} {list(images.shape)}")
    if kind == "scene":
        return _scenes(images, np.arange(len(images)) if indices is None else np.asarray(indices))
    photographs = imaging.grey_to_rgb(imaging.pad(images)).astype(np.float32)
    medium = {"sketch": "sketch", "low_resolution": "low_resolution", "rendition": "negative"}.get(kind, "photo")
    return imaging.to_uint8(scenes.apply_medium(medium, photographs))


def _scenes(images: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Each image in a coloured scene of its own."""
    if len(indices) != len(images):
        raise ValueError(f"{len(images)} images but {len(indices)} indices")
    planned = scenes.plan(SCENE_SEED, indices, 1, plain_share=0.0, photo_share=1.0)
    return scenes.compose(images, planned.with_garments(np.arange(len(images))))


def _target(kind: str) -> Target:
    if kind not in TARGETS:
        raise ValueError(f"unknown target {kind!r}; choose from {', '.join(TARGETS)}")
    return TARGETS[kind]
