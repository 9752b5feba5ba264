"""Tiny pipelines, each written once per run, when a test first asks for it."""

from functools import cache
from pathlib import Path

import pytest
from tiny_pipelines import TINY_PIPELINES, TinyPipeline


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> TinyPipeline:
    """The folder of a tiny pipeline of a family (see `tiny_pipelines`). Not to be changed: copy it."""
    pytest.importorskip("diffusers")

    @cache
    def written(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        TINY_PIPELINES[family](folder)
        return folder

    return written
