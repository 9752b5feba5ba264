"""A tiny CLIP of OpenAI's layout whose text tower has drawn weights: the same numbers that the reference values of
`tests/data/coop_reference.py` were computed with."""

import math
from pathlib import Path
from typing import Any

from glide_models import DATA, draw_parameters
from tiny_clip import VIT, build, write_folder

REFERENCE = DATA / "coop_reference.npz"
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG = {**VIT, "text_cfg": TEXT, "quick_gelu": True}


def text_weights() -> dict[str, Any]:
    """Names and values of the text tower's parameters, float32; the same in OpenAI's code and in open_clip."""
    width, layers, dimension = TEXT["width"], TEXT["layers"], CONFIG["embed_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (TEXT["context_length"], width),
        "text_projection": (width, dimension),
        "token_embedding.weight": (TEXT["vocab_size"], width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for layer in range(layers):
        for name, size in (
            ("attn.in_proj", (3 * width, width)),
            ("attn.out_proj", (width, width)),
            ("ln_1", (width,)),
            ("ln_2", (width,)),
            ("mlp.c_fc", (4 * width, width)),
            ("mlp.c_proj", (width, 4 * width)),
        ):
            separator = "_" if name == "attn.in_proj" else "."
            shapes[f"transformer.resblocks.{layer}.{name}{separator}weight"] = size
            shapes[f"transformer.resblocks.{layer}.{name}{separator}bias"] = size[:1]
    drawn = draw_parameters(shapes, seed=303)
    drawn["logit_scale"] = drawn["ln_final.bias"].new_tensor(math.log(100))
    return drawn


def write_clip(folder: Path) -> str:
    """Write the model in open_clip's format; returns its name in a configuration."""
    model = build(CONFIG)
    missing, unexpected = model.load_state_dict(text_weights(), strict=False)
    assert not unexpected
    assert all(name.startswith("visual.") for name in missing)
    return write_folder(model, CONFIG, folder)
