"""Where denoising starts, on which grid, and how references are prepared."""

import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from pipeline_lib.errors import UserError
from pipeline_lib.generators.real_guidance import Grid, Start, checked, prepare, prepare_all, start_of


def start(share: float) -> Start:
    found = start_of({"real_guidance": {"start": share, "shots": "not ours"}})
    assert found is not None
    return found


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise."""
    y, x = np.mgrid[:height, :width]
    random = np.random.default_rng(width + height)
    planes = [120 + 80 * np.sin(x / 7 + number) * np.cos(y / 9) + random.normal(0, 8, x.shape) for number in range(3)]
    return Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8)).convert(mode)


# --- t* ---------------------------------------------------------------------------------------------------------------


def test_without_real_guidance_there_is_no_start():
    """None, or no such key."""
    assert start_of({}) is None
    assert start_of({"real_guidance": None}) is None


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.15, Fraction(3, 20)),
        (0.35, Fraction(7, 20)),
        (0.5, Fraction(1, 2)),
        (0.333, Fraction(333, 1000)),
        (0.1 + 0.2, Fraction(3, 10)),
        (0, Fraction(0)),
        (1, Fraction(1)),
        (0.0001, Fraction(1, 1000)),
        (0.9999, Fraction(999, 1000)),
    ],
)
def test_starts_are_fractions(share: float, expected: Fraction):
    """As they are written; only 0 and 1 themselves are the reference and no guidance."""
    found = start(share)
    assert found.share == expected
    assert (found.is_reference, found.is_noise) == (share == 0, share == 1)


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan])
def test_starts_outside_are_refused(share: float):
    """With the key and what is allowed."""
    with pytest.raises(UserError, match=r"few_shot\.real_guidance\.starts: .* is not allowed: t\*/T is 0 .* to 1"):
        start(share)


@pytest.mark.parametrize(
    ("steps", "share", "grid"),
    [
        (100, 0.15, Grid(100, 15)),  # the paper's
        (100, 0.2, Grid(100, 20)),
        (100, 0.35, Grid(100, 35)),
        (100, 0.4, Grid(100, 40)),
        (100, 0.5, Grid(100, 50)),
        (8, 0.15, Grid(20, 3)),  # the miniature study's
        (8, 0.2, Grid(10, 2)),
        (8, 0.35, Grid(20, 7)),
        (8, 0.4, Grid(10, 4)),
        (8, 0.5, Grid(8, 4)),
        (50, 0.35, Grid(60, 21)),
        (30, 1, Grid(30, 30)),
        (30, 0, Grid(30, 0)),
    ],
)
def test_the_grid_has_the_start(steps: int, share: float, grid: Grid):
    """The number of steps that are made is t*/T of the grid, exactly."""
    assert start(share).grid(steps) == grid


def test_the_grid_is_the_coarsest_that_is_fine_enough():
    """No number of steps between the one asked for and the one taken has t* among its points."""
    for steps in (1, 7, 8, 25, 50, 100):
        for hundredths in range(1, 100):
            grid = start(hundredths / 100).grid(steps)
            fitting = (count for count in range(steps, 1001) if count * hundredths % 100 == 0)
            assert grid.steps == next(fitting)
            assert grid.made * 100 == grid.steps * hundredths


def test_a_grid_that_the_model_does_not_have():
    """The message names both keys and the number of steps."""
    with pytest.raises(UserError, match=r"starts: 0\.51 is .* grid of 300 steps at images\.steps: 201.* has 250"):
        start(0.51).grid(201, 250)


def test_references_come_with_real_guidance_alone():
    """One for each prompt; anything else is a mistake of the caller."""
    images = [picture(4, 4)] * 2
    assert checked(images, ["a", "b"], start(0.5)) == images
    assert list(checked(None, ["a", "b"], None)) == []
    for references, begins in ((None, start(0.5)), (images, start(1)), ([], start(0))):
        with pytest.raises(ValueError, match=r"for 3 prompts"):
            checked(references, ["a", "b", "c"], begins)
    with pytest.raises(ValueError, match="without real_guidance"):
        checked(images, ["a", "b"], None)


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "size"), [(48, 32, 16), (40, 64, 32), (100, 80, 20), (20, 20, 50), (66, 33, 11), (7, 14, 28)]
)
def test_references_are_resized_and_cropped_as_by_torchvision(width: int, height: int, size: int):
    """Whose Resize, with bicubic interpolation, is the released code's, and CenterCrop."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    reference = picture(width, height)
    expected = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])(reference)
    np.testing.assert_array_equal(prepare(reference, size, size), np.asarray(expected))


def test_references_of_the_right_size_are_left_alone():
    """Whole, or where a part is cut off."""
    pixels = np.asarray(picture(33, 24))
    np.testing.assert_array_equal(prepare(picture(33, 24), 24, 33), pixels)
    np.testing.assert_array_equal(prepare(picture(33, 24), 24, 24), pixels[:, 4:28])


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16), (31, 32)])
def test_images_need_not_be_square(height: int, width: int):
    """The reference covers the whole image, undistorted: a disc stays one."""
    y, x = np.mgrid[:100, :100]
    disc = Image.fromarray((255 * ((x - 49.5) ** 2 + (y - 49.5) ** 2 < 10**2)).astype(np.uint8))
    found = prepare(disc, height, width)[..., 0] / 255
    assert found.shape == (height, width)
    assert found.sum() == pytest.approx(math.pi * (max(height, width) / 10) ** 2, rel=0.05)
    centre = ((height - 1) / 2, (width - 1) / 2)
    spread = [
        float((found * (axis - at) ** 2).sum()) for axis, at in zip(np.mgrid[:height, :width], centre, strict=True)
    ]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_references_may_have_any_mode(mode: str):
    """They become RGB."""
    reference = picture(20, 20, mode)
    np.testing.assert_array_equal(prepare(reference, 20, 20), np.asarray(reference.convert("RGB")))


def test_one_object_is_prepared_once(monkeypatch: pytest.MonkeyPatch):
    """However many images start from it."""
    first, second = picture(20, 20), picture(24, 24)
    calls: list[Image.Image] = []

    def counting(reference: Image.Image, height: int, width: int) -> np.ndarray:
        calls.append(reference)
        return prepare(reference, height, width)

    monkeypatch.setattr("pipeline_lib.generators.real_guidance.prepare", counting)
    arrays = prepare_all([first, second, first, first], 12, 12)
    assert calls == [first, second]
    for array, reference in zip(arrays, (first, second, first, first), strict=True):
        np.testing.assert_array_equal(array, prepare(reference, 12, 12))
