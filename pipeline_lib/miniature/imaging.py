"""Small image operations shared by the web corpus and the target data sets; numpy only.

Images are arrays [N, H, W] (grey) or [N, H, W, 3] (RGB), float32 in 0..255 unless said otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SIZE = 32  # side of every image of the miniature study, pixels
GARMENT = 28  # side of a Fashion-MNIST image, pixels


def to_uint8(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Round and clip to 0..255."""
    rounded: NDArray[np.uint8] = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    return rounded


def pad(images: NDArray[Any]) -> NDArray[Any]:
    """[N, 28, 28] -> [N, 32, 32], black border of two pixels, same dtype."""
    margin = (SIZE - GARMENT) // 2
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin)))


def grey_to_rgb(images: NDArray[Any]) -> NDArray[Any]:
    """[N, H, W] -> [N, H, W, 3], same dtype."""
    return np.repeat(images[..., None], 3, axis=-1)


def resample_matrix(scale: Array, shift: Array, flip: NDArray[np.bool_]) -> Array:
    """Bilinear resampling along one axis as matrices [N, 32, 28]; zero outside of the garment image.

    Args:
        scale: [N], size of the garment relative to the original (1 keeps 28 pixels).
        shift: [N], pixels by which the garment's centre moves.
        flip: [N], mirrored along this axis.
    """
    out = np.arange(SIZE, dtype=np.float32)[None, :]
    position = (out - (SIZE - 1) / 2 - shift[:, None]) / scale[:, None]
    position = np.where(flip[:, None], -position, position) + (GARMENT - 1) / 2
    distance = np.abs(position[:, :, None] - np.arange(GARMENT, dtype=np.float32))
    # A triangle filter at least one source pixel wide; wider when shrinking, so that nothing aliases.
    width = np.maximum(1.0, 1.0 / scale)[:, None, None]
    weights = np.clip(1 - distance / width, 0, None) / width
    return np.asarray(weights, np.float32)


def place(images: NDArray[np.uint8], scale: Array, dx: Array, dy: Array, mirrored: NDArray[np.bool_]) -> Array:
    """Scale, move and mirror garments: uint8 [N, 28, 28] -> float32 [N, 32, 32]; all arguments are [N]."""
    rows = resample_matrix(scale, dy, np.zeros(len(scale), bool))
    columns = resample_matrix(scale, dx, mirrored)
    return np.asarray(np.matmul(np.matmul(rows, images.astype(np.float32)), columns.transpose(0, 2, 1)), np.float32)


def sketch(grey: Array, gain: float = 1.6) -> Array:
    """Dark strokes on white paper where brightness changes: [N, H, W] -> [N, H, W]."""
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    horizontal = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    vertical = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return np.asarray(np.clip(255 - gain * 0.5 * np.hypot(horizontal, vertical), 0, 255), np.float32)


_COARSE = SIZE // 4


def _upsample_matrix() -> Array:
    """Bilinear upsampling [32, 8] by four, edges repeated."""
    position = (np.arange(SIZE, dtype=np.float32) + 0.5) / 4 - 0.5
    position = np.clip(position, 0, _COARSE - 1)
    weights = np.clip(1 - np.abs(position[:, None] - np.arange(_COARSE, dtype=np.float32)), 0, None)
    return np.asarray(weights, np.float32)


def low_resolution(rgb: Array) -> Array:
    """What is left at 8x8 pixels, shown at 32x32: [N, 32, 32, 3] -> [N, 32, 32, 3]."""
    coarse = rgb.reshape(len(rgb), _COARSE, 4, _COARSE, 4, 3).mean(axis=(2, 4))
    up = _upsample_matrix()
    wide = np.tensordot(up, coarse.astype(np.float32), axes=(1, 1))  # [32, N, 8, 3]
    both = np.tensordot(up, wide, axes=(1, 2))  # [32 columns, 32 rows, N, 3]
    return np.ascontiguousarray(both.transpose(2, 1, 0, 3))


def negative(rgb: Array) -> Array:
    """Inverted brightness."""
    return (255 - rgb).astype(np.float32)


def backdrop(pattern: NDArray[np.int64], colour: Array, second: Array, phase: Array) -> Array:
    """Low-frequency backgrounds [N, 32, 32, 3].

    Args:
        pattern: [N], position in `PATTERNS`.
        colour, second: [N, 3], the two colours a pattern blends; "plain" uses the first alone.
        phase: [N], 0..1, where the pattern begins.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    turn = (2 * np.pi * phase)[:, None, None]
    wave_x = np.sin(2 * np.pi * x / 16 + turn)
    wave_y = np.sin(2 * np.pi * y / 16 + turn)
    striped = 0.5 + 0.5 * wave_x
    gradient = np.where(phase[:, None, None] < 0.5, y, SIZE - 1 - y) / (SIZE - 1)
    spotted = np.clip(wave_x * wave_y, 0, 1)
    chosen = pattern[:, None, None]
    blend = np.select([chosen == 1, chosen == 2, chosen == 3], [striped, gradient, spotted], default=0.0)
    blend = blend[..., None].astype(np.float32)
    return np.asarray((1 - blend) * colour[:, None, None, :] + blend * second[:, None, None, :], np.float32)


PATTERNS = ("plain", "striped", "shaded", "spotted")

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 60),
    "purple": (150, 60, 180),
    "orange": (245, 140, 40),
    "pink": (250, 150, 190),
    "brown": (130, 85, 50),
}
COLOUR_NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float32)


def paint(garment: Array, colour: Array, background: Array) -> Array:
    """Put coloured garments in front of backgrounds.

    Args:
        garment: [N, 32, 32], brightness of the garment, 0 where there is none.
        colour: [N, 3], colour of the garment; its shading stays that of the photograph.
        background: [N, 32, 32, 3].

    White on black gives back the original photograph, grey as RGB.
    """
    # Opaque from a brightness of 32 on; black clothes keep a little light, else their shading would be lost.
    # Where the garment is transparent its shading counts in full: on black this gives the photograph itself.
    transparent = np.clip(1 - garment / 32, 0, 1)[..., None]
    black = background.reshape(len(background), -1).max(axis=1) < 1
    images = background * transparent
    tint = np.maximum(colour, 60) / 255
    cloth = garment * np.where(black[:, None, None], 1, 1 - transparent[..., 0])
    for channel in range(3):
        images[..., channel] += cloth * tint[:, channel, None, None]
    return np.asarray(images, np.float32)
