"""Model folders from the hub: what is asked for, what the cache is good for, and what is said without a network."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_hub import COMMIT as FAKE_COMMIT
from fake_hub import NOWHERE, REPOSITORY, serving, use_hub

from pipeline_lib.errors import UserError
from pipeline_lib.hub import hub_folder

pytest.importorskip("huggingface_hub")

COMMIT = "c" * 40
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was downloaded from a hub that has any repository."""
    asked: list[Any] = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str], **options: Any) -> str:
        if options.get("local_files_only"):
            raise FileNotFoundError("nothing is cached")
        asked.append((repository, revision, allow_patterns))
        return "the folder"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def hub_of(monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    siblings = [SimpleNamespace(rfilename=name) for name in files]
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)


def test_the_best_weights_alone_are_fetched(asked: list[Any], monkeypatch: pytest.MonkeyPatch):
    """Safetensors where there are any, never a second copy in another format."""
    hub_of(monkeypatch, "config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
    assert hub_folder("a/b", COMMIT, WEIGHTS, key="models.x") == Path("the folder")
    hub_of(monkeypatch, "config.json", "pytorch_model.bin")
    hub_folder("a/b", None, WEIGHTS, key="models.x")
    small = ["*.json", "*.txt", "*.model"]
    assert asked == [("a/b", COMMIT, [*small, "model.safetensors"]), ("a/b", None, [*small, "pytorch_model.bin"])]


def test_a_repository_without_such_weights_is_named(monkeypatch: pytest.MonkeyPatch):
    """The message lists what it holds."""
    hub_of(monkeypatch, "README.md", "unet.safetensors")
    with pytest.raises(UserError, match=r"models\.x: 'a/b' holds no weights named model.*unet\.safetensors"):
        hub_folder("a/b", COMMIT, WEIGHTS, key="models.x")


@pytest.mark.parametrize("files", [("model.safetensors", "pytorch_model.bin"), ("pytorch_model.bin",)])
def test_a_cached_commit_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]):
    """Jobs on machines without a network run from what was fetched before, though that is not the whole repository."""
    (tmp_path / "hub").mkdir()
    for name in ("config.json", "flax_model.msgpack", *files):
        (tmp_path / "hub" / name).write_text(name)
    with serving(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "cache")
        fetched = hub_folder(REPOSITORY, FAKE_COMMIT, WEIGHTS, key="models.x")
    assert sorted(hub.fetched) == sorted(["config.json", files[0]])
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    assert hub_folder(REPOSITORY, FAKE_COMMIT, WEIGHTS, key="models.x") == fetched
    (fetched / files[0]).unlink()
    with pytest.raises(UserError, match="is not in the cache and cannot be downloaded"):
        hub_folder(REPOSITORY, FAKE_COMMIT, WEIGHTS, key="models.x")


def test_without_network_and_cache_the_way_around_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """What to run elsewhere, and what to write then; one line of the reason."""
    no_network(monkeypatch)
    with pytest.raises(UserError) as caught:
        hub_folder("a/b", COMMIT, WEIGHTS, key="models.x", local_prefix="local-dir:")
    message = str(caught.value)
    for words in (
        "models.x: 'a/b'",
        "(Name or service not known)",
        f"`hf download a/b --revision {COMMIT} --local-dir FOLDER`",
        "local-dir:FOLDER",
    ):
        assert words in message
    assert "and more" not in message


def test_a_download_that_breaks_off_is_a_user_error(monkeypatch: pytest.MonkeyPatch):
    """No traceback of the hub's library."""
    hub_of(monkeypatch, "config.json", "model.safetensors")

    def broken(*_: Any, **options: Any) -> str:
        if options.get("local_files_only"):
            raise FileNotFoundError("nothing is cached")
        raise OSError("disk full")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(UserError, match="disk full"):
        hub_folder("a/b", COMMIT, WEIGHTS, key="models.x")
