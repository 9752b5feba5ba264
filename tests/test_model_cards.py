"""Model cards vouch for the files beside them: damaged ones are named and refused, for no run can make them again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_project import changed, configured
from typer.testing import CliRunner
from workflow_project import Project

from pipeline_lib import shipped
from pipeline_lib.cli import app
from pipeline_lib.errors import UserError
from pipeline_lib.maintenance import studies
from pipeline_lib.model_cards import CARD, model_faults, require_intact, shipped_faults

WEIGHTS = shipped.PACKAGE / "miniature" / "weights"
FILES = sorted(
    path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*") if path.is_file() and path.name != CARD
)
KEYS = {
    "clip": "models.encoders.clip",
    "text_to_image": "models.generator",
    "word_to_sentence": "models.sentences",
}
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
    """A copy of the shipped models."""
    return Path(shutil.copytree(WEIGHTS, tmp_path / "weights"))


@pytest.fixture
def with_weights(params: Params, weights: Path) -> Params:
    """A project with these models."""
    models = {
        "generator": str(weights / "text_to_image"),
        "encoders": [{"name": "clip", "model": f"local-dir:{weights / 'clip'}"}],
        "sentences": str(weights / "word_to_sentence"),
    }
    return changed(params, models=models)


def test_shipped_models_are_those_of_their_cards(with_weights: Params):
    """Each card names every file beside it, and nothing is wrong with any."""
    assert shipped_faults() == []
    assert len(FILES) == 20
    for name in FILES:
        folder, _, file = name.partition("/")
        assert f"| {file} | `" in (WEIGHTS / folder / CARD).read_text()
    require_intact(configured(with_weights).models)


def test_a_folder_without_a_card_has_no_faults(params: Params, tmp_path: Path):
    """Nothing is known of other people's models; their digests are in the keys."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    assert list(model_faults(tmp_path / "model")) == []
    (tmp_path / "model" / CARD).write_text("# A model\n\n| file | size |\n|---|---|\n| model.safetensors | 7 |\n")
    assert list(model_faults(tmp_path / "model")) == []
    require_intact(configured(params).models)


@pytest.mark.parametrize("name", ["clip/vocab.json", "text_to_image/unet/model.bin"])
def test_a_file_more_is_part_of_the_model_and_refused(with_weights: Params, weights: Path, name: str):
    """What a model's digest counts; notes and pictures are nobody's business."""
    (weights / "clip" / "notes.png").write_bytes(b"mine")
    require_intact(configured(with_weights).models)
    (weights / name).write_bytes(b"{}")
    with pytest.raises(UserError, match=rf"unknown: {weights / name}, which .*{CARD} does not name"):
        require_intact(configured(with_weights).models)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_refused(with_weights: Params, weights: Path, name: str, damage: str):
    """By a run, which would make all again from another model, and by gc, to which all would seem of no use."""
    DAMAGES[damage](weights / name)
    key = KEYS[name.partition("/")[0]]
    config = configured(with_weights)
    with pytest.raises(UserError, match=rf"(?s){key}: (damaged|missing): {weights / name}.*git checkout"):
        require_intact(config.models)
    with pytest.raises(UserError, match=name):
        studies(config, [])


def test_a_run_with_a_damaged_model_does_not_start(with_weights: Params, weights: Path, tmp_path: Path):
    """Before the first job, without a traceback. Without its tokenizer, a model would go on in silence."""
    pytest.importorskip("snakemake")
    lost = weights / "text_to_image" / "tokenizer" / "tokenizer.json"
    lost.unlink()
    project = Project(tmp_path / "work", with_weights)
    project.folder.mkdir()
    done = project.snakemake("results/table1.csv", params=changed(with_weights, store="store"))
    assert done.returncode == 1
    assert f"models.generator: missing: {lost}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.folder / "store").exists()


def test_verify_names_damaged_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are not among what --remove removes."""
    package = Path(
        shutil.copytree(shipped.PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("*.py", "__py*"))
    )
    monkeypatch.setattr(shipped, "PACKAGE", package)
    (tmp_path / "store").mkdir()
    arguments = ["verify", "--store", str(tmp_path / "store"), "--results", str(tmp_path / "results")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    damaged = package / "miniature" / "weights" / FILES[0]
    flip(damaged)
    for more in ([], ["--remove"]):
        done = CliRunner().invoke(app, [*arguments, *more])
        assert done.exit_code == 1
        assert f"damaged: {damaged}" in done.stdout
        assert "git checkout" in done.stdout
    assert damaged.exists()
