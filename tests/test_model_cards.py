"""Model cards vouch for the weights beside them: damaged ones are named and refused, for no run can make them again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_project import changed, configured
from typer.testing import CliRunner
from workflow_project import Project

from pipeline_lib import model_cards
from pipeline_lib.cli import app
from pipeline_lib.errors import UserError
from pipeline_lib.maintenance import studies
from pipeline_lib.model_cards import require_intact, shipped_faults, weights_faults

FILES = ("clip/open_clip_model.safetensors", "text_to_image/unet/diffusion_pytorch_model.safetensors")
Params = dict[str, Any]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the shipped weights."""
    return Path(shutil.copytree(model_cards.SHIPPED, tmp_path / "weights"))


@pytest.fixture
def with_weights(params: Params, weights: Path) -> Params:
    """A project with these models."""
    models = {
        "generator": str(weights / "text_to_image"),
        "encoders": [{"name": "clip", "model": f"local-dir:{weights / 'clip'}"}],
        "sentences": str(weights / "word_to_sentence"),
    }
    return changed(params, models=models)


def test_shipped_weights_are_those_of_their_cards(with_weights: Params):
    """All three models have cards that name weights, and nothing is wrong with them."""
    assert shipped_faults() == []
    named = [
        model_cards._ROW.findall((folder / "README.md").read_text()) for folder in sorted(model_cards.SHIPPED.iterdir())
    ]
    assert len(named) == 3
    assert all(named)
    require_intact(configured(with_weights).models)


def test_a_folder_without_a_card_has_no_faults(params: Params, tmp_path: Path):
    """Nothing is known of other people's models; their digests are in the keys."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    assert list(weights_faults(tmp_path / "model")) == []
    (tmp_path / "model" / "README.md").write_text(
        "# A model\n\n| file | size |\n|---|---|\n| model.safetensors | 7 |\n"
    )
    assert list(weights_faults(tmp_path / "model")) == []
    require_intact(configured(params).models)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_weights_are_named_and_refused(with_weights: Params, weights: Path, name: str, damage: str):
    """By a run, which would make all again from another model, and by gc, to which all would seem of no use."""
    DAMAGES[damage](weights / name)
    key = "models.encoders.clip" if name.startswith("clip") else "models.generator"
    config = configured(with_weights)
    with pytest.raises(UserError, match=rf"(?s){key}: (damaged|missing): {weights / name}.*git checkout"):
        require_intact(config.models)
    with pytest.raises(UserError, match=name):
        studies(config, [])


def test_a_run_with_damaged_weights_does_not_start(with_weights: Params, weights: Path, tmp_path: Path):
    """Before the first job, without a traceback."""
    pytest.importorskip("snakemake")
    flip(weights / FILES[1])
    project = Project(tmp_path / "work", with_weights)
    project.folder.mkdir()
    done = project.snakemake("results/table1.csv", params=changed(with_weights, store="store"))
    assert done.returncode == 1
    assert f"models.generator: damaged: {weights / FILES[1]}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.folder / "store").exists()


def test_verify_names_damaged_weights(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are not among what --remove removes."""
    monkeypatch.setattr(model_cards, "SHIPPED", weights)
    (tmp_path / "store").mkdir()
    arguments = ["verify", "--store", str(tmp_path / "store"), "--results", str(tmp_path / "results")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    flip(weights / FILES[0])
    for more in ([], ["--remove"]):
        done = CliRunner().invoke(app, [*arguments, *more])
        assert done.exit_code == 1
        assert f"damaged: {weights / FILES[0]}" in done.stdout
        assert "git checkout" in done.stdout
    assert (weights / FILES[0]).exists()
