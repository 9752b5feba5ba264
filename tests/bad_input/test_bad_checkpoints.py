"""Models: files that are damaged, of another architecture, or hold code."""

import json

import numpy as np
import pytest
from bad_models import CLIP_FILE, DAMAGES, UNET_FILE, damaged, disguised, encoder, generator, index, pickled
from cases import LONG, Case, Workplace, check

from pipeline_lib.errors import UserError


def long_prompt(place: Workplace) -> None:
    pytest.importorskip("open_clip")
    from pipeline_lib.encoders import Encoder

    encoder = Encoder(place.models["encoders"][0]["model"], None, 8, device="cpu")
    assert len(encoder.text(["a photo of a cat"])) == 1
    encoder.text(["a photo of a cat", "a photo of a " + "x" * LONG])


def longest_whole_prompt(place: Workplace) -> None:
    """The longest prompt that fits is taken as it is; one token more is refused."""
    pytest.importorskip("open_clip")
    from pipeline_lib.clip_models import load_clip

    _, _, tokenizer = load_clip(place.models["encoders"][0]["model"], None, None)
    words = len(tokenizer(["x"])[0]) - 2  # beside start and end
    assert (tokenizer(["x " * words])[0] != 0).sum() >= words
    with pytest.raises(UserError, match="would be cut"):
        tokenizer(["x " * (words + 1)])


def long_generator_prompt(place: Workplace) -> None:
    pytest.importorskip("diffusers")
    from pipeline_lib.generators import load_generator

    settings = {"steps": 1, "guidance_scale": 2.0, "negative_prompt": "", "scheduler": None, "height": None}
    settings |= {"width": None, "dtype": "float32"}
    drawn = load_generator(place.models["generator"], None, settings, device="cpu", compile=False).generate(
        ["x " * (LONG // 2)], [0]
    )
    assert drawn.shape[0] == 1 and np.isfinite(drawn).all()


CHECKPOINTS = {
    **{f"encoder: {name}": encoder(damaged(CLIP_FILE, damage)) for name, damage in DAMAGES.items()},
    "encoder: a pickle with code": encoder(pickled("open_clip_pytorch_model.bin", CLIP_FILE), "could run code"),
    "encoder: a pickle named safetensors": encoder(disguised, "get this one again"),
    "encoder: configuration that is no JSON": encoder(damaged("open_clip_config.json", lambda _: b"{"), "config"),
    "encoder: configuration of another form": encoder(damaged("open_clip_config.json", lambda _: b"[]"), "model_cfg"),
    **{f"generator: {name}": generator(damaged(UNET_FILE, damage), "unet") for name, damage in DAMAGES.items()},
    "generator: a pickle with code": generator(
        pickled("unet/diffusion_pytorch_model.bin", UNET_FILE), "can run code", "is refused", "convert it"
    ),
    "generator: a module of its own": generator(index(unet=["evil", "Evil"]), "unet", "'evil'", "not imported"),
    "generator: a module of Python's": generator(index(unet=["os", "system"]), "unet", "'os'", "not imported"),
    "generator: no such class": generator(index(unet=["diffusers", "Nope"]), "unet", "Nope"),
    "generator: class by a file": generator(index(_class_name=["evil.py", "Evil"]), "names no pipeline class"),
    "generator: pipeline of another kind": generator(index(_class_name="AudioLDMPipeline"), "AudioLDMPipeline"),
    "generator: index that is no JSON": generator(damaged("model_index.json", lambda _: b"\xff{"), "not JSON"),
    "generator: index of brackets": generator(damaged("model_index.json", lambda _: b"[" * 10**5), "not JSON"),
    "generator: configuration that is no JSON": generator(damaged("unet/config.json", lambda _: b"{"), "unet"),
    "generator: impossible configuration": generator(
        damaged("unet/config.json", lambda content: json.dumps(json.loads(content) | {"norm_num_groups": 0}).encode()),
        "unet",
    ),
    "prompt: 10,000 characters for the encoder": Case(
        long_prompt, ("models.encoders", "the prompt 'a photo of a xxx", "would be cut", "shorten the class name")
    ),
    "prompt: as long as the encoder reads": Case(longest_whole_prompt),
    "prompt: 10,000 characters for the generator": Case(long_generator_prompt),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoint(place: Workplace, name: str):
    """The model is refused before it draws or encodes anything, and no code of it runs."""
    check(CHECKPOINTS[name], place)
