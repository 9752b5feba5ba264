"""Fixtures that several tests share: tiny models, made once per run, and a small project."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from small_project import draw_shapes, fake_models, make_all, planned, small_params

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Helpers of these folders are used by tests of others.
sys.path[:0] = [str(Path(__file__).parent / name) for name in ("datasets", "generators")]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny random models in the real formats: section `models` of params.yaml. pytest-xdist's workers share them."""
    pytest.importorskip("diffusers")
    from tiny_models import make_tiny_models

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "tiny_models"
    with FileLock(shared / "tiny_models.lock"):
        done = folder / "done"
        if not done.exists():
            make_tiny_models(folder)
            done.touch()
    return {
        "generator": str(folder / "text_to_image"),
        "encoders": [{"name": "clip", "model": f"local-dir:{folder / 'clip'}"}],
        "sentences": str(folder / "word_to_sentence"),
    }


@pytest.fixture
def params(tmp_path: Path) -> dict[str, Any]:
    """params.yaml of a small project whose models can be planned with, but not loaded."""
    images = draw_shapes(tmp_path / "shapes", 2)
    return small_params(fake_models(tmp_path / "models"), images, tmp_path / "store")


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Any]) -> Path:
    """A folder with a small project whose two tables are made. For reading: see `finished`."""
    folder = tmp_path_factory.mktemp("finished")
    draw_shapes(folder / "shapes", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all(planned(small_params(tiny_models, Path("shapes"))), Path("results"))
    return folder


@pytest.fixture
def finished(
    finished_folder: Path, tiny_models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """params.yaml of a finished small project; the working folder is a copy of it, its results in `results`."""
    shutil.copytree(finished_folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return small_params(tiny_models, Path("shapes"))
