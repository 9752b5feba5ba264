"""Target data sets: fixed renderings of real images."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline_lib.datasets.fashion_mnist import CLASS_NAMES
from pipeline_lib.miniature import targets


@pytest.mark.parametrize("kind", targets.TARGETS)
def test_renderings_are_rgb_and_repeatable(kind: str, garments: tuple) -> None:
    images = garments[0][:20]
    before = images.copy()
    shown = targets.render(kind, images, np.arange(100, 120))
    assert shown.shape == (20, 32, 32, 3)
    assert shown.dtype == np.uint8
    assert np.array_equal(shown[5:], targets.render(kind, images[5:], np.arange(105, 120)))
    assert np.array_equal(images, before)
    assert shown.std() > 0


def test_objects_are_the_photographs_and_renditions_their_negatives(garments: tuple) -> None:
    objects = targets.render("objects", garments[0])
    assert np.array_equal(objects[:, 2:30, 2:30, 0], garments[0])
    assert objects.sum() == 3 * garments[0].astype(np.int64).sum()
    assert np.array_equal(targets.render("rendition", garments[0]), 255 - objects)
    assert np.array_equal(targets.render("fine_grained", garments[0]), objects)


def test_only_scenes_depend_on_indices(garments: tuple) -> None:
    images = garments[0][:8]
    for kind in targets.TARGETS:
        first, second = (targets.render(kind, images, np.arange(start, start + 8)) for start in (0, 8))
        same = np.array_equal(first, second)
        assert same == (kind != "scene")


def test_low_resolution_has_few_details(garments: tuple) -> None:
    shown = targets.render("low_resolution", garments[0]).astype(float)
    original = targets.render("objects", garments[0]).astype(float)
    assert np.abs(np.diff(shown, axis=1)).max() < 0.6 * np.abs(np.diff(original, axis=1)).max()
    assert abs(shown.mean() - original.mean()) < 3


def test_sketches_are_dark_strokes_on_white(garments: tuple) -> None:
    shown = targets.render("sketch", garments[0])
    assert np.median(shown) == 255
    assert shown.min() < 128


def test_select_renumbers_classes() -> None:
    labels = np.array([0, 1, 2, 3, 4, 5, 6, 6])
    rows, classes = targets.select("fine_grained", labels)
    assert rows.tolist() == [0, 2, 3, 4, 6, 7]
    names = [targets.TARGETS["fine_grained"].class_names[c] for c in classes]
    assert names == [CLASS_NAMES[label] for label in labels[rows]]
    rows, classes = targets.select("objects", labels)
    assert np.array_equal(classes, labels)


def test_templates_take_one_name() -> None:
    for target in targets.TARGETS.values():
        for template in (*target.head, target.basic):
            assert template.count("{}") == 1
        assert list(target.classes) == sorted(set(target.classes))


def test_bad_input_is_named(garments: tuple) -> None:
    with pytest.raises(ValueError, match="'oil'; choose from fine_grained"):
        targets.render("oil", garments[0])
    with pytest.raises(ValueError, match=r"uint8 \[N, 28, 28\], got float64 \[1, 2\]"):
        targets.render("objects", np.zeros((1, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 images but 2 indices"):
        targets.render("scene", garments[0][:3], np.arange(2))
