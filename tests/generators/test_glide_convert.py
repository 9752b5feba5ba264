"""From OpenAI's checkpoint files to a pipeline folder: what is accepted, and what is refused, by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from glide_models import SEEDS, TOKENIZER, draw_parameters, original_shapes, tiny_glide_checkpoints

from pipeline_lib.errors import UserError

pytest.importorskip("diffusers")


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    """Paths of base.pt and upsample.pt."""
    return tiny_glide_checkpoints(tmp_path / "checkpoints")


def run(base: Path, upsample: Path, out: Path, tokenizer: str = str(TOKENIZER), revision: str | None = None) -> None:
    from pipeline_lib.generators.glide.convert import convert

    convert(base, upsample, out, tokenizer, revision)


def test_the_folder(checkpoints: tuple[Path, Path], tmp_path: Path):
    """A diffusers folder with safetensors only, readable by all, no temporary left; the same bytes every time."""
    out = tmp_path / "models" / "glide"
    run(*checkpoints, out)
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == "GlidePipeline"
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)
    assert list(out.parent.iterdir()) == [out]
    run(*checkpoints, tmp_path / "again")
    assert all((tmp_path / "again" / path.relative_to(out)).read_bytes() == path.read_bytes() for path in files)


def test_half_precision_checkpoints_are_taken(checkpoints: tuple[Path, Path], tmp_path: Path):
    """They become float32, the values as they are."""
    import torch
    from safetensors.torch import load_file

    half = {name: value.half() for name, value in torch.load(checkpoints[0]).items()}
    torch.save(half, checkpoints[0])
    run(*checkpoints, tmp_path / "glide")
    written = load_file(tmp_path / "glide" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}
    assert torch.equal(written["conv_in.weight"].half(), half["input_blocks.0.0.weight"])


def test_an_existing_folder_is_left_alone(checkpoints: tuple[Path, Path], tmp_path: Path):
    """Nothing is overwritten, not even an empty folder."""
    (tmp_path / "glide").mkdir()
    with pytest.raises(UserError, match="glide exists already"):
        run(*checkpoints, tmp_path / "glide")
    assert list((tmp_path / "glide").iterdir()) == []


def edited(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    import torch

    parameters = torch.load(path)
    edit(parameters)
    torch.save(parameters, path)


def misshape(name: str, *shape: int) -> Callable[[dict[str, Any]], Any]:
    return lambda parameters: parameters.update({name: parameters[name].new_zeros(shape)})


FAULTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda p: p.pop("out.2.bias"), r"missing: 'out\.2\.bias'$"),
    (
        lambda p: p.pop("input_blocks.4.0.skip_connection.bias"),
        r"missing: 'input_blocks\.4\.0\.skip_connection\.bias'$",
    ),
    (lambda p: p.update(renamed=p.pop("time_embed.0.bias")), r"missing: 'time_embed\.0\.bias'\n  unknown: 'renamed'$"),
    (lambda p: p.update(extra=p["out.2.bias"]), "unknown: 'extra'$"),
    (misshape("out.2.bias", 3), r"of another shape: 'out\.2\.bias' \(\[3\], expected \[6\]\)"),
    (misshape("padding_embedding", 32, 64), r"'padding_embedding' \(\[32, 64\], expected \[32, 128\]\)"),
    (misshape("middle_block.1.qkv.weight", 384, 128), r"qkv\.weight' \(\[384, 128\], expected \[384, 128, 1\]\)"),
    (lambda p: p.pop("token_embedding.weight"), "no parameter 'token_embedding.weight'"),
    (lambda p: [p.pop(name) for name in list(p) if name.startswith("output_blocks")], "no parameter 'output_blocks.0"),
    (
        lambda p: [p.pop(name) for name in list(p) if name.startswith("output_blocks.5")],
        "do not share out among 2 levels",
    ),
    (misshape("positional_embedding", 32), r"'positional_embedding' has shape \[32\]"),
    (misshape("token_embedding.weight", 287, 100), "text transformer attends with 100 channels.* multiple of 64"),
    (misshape("output_blocks.0.0.out_layers.3.weight", 96, 96, 3, 3), "UNet attends with 96 channels"),
    (lambda p: [p.pop(name) for name in list(p) if ".attn." in name], r"missing: .* and 5 more"),
]


@pytest.mark.parametrize(("edit", "message"), FAULTS)
def test_wrong_parameters_are_named(
    edit: Callable[[dict[str, Any]], Any], message: str, checkpoints: tuple[Path, Path], tmp_path: Path
):
    """Missing, unknown or of another shape: an error that names the file and the parameter, and nothing is written."""
    edited(checkpoints[0], edit)
    with pytest.raises(UserError, match=message) as error:
        run(*checkpoints, tmp_path / "glide")
    assert str(checkpoints[0]) in str(error.value)
    assert not (tmp_path / "glide").exists()


def test_the_upsampler_is_checked_too(checkpoints: tuple[Path, Path], tmp_path: Path):
    """By the same rules."""
    edited(checkpoints[1], lambda parameters: parameters.pop("final_ln.weight"))
    with pytest.raises(UserError, match=r"upsample\.pt.*\n.*missing: 'final_ln\.weight'"):
        run(*checkpoints, tmp_path / "glide")


def test_models_in_the_wrong_place(checkpoints: tuple[Path, Path], tmp_path: Path):
    """Swapped files, and the inpainting model, are recognised."""
    with pytest.raises(UserError, match=r"upsample\.pt is an upsampler .*not a base model"):
        run(*checkpoints[::-1], tmp_path / "glide")
    with pytest.raises(UserError, match=r"base\.pt is a base model .*not an upsampler"):
        run(checkpoints[0], checkpoints[0], tmp_path / "glide")
    shapes = original_shapes("tiny", "base") | {"input_blocks.0.0.weight": (32, 7, 3, 3)}
    edited(checkpoints[0], lambda parameters: parameters.update(draw_parameters(shapes, SEEDS["base"])))
    with pytest.raises(UserError, match=r"another model \(it takes 7 channels\)"):
        run(*checkpoints, tmp_path / "glide")


class Intruder:
    """Unpickling it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused(checkpoints: tuple[Path, Path], tmp_path: Path):
    """And its code is not run."""
    edited(checkpoints[0], lambda parameters: parameters.update(more=Intruder(tmp_path / "was here")))
    assert not (tmp_path / "was here").exists()
    with pytest.raises(UserError, match=r"base\.pt is refused.*could run code"):
        run(*checkpoints, tmp_path / "glide")
    assert not (tmp_path / "was here").exists()


def test_files_that_are_no_checkpoints(checkpoints: tuple[Path, Path], tmp_path: Path):
    """Missing, a folder, tensors without names, or cut off."""
    import torch

    with pytest.raises(UserError, match=r"nowhere\.pt does not exist"):
        run(tmp_path / "nowhere.pt", checkpoints[1], tmp_path / "glide")
    with pytest.raises(UserError, match="cannot be read"):
        run(tmp_path, checkpoints[1], tmp_path / "glide")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"list\.pt holds no mapping"):
        run(tmp_path / "list.pt", checkpoints[1], tmp_path / "glide")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pt")
    with pytest.raises(UserError, match=r"numbers\.pt holds no mapping"):
        run(tmp_path / "numbers.pt", checkpoints[1], tmp_path / "glide")
    checkpoints[0].write_bytes(checkpoints[0].read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"base\.pt cannot be read as a checkpoint"):
        run(*checkpoints, tmp_path / "glide")


def test_an_interrupted_write_leaves_nothing(
    checkpoints: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No folder, no temporary."""
    from pipeline_lib.generators.glide.pipeline import GlidePipeline

    def full(self: Any, folder: Path) -> None:
        (folder / "model_index.json").write_text("{}")
        raise OSError("No space left on device")

    monkeypatch.setattr(GlidePipeline, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        run(*checkpoints, tmp_path / "models" / "glide")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_tokenizer_of_another_size(checkpoints: tuple[Path, Path], tmp_path: Path):
    """Token numbers would mean something else, or nothing."""
    other = tmp_path / "tokenizer"
    other.mkdir()
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text())
    vocabulary["another"] = len(vocabulary)
    (other / "vocab.json").write_text(json.dumps(vocabulary))
    (other / "merges.txt").write_bytes((TOKENIZER / "merges.txt").read_bytes())
    with pytest.raises(UserError, match=r"has 288 tokens, but .* 287;"):
        run(*checkpoints, tmp_path / "glide", str(other))


def test_tokenizer_folders(checkpoints: tuple[Path, Path], tmp_path: Path):
    """Both files must be there and make sense."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no vocab\.json and no merges\.txt"):
        run(*checkpoints, tmp_path / "glide", str(tmp_path / "empty"))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "empty" / name).write_text("{")
    with pytest.raises(UserError, match=r"--tokenizer: .* cannot be loaded: .*name a folder"):
        run(*checkpoints, tmp_path / "glide", str(tmp_path / "empty"))


def test_tokenizers_of_the_hub_are_pinned(monkeypatch: pytest.MonkeyPatch):
    """GPT-2's by default; of any other the commit is asked for."""
    from pipeline_lib.generators.glide import tokens

    asked = []

    def cached(repository: str, revision: str, weights: list[str], *, key: str) -> Path:
        asked.append((repository, revision))
        return TOKENIZER

    monkeypatch.setattr(tokens, "hub_folder", cached)
    assert len(tokens.load_tokenizer("openai-community/gpt2", None)) == 287
    tokens.load_tokenizer("someone/tokenizer", "a" * 40)
    commit = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    assert asked == [("openai-community/gpt2", commit), ("someone/tokenizer", "a" * 40)]
    for revision in (None, "main", "a" * 39):
        with pytest.raises(UserError, match="must pin it to a commit"):
            tokens.load_tokenizer("someone/tokenizer", revision)
