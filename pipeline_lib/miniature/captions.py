"""The web corpus, captions: what a careless author might write under a scene.

A caption is a medium ("a photo of", "a sketch of") and a body ("a red sneaker on a striped blue background").
Synonyms, missing attributes, and, for a part of the captions (`noise`), a wrong noun or none make it as unreliable
as text from the web is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.datasets.fashion_mnist import CLASS_NAMES
from pipeline_lib.miniature import imaging
from pipeline_lib.miniature.scenes import MEDIA, Scenes, uniforms

# Class name -> synonyms; the name itself is used for `NAME_SHARE` of the captions.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "t-shirt": ("tee", "top"),
    "trouser": ("trousers", "pants"),
    "pullover": ("sweater", "jumper"),
    "dress": ("gown", "frock"),
    "coat": ("jacket", "overcoat"),
    "sandal": ("slipper", "flip flop"),
    "shirt": ("blouse", "button up"),
    "sneaker": ("trainer", "running shoe"),
    "bag": ("handbag", "purse"),
    "ankle boot": ("boot", "bootie"),
}
NAME_SHARE = 0.6
# How class names (not their synonyms) are used loosely: class -> names given to it instead, with probabilities.
LOOSE_NAMES: dict[str, dict[str, float]] = {
    "t-shirt": {"shirt": 0.6, "dress": 0.1},
    "trouser": {"dress": 0.3},
    "pullover": {"coat": 0.5, "shirt": 0.15},
    "dress": {"coat": 0.3, "t-shirt": 0.2},
    "coat": {"pullover": 0.45, "shirt": 0.2},
    "sandal": {"sneaker": 0.5, "ankle boot": 0.15},
    "shirt": {"t-shirt": 0.4, "pullover": 0.25},
    "sneaker": {"ankle boot": 0.45, "sandal": 0.2},
    "bag": {"dress": 0.2, "ankle boot": 0.15},
    "ankle boot": {"sneaker": 0.5, "sandal": 0.1},
}
VAGUE = ("thing", "item", "piece of clothing", "product")
PLURALS = frozenset({"trousers", "pants"})

MEDIUM_PHRASES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of", "a picture of", "an image of", "a photograph of", ""),
    "sketch": ("a sketch of", "a drawing of", "a line drawing of", "a pencil sketch of"),
    "low_resolution": ("a low resolution photo of", "a blurry photo of", "a pixelated photo of", "a small photo of"),
    "negative": ("a negative of", "an inverted photo of", "a photo negative of"),
}
# Phrase for the medium's own background, used where the scene has no colours.
BARE_BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "sketch": ("on white paper", "on a white background", ""),
    "negative": ("on a white background", "on a plain white background", ""),
}
SEED_OFFSET = 1_000_003  # captions draw other numbers than scenes do


def with_article(noun: str) -> str:
    """'ankle boot' -> 'an ankle boot'; plurals stand alone."""
    if noun.rsplit(maxsplit=1)[-1] in PLURALS:
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _pick(choices: tuple[str, ...], u: float) -> str:
    return choices[int(u * len(choices))]


def loose_name(name: str, u: float) -> str:
    """The class name a careless author uses for a garment of class `name`."""
    for other, share in LOOSE_NAMES[name].items():
        if u < share:
            return other
        u -= share
    return name


def noun_for(label: int, noise: float, loose: bool, u: NDArray[np.float64]) -> str:
    """A noun for one garment; `u` are three uniform numbers."""
    if u[0] < noise / 2:
        return _pick(VAGUE, u[1])
    if u[0] < noise:
        label = (label + 1 + int(u[0] / noise * 2 % 1 * (len(CLASS_NAMES) - 1))) % len(CLASS_NAMES)
    name = CLASS_NAMES[label]
    if u[1] >= NAME_SHARE:
        return _pick(SYNONYMS[name], u[2])
    return loose_name(name, float(u[2])) if loose else name


def body(scenes: Scenes, row: int, noun: str, u: NDArray[np.float64]) -> tuple[str, list[str]]:
    """Body of one caption and the concept words in it (noun, garment's, background's); `u` are five uniform numbers."""
    medium = MEDIA[scenes.medium[row]]
    words: list[str] = []
    place, placed = "", []
    if u[0] < 0.25 and not scenes.plain[row] and (scenes.scale[row] < 0.8 or scenes.scale[row] > 1.0):
        words.append("small" if scenes.scale[row] < 0.8 else "large")
    if medium in BARE_BACKGROUNDS:
        place = _pick(BARE_BACKGROUNDS[medium], u[3])
        placed = [word for word in place.split() if word in ("plain", "white", "paper")]
    else:
        if u[1] < 0.8:
            words.append(imaging.COLOUR_NAMES[scenes.colour[row]])
        if u[2] < 0.8:
            colour = imaging.COLOUR_NAMES[scenes.background[row]]
            pattern = imaging.PATTERNS[scenes.pattern[row]]
            described = colour if pattern == "plain" and u[3] < 0.4 else f"{pattern} {colour}"
            full = f"on {with_article(described)} background"
            place = _pick((full, full, full, f"on {described}", f"in front of {described}"), u[4])
            placed = described.split()
    text = " ".join(filter(None, (with_article(" ".join([*words, noun])), place)))
    return text, [noun, *words, *placed]


def write(
    seed: int,
    indices: NDArray[np.int64],
    scenes: Scenes,
    labels: NDArray[np.int64],
    noise: float,
    loose: bool = False,
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Captions of N scenes, and for each its body with the concept words in it.

    Args:
        seed, indices: as given to `scenes.plan`.
        labels: int64 [M], class of each garment.
        noise: part of the captions with a wrong noun or none, half and half.
        loose: class names are also given to garments of similar classes (`LOOSE_NAMES`), synonyms are not.
    """
    u = uniforms(seed + SEED_OFFSET, indices, 9)
    captions, bodies = [], []
    for row in range(len(scenes)):
        noun = noun_for(int(labels[scenes.garment[row]]), noise, loose, u[row, :3])
        text, concepts = body(scenes, row, noun, u[row, 3:8])
        lead = _pick(MEDIUM_PHRASES[MEDIA[scenes.medium[row]]], u[row, 8])
        captions.append(f"{lead} {text}" if lead else text)
        bodies.append((text, concepts))
    return captions, bodies
