"""The folder that a case of bad input happens in."""

from pathlib import Path
from typing import Any

import pytest
from cases import Workplace


@pytest.fixture
def place(params: dict[str, Any], tiny_models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Workplace(tmp_path, params, tiny_models)
