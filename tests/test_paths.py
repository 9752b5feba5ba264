"""Paths that may not be there."""

from pathlib import Path

import pytest

from pipeline_lib.paths import nearest_existing


def test_the_nearest_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its disk is the one that what is to be made will lie on; a relative path leads to one, too."""
    there = tmp_path / "there"
    there.mkdir()
    assert nearest_existing(there) == there
    assert nearest_existing(there / "not" / "yet") == there
    monkeypatch.chdir(there)
    assert nearest_existing(Path("not/yet")) == there
    assert nearest_existing(Path("../there")) == Path("../there")
