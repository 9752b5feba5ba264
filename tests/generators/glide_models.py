"""Tiny GLIDE models for tests of the machinery: as checkpoints of the original's layout, and as a pipeline folder.

Their weights are drawn, not stored: numpy's `RandomState` has a frozen stream, so they are the same numbers that the
reference values were computed with (`tests/data/glide_reference.py`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent.parent / "data"
TOKENIZER = DATA / "glide_tokenizer"
SEEDS = {"base": 101, "upsample": 202}  # of the tiny models' weights

Shapes = dict[str, tuple[int, ...]]


def original_shapes(size: str, model: str) -> Shapes:
    """Names and shapes of the original's parameters: `size` is tiny or full, `model` base or upsample."""
    found = json.loads((DATA / "glide_parameters.json").read_text())[size][model]
    return {name: tuple(shape) for name, shape in found.items()}


def draw_parameters(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Any]:
    """Weights of unit gain, uniform; gains of norms near 1, biases near 0. Drawn in the order of the names."""
    import torch

    numbers = np.random.RandomState(seed)
    drawn = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        values = numbers.random_sample(shape) * 2 - 1
        if name.endswith("embedding.weight") or name.endswith("al_embedding") or name == "padding_embedding":
            pass
        elif len(shape) > 1:
            values *= np.sqrt(3 / np.prod(shape[1:]))
        else:
            values = 0.2 * values + (1.0 if name.endswith("weight") else 0.0)
        drawn[name] = torch.from_numpy(values.astype(np.float32))
    return drawn


def draw_noise(seed: int) -> Any:
    """A source of standard normal noise: shape -> float32 tensor, new with every call."""
    import torch

    numbers = np.random.RandomState(seed)
    return lambda shape: torch.from_numpy(numbers.standard_normal(tuple(shape)).astype(np.float32))


def signal_of(step: int) -> float:
    """What is left of an image's variance at a training time step: the cosine schedule (Nichol & Dhariwal, 2021)."""
    return math.cos(((step + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2


def tiny_glide_checkpoints(folder: Path) -> tuple[Path, Path]:
    """Write base.pt and upsample.pt, state dicts as OpenAI's, of 16 x 16 and 32 x 32 pixels; returns their paths.

    `TOKENIZER` is the tokenizer that goes with them.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for model, seed in SEEDS.items():
        paths.append(folder / f"{model}.pt")
        torch.save(draw_parameters(original_shapes("tiny", model), seed), paths[-1])
    return paths[0], paths[1]


def tiny_glide(folder: Path) -> Path:
    """Write the `GlidePipeline` of those checkpoints to `folder`, which must not be there yet; returns it."""
    from tempfile import TemporaryDirectory

    from pipeline_lib.generators.glide.convert import convert

    with TemporaryDirectory() as checkpoints:
        base, upsample = tiny_glide_checkpoints(Path(checkpoints))
        convert(base, upsample, folder, str(TOKENIZER), None)
    return folder
