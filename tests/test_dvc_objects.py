"""Objects of a DVC cache or folder remote that are not what their name says: found, named, removed."""

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline_lib.cli import app


def add(folder: Path, content: bytes, suffix: str = "") -> Path:
    """An object as DVC stores it."""
    md5 = hashlib.md5(content).hexdigest()
    path = folder / "files" / "md5" / md5[:2] / f"{md5[2:]}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o444)  # as DVC protects what it takes for whole
    return path


def listing(folder: Path, *objects: Path) -> Path:
    entries = [{"md5": path.parent.name + path.name, "relpath": path.name} for path in objects]
    return add(folder, json.dumps(entries).encode(), ".dir")


def damage(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o444)


def objects(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["objects", *map(str, arguments)])


def test_whole_objects_and_files_of_other_names_are_left_alone(tmp_path: Path):
    """A push that is under way has its files under other names."""
    listing(tmp_path, add(tmp_path, b"one"), add(tmp_path, b"two"))
    (tmp_path / "files/md5/ab").mkdir()
    (tmp_path / "files/md5/ab/.x.tmp").write_bytes(b"ha")
    before = sorted(tmp_path.rglob("*"))
    done = objects(tmp_path, "--remove")
    assert (done.exit_code, done.stdout) == (0, "0 objects damaged\n")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"on", b"onE"], ids=["emptied", "truncated", "flipped"])
def test_a_damaged_object_goes_with_the_listings_that_name_it(tmp_path: Path, content: bytes):
    """DVC looks no further where a listing is there. Without --remove all stays; each folder is looked at."""
    one, two = add(tmp_path / "a", b"one"), add(tmp_path / "a", b"two")
    naming, other = listing(tmp_path / "a", one, two), listing(tmp_path / "a", two)
    whole = add(tmp_path / "b", b"one")
    damage(one, content)
    told = objects(tmp_path / "b", tmp_path / "a")
    assert told.exit_code == 1
    assert told.stdout.startswith(f"damaged: {one}\n1 objects damaged\n")
    assert one.exists()
    done = objects(tmp_path / "b", tmp_path / "a", "--remove")
    assert done.exit_code == 0
    assert [path.exists() for path in (one, naming, two, other, whole)] == [False, False, True, True, True]


def test_a_damaged_listing_goes_alone(tmp_path: Path):
    """Its files are whole."""
    one = add(tmp_path, b"one")
    naming = listing(tmp_path, one)
    damage(naming, b"")
    done = objects(tmp_path, "--remove")
    assert f"damaged: {naming}" in done.stdout
    assert not naming.exists()
    assert one.exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    """Nothing in it is looked at."""
    done = objects(tmp_path)
    assert f"{tmp_path} is no DVC cache or remote" in str(done.exception)
