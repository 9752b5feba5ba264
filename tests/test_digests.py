"""Digests of large files are remembered; a damaged memory is none, for a wrong digest would be another model."""

import os
from pathlib import Path

import pytest

from pipeline_lib import digests
from pipeline_lib.digests import DigestCache
from pipeline_lib.files import file_sha256


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is large enough to be remembered."""
    monkeypatch.setattr(digests, "_CACHE_FROM_BYTES", 1)
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    return path


def remembered(weights: Path) -> tuple[str, bool]:
    """The digest, and whether it was known without hashing."""
    hashed = []

    def sha256(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "file_sha256", sha256)
        cache = DigestCache(weights.with_name("digests.json"))
        digest = cache.file(weights)
        cache.save()
    return digest, not hashed


def test_a_file_is_hashed_once_until_it_changes(weights: Path):
    assert remembered(weights) == (file_sha256(weights), False)
    assert remembered(weights) == (file_sha256(weights), True)
    os.utime(weights, ns=(0, 1))
    assert remembered(weights) == (file_sha256(weights), False)


def test_any_flipped_bit_in_the_memory_is_noticed(weights: Path):
    """It is as if nothing was known, and what is hashed again is remembered."""
    remembered(weights)
    path = weights.with_name("digests.json")
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        assert remembered(weights)[0] == file_sha256(weights), position
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"{}", b'{"digests": 3, "check": 3}'])
def test_a_memory_of_another_form_is_none(weights: Path, content: bytes):
    weights.with_name("digests.json").write_bytes(content)
    assert remembered(weights) == (file_sha256(weights), False)
    assert remembered(weights) == (file_sha256(weights), True)
