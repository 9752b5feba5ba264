"""The web corpus, images: Fashion-MNIST garments composed into 32x32 RGB scenes.

A scene is a row of numbers drawn from (seed, index) alone, so that any part of the corpus can be made in any order.
Part of the scenes is *plain*: the white garment on black that the target data sets show, moved by a pixel at most.
The rest is coloured, moved, scaled, mirrored, on backgrounds with low-frequency patterns. Then a *medium* is
applied: photo, sketch, low-resolution photo or negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.miniature import imaging

MEDIA = ("photo", "sketch", "low_resolution", "negative")
WHITE, BLACK = imaging.COLOUR_NAMES.index("white"), imaging.COLOUR_NAMES.index("black")


def uniforms(seed: int, indices: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), [N, columns], a pure function of (seed, index, column): SplitMix64 (Steele, 2014)."""
    with np.errstate(over="ignore"):
        state = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + indices.astype(np.uint64)[:, None] * np.uint64(
            0x2545F4914F6CDD1D
        )
        state = state + np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for _ in range(2):
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) / float(1 << 53)


@dataclass(frozen=True)
class Scenes:
    """N scenes as columns, each an array [N]."""

    garment: NDArray[np.int64]  # position in the garments the scenes are made from
    medium: NDArray[np.int64]  # position in MEDIA
    plain: NDArray[np.bool_]  # white on plain black, in the middle
    colour: NDArray[np.int64]  # position in COLOUR_NAMES
    background: NDArray[np.int64]  # position in COLOUR_NAMES, never equal to colour
    pattern: NDArray[np.int64]  # position in PATTERNS
    phase: NDArray[np.float32]
    scale: NDArray[np.float32]
    dx: NDArray[np.float32]  # pixels
    dy: NDArray[np.float32]  # pixels
    mirrored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.garment)

    def with_garments(self, garment: NDArray[np.int64]) -> Scenes:
        """The same scenes with other garments."""
        return replace(self, garment=garment)


def plan(seed: int, indices: NDArray[np.int64], garments: int, plain_share: float, photo_share: float = 0.61) -> Scenes:
    """Draw the scenes at `indices` of the corpus with this seed.

    Args:
        indices: int64 [N], positions in the (endless) corpus.
        garments: how many garments there are to choose from.
        plain_share: part of the scenes that look like the target data sets.
        photo_share: part of the scenes that are photos; the other media share the rest evenly.
    """
    u = uniforms(seed, indices, 12)
    plain = u[:, 0] < plain_share
    colours = len(imaging.COLOUR_NAMES)
    colour = (u[:, 1] * colours).astype(np.int64)
    background = (colour + 1 + (u[:, 2] * (colours - 1)).astype(np.int64)) % colours
    other = (u[:, 3] * (len(MEDIA) - 1)).astype(np.int64) + 1
    medium = np.where(u[:, 4] < photo_share, 0, other)
    # Sketches and negatives carry no colour words, so their scenes carry no colours.
    plain_colours = plain | (medium == MEDIA.index("sketch")) | (medium == MEDIA.index("negative"))
    colour = np.where(plain_colours, WHITE, colour)
    background = np.where(plain_colours, BLACK, background)
    pattern = np.where(plain_colours | (u[:, 5] < 0.4), 0, (u[:, 6] * 4).astype(np.int64))
    scale = np.where(plain, 1.0, 0.7 + 0.4 * u[:, 7])
    # A garment may touch the border of the scene but is hardly cut off.
    room = np.where(plain, 1.0, np.maximum(0.0, (imaging.SIZE - scale * imaging.GARMENT) / 2 + 1))
    dx, dy = (np.rint((2 * u[:, column] - 1) * room) for column in (8, 9))
    return Scenes(
        garment=(u[:, 10] * garments).astype(np.int64),
        medium=medium,
        plain=plain,
        colour=colour,
        background=background,
        pattern=pattern,
        phase=u[:, 5].astype(np.float32) * 7 % 1,
        scale=scale.astype(np.float32),
        dx=np.where(plain & (u[:, 8] < 0.7), 0, dx).astype(np.float32),
        dy=np.where(plain & (u[:, 8] < 0.7), 0, dy).astype(np.float32),
        mirrored=~plain & (u[:, 11] < 0.5),
    )


def compose(garments: NDArray[np.uint8], scenes: Scenes) -> NDArray[np.uint8]:
    """Draw scenes: garments uint8 [M, 28, 28] and N scenes -> uint8 [N, 32, 32, 3]."""
    grey = imaging.place(garments[scenes.garment], scenes.scale, scenes.dx, scenes.dy, scenes.mirrored)
    first = imaging.PALETTE[scenes.background]
    # The dark bands of a pattern keep 45 % of the light; black has light bands instead.
    second = np.where(first.max(axis=1, keepdims=True) < 1, 90.0, 0.45 * first).astype(np.float32)
    background = imaging.backdrop(scenes.pattern, first, second, scenes.phase)
    images = imaging.paint(grey, imaging.PALETTE[scenes.colour], background)
    for number, name in enumerate(MEDIA[1:], start=1):
        rows = np.flatnonzero(scenes.medium == number)
        if len(rows):
            images[rows] = apply_medium(name, images[rows])
    return imaging.to_uint8(images)


def apply_medium(name: str, rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn photos [N, 32, 32, 3] into another medium of `MEDIA`."""
    if name == "photo":
        return rgb
    if name == "sketch":
        return imaging.grey_to_rgb(imaging.sketch(rgb.mean(axis=-1)))
    if name == "low_resolution":
        return imaging.low_resolution(rgb)
    if name == "negative":
        return imaging.negative(rgb)
    raise ValueError(f"unknown medium {name!r}; choose from {', '.join(MEDIA)}")
