"""Models: files that are damaged, of another architecture, or hold code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_models import (
    CLIP_FILE,
    DAMAGES,
    UNET_FILE,
    array_with_code,
    checkpoint,
    damaged,
    disguised,
    encoder,
    generator,
    index,
    pickled,
    plain_pickle,
    sentences,
    weights_with_code,
    with_code,
)
from cases import LONG, Case, Workplace, check
from pictures import PICTURE

from pipeline_lib import stages
from pipeline_lib.errors import UserError
from pipeline_lib.plan import Plan
from pipeline_lib.readiness import require_ready


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


def draw(place: Workplace, template: str, **changes: Any) -> Plan:
    """Images of basic prompts are drawn."""
    changes |= {"models": place.models, "own_datasets__shapes__template": template, "prompts__strategy": "basic"}
    plan = place.plan(**changes, images__steps=1, images__per_class=1, tables__table2_datasets=["shapes"])
    for name in ("prompts", "images"):
        for job in plan.stage(name):
            if job.members[0].spec.get("strategy", "basic") == "basic" and "basic" in job.members[0].path:
                stages.STAGES[name](job, plan.store)
    return plan


def cut_behind(place: Workplace) -> None:
    """What is cut says nothing of the class: the images are drawn, and their records count them."""
    plan = draw(place, "a {} with many words behind it that nobody reads, and more of them still")
    shards = [shard for job in plan.images("shapes", "basic") for shard in job.members]
    assert [plan.store.record(shard).details["n_cut_prompts"] for shard in shards] == [1, 1, 1]


def start(place: Workplace, template: str = "a {}", **changes: Any) -> None:
    """A run of everything starts; torch is not imported for it (see `test_bad_commands`)."""
    changes |= {"models": place.models, "own_datasets__shapes__template": template, "prompts__strategy": "basic"}
    plan = place.plan(**changes)
    require_ready(plan, plan.jobs.values())


def torch_save(value: Any, path: Path) -> None:
    import torch

    torch.save(value, path)


def both(*edits: Callable[[Path, Workplace], None]) -> Callable[[Path, Workplace], None]:
    def edit(folder: Path, place: Workplace) -> None:
        for each in edits:
            each(folder, place)

    return edit


def in_shards(names: Any) -> Callable[[Path, Workplace], None]:
    """The weights' place is taken by an index of shards."""

    def edit(folder: Path, place: Workplace) -> None:
        (folder / UNET_FILE).rename(place.folder / "elsewhere.safetensors")
        (folder / f"{UNET_FILE}.index.json").write_text(json.dumps({"weight_map": names}))

    return edit


CHECKPOINTS = {
    **{f"encoder: {name}": encoder(damaged(CLIP_FILE, damage)) for name, damage in DAMAGES.items()},
    "encoder: a pickle with code": encoder(pickled("open_clip_pytorch_model.bin", CLIP_FILE), "could run code"),
    "encoder: a pickle named safetensors": encoder(disguised, "get this one again"),
    "encoder: configuration that is no JSON": encoder(damaged("open_clip_config.json", lambda _: b"{"), "config"),
    "encoder: configuration of another form": encoder(damaged("open_clip_config.json", lambda _: b"[]"), "model_cfg"),
    "encoder: a tokenizer of its own": encoder(
        with_code("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil"),
        "auto_map",
        "not run",
    ),
    "encoder: a tokenizer that is allowed to run code": encoder(
        both(
            with_code("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil"),
            with_code(
                "open_clip_config.json",
                model_cfg={"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}},
            ),
        ),
        "trust_remote_code",
        "not run",
    ),
    "encoder: tokenizer that is no JSON": encoder(damaged("tokenizer.json", lambda _: b"{")),
    "encoder: tokenizer of another model": encoder(
        damaged("open_clip_config.json", lambda content: content.replace(b'"vocab_size": ', b'"vocab_size": 9')),
        "another architecture",
    ),
    "encoder: image of a milliard pixels": encoder(
        damaged("open_clip_config.json", lambda content: content.replace(b'"image_size": 32', b'"image_size": 1e9')),
    ),
    "encoder: file with code beside weights": checkpoint(weights_with_code, "could run code", "not read"),
    "encoder: pickle": checkpoint(plain_pickle, "could run code", "not read"),
    "encoder: pickle named .ckpt": checkpoint(plain_pickle, "could run code", name="bad.ckpt"),
    "encoder: pickle of joblib's": checkpoint(plain_pickle, "could run code", name="bad.joblib"),
    "encoder: pickle named .safetensors": checkpoint(plain_pickle, "get this one again", name="bad.safetensors"),
    "encoder: array of objects": checkpoint(array_with_code, name="bad.npy"),
    "encoder: 0 bytes in a file": checkpoint(lambda path, _: path.write_bytes(b"")),
    "encoder: picture for a checkpoint": checkpoint(lambda path, _: PICTURE.save(path), name="bad.png"),
    "encoder: weights of nothing": checkpoint(lambda path, _: torch_save({}, path), "holds no weights"),
    "encoder: list for weights": checkpoint(lambda path, _: torch_save([1, 2], path)),
    **{f"sentences: {name}": sentences(damaged("model.safetensors", damage)) for name, damage in DAMAGES.items()},
    "sentences: a pickle with code": sentences(pickled("pytorch_model.bin", "model.safetensors"), "could run code"),
    "sentences: a model of its own": sentences(
        with_code("config.json", auto_map={"AutoModelForSeq2SeqLM": "evil.Evil"}, model_type="evil"),
        "auto_map",
        "not run",
    ),
    "sentences: a tokenizer of its own": sentences(
        with_code("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil"),
        "auto_map",
        "not run",
    ),
    "sentences: configuration that is no JSON": sentences(damaged("config.json", lambda _: b"\xff{")),
    "sentences: unknown kind of model": sentences(with_code("config.json", model_type="evil"), "evil"),
    "sentences: tokenizer that is no JSON": sentences(damaged("tokenizer.json", lambda _: b"{")),
    "generator: a text encoder of its own": generator(
        with_code("text_encoder/config.json", auto_map={"AutoModel": "evil.Evil"}), "auto_map", "not run"
    ),
    "generator: a tokenizer of its own": generator(
        with_code("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}), "auto_map"
    ),
    "generator: tokenizer that is no JSON": generator(damaged("tokenizer/tokenizer.json", lambda _: b"{")),
    "generator: scheduler that is no JSON": generator(damaged("scheduler/scheduler_config.json", lambda _: b"{")),
    "generator: a pipeline of its own": generator(
        with_code("model_index.json", _class_name="Evil", custom_pipeline="evil.py"), "it is a Evil"
    ),
    "generator: shards that lie elsewhere": generator(
        in_shards({"x": "../../../elsewhere.safetensors"}), "elsewhere.safetensors", "not allowed"
    ),
    "generator: shards that are no names": generator(in_shards({"x": 7}), "unet"),
    "generator: shards in another form": generator(in_shards([1]), "unet"),
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
    "prompt: too long for the encoder, at the start": Case(
        lambda place: start(place, "a {}, " + "of many words " * 9),
        ("nothing was run", "models.encoders", "reads 20 tokens", "3 class prompts", "'a red/square, of", "shorten"),
    ),
    "prompt: cut before the class name, at the start": Case(
        lambda place: start(place, "of many words " * 9 + "{}"),
        ("models.generator", "which loses the class name 'red/square'", "shorten the class name"),
    ),
    "prompt: short enough, at the start": Case(start),
    "prompt: cut before the class name": Case(
        lambda place: draw(place, "with many words before it comes to what it is about, a {}"),
        ("models.generator", "which loses the class name 'red/square'", "shorten the class name"),
    ),
    "prompt: cut behind the class name": Case(cut_behind),
    "prompt: negative one that is cut": Case(
        lambda place: draw(place, "a {}", images__negative_prompt="no words " * 50),
        ("images.negative_prompt", "no words", "shorten it"),
    ),
    "prompt: 10,000 characters for the generator": Case(long_generator_prompt),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoint(place: Workplace, name: str):
    """The model is refused before it draws or encodes anything, and no code of it runs."""
    check(CHECKPOINTS[name], place)
