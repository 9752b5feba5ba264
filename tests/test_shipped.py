"""Data that comes with the package is checked when it is read: class names, definitions, cards, the paper's numbers."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_project import REPOSITORY, changed, configured

from pipeline_lib import shipped
from pipeline_lib.config import read_config
from pipeline_lib.datasets.registry import builtin_datasets
from pipeline_lib.errors import UserError
from pipeline_lib.model_cards import CARD, require_intact, shipped_faults
from pipeline_lib.tables import paper_values

LISTED = shipped.names("*")
SUMS = "SHA256SUMS"
WEIGHTS = shipped.PACKAGE / "miniature" / "weights"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package's data, which is read in its place."""
    ignored = shutil.ignore_patterns("*.py", "__pycache__", "*.safetensors")
    copy = Path(shutil.copytree(shipped.PACKAGE, tmp_path / "package", ignore=ignored))
    monkeypatch.setattr(shipped, "PACKAGE", copy)
    caches = (builtin_datasets, paper_values)
    for cache in caches:
        cache.cache_clear()
    yield copy
    for cache in caches:
        cache.cache_clear()


def test_every_data_file_is_listed_or_named_by_a_card():
    """So that a new one is checked, too."""
    data = {path for path in shipped.PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    by_card = {path for path in data if path.is_relative_to(WEIGHTS) and path.name != CARD}
    assert data - by_card == {shipped.PACKAGE / name for name in [*LISTED, SUMS]}
    assert shipped_faults() == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_not_read(package: Path, damage: str):
    """Each of them, with what to do."""
    for name in LISTED:
        content = (package / name).read_bytes()
        DAMAGES[damage](package / name)
        word = "missing" if damage == "deleted" else "damaged"
        assert [fault.partition(" does not")[0] for fault in shipped.faults()] == [f"{word}: {package / name}"]
        with pytest.raises(UserError, match=rf"{word}: {package / name}.*git checkout"):
            shipped.read_text(name)
        (package / name).write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_is_named(package: Path, damage: str):
    """Whatever is damaged in it: nothing is read that it does not vouch for."""
    path = package / SUMS
    {**DAMAGES, "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100])}[damage](path)
    assert any(str(path) in fault for fault in shipped.faults())
    with pytest.raises(UserError, match=SUMS):
        for name in LISTED:
            shipped.read_text(name)


@pytest.mark.parametrize("name", ["datasets/definitions/objects.yaml", "datasets/class_names/pets.txt"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_configuration_is_not_read_with_damaged_data(package: Path, name: str, damage: str):
    """One letter of a class name is another prompt, and other images; a lost definition, a data set fewer."""
    DAMAGES[damage](package / name)
    with pytest.raises(UserError, match=name):
        read_config(REPOSITORY / "params.yaml")


def test_the_papers_numbers_are_not_read_from_a_damaged_file(package: Path):
    flip(package / "paper_tables.csv")
    with pytest.raises(UserError, match=r"paper_tables\.csv"):
        paper_values()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_card_is_refused_with_its_model(package: Path, params: dict[str, Any], damage: str):
    """It would vouch for nothing, or for another file."""
    model = package / "miniature" / "weights" / "word_to_sentence"
    shutil.copy(WEIGHTS / "word_to_sentence" / "model.safetensors", model)
    models = configured(changed(params, models__sentences=str(model))).models
    require_intact(models)
    DAMAGES[damage](model / CARD)
    with pytest.raises(UserError, match=rf"models\.sentences: (damaged|missing): {model / CARD}"):
        require_intact(models)


def test_an_unlisted_definition_is_named(package: Path):
    """It came from elsewhere; whoever added it on purpose lists it."""
    source, added = (package / "datasets" / "definitions" / name for name in ("objects.yaml", "things.yaml"))
    shutil.copy(source, added)
    with pytest.raises(UserError, match=rf"unknown: {added}.*python -m pipeline_lib\.shipped"):
        builtin_datasets()
    shipped.main()
    assert "things" in builtin_datasets()
    assert list(shipped.faults()) == []


def test_the_list_is_what_sha256sum_reads():
    """A line: digest, two blanks, path. Written anew, it is the same."""
    content = (shipped.PACKAGE / SUMS).read_bytes()
    shipped.main()
    assert (shipped.PACKAGE / SUMS).read_bytes() == content
    assert all(len(line.split("  ")[0]) == 64 for line in content.decode().splitlines())
