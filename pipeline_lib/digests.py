"""Digests of what comes from outside the store: model weights and folders of images."""

import hashlib
import json
import os
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.store import file_sha256, write_json

_CACHE_FROM_BYTES = 32 * 1024 * 1024  # smaller folders hash faster than the cache is worth
# Of a model folder these determine the numbers; READMEs and pictures do not.
_MODEL_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".pt", ".bin"})


class DigestCache:
    """SHA-256 of large files, remembered by path, size and modification time."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._known: dict[str, str] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            self._known = {}
        self._changed = False

    def file(self, path: Path) -> str:
        stat = path.stat()
        if stat.st_size < _CACHE_FROM_BYTES:
            return file_sha256(path)
        identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if identity not in self._known:
            self._known[identity] = file_sha256(path)
            self._changed = True
        return self._known[identity]

    def save(self) -> None:
        """Keep what was learned; a read-only folder only costs the time to hash again."""
        if self._changed and os.access(self._path.parent, os.W_OK):
            write_json(self._path, self._known)
            self._changed = False


def folder_digest(folder: Path, cache: DigestCache, suffixes: frozenset[str] | None = None) -> str:
    """SHA-256 over the sorted relative paths and contents of a folder's files (with `suffixes`, of those only).

    Raises `UserError` where there is nothing to hash.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        if suffixes is None or path.suffix.lower() in suffixes
    )
    if not files:
        raise UserError(
            f"the folder {folder} holds no {'files' if suffixes is None else ' or '.join(sorted(suffixes))}"
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{cache.file(path)}\n".encode())
    return digest.hexdigest()


def model_digest(model: str, revision: str | None, key: str, cache: DigestCache) -> str:
    """What identifies a model's weights: the content of a local folder, or the pinned revision of a hub id.

    `key` is the configuration key to name in errors.
    """
    folder = Path(model)
    if folder.is_dir():
        return f"sha256:{folder_digest(folder, cache, _MODEL_SUFFIXES)}"
    if model.startswith((".", "/")) or model.count("/") != 1:
        raise UserError(
            f"models.{key}: the folder {model!r} does not exist; name a model folder or a hub id OWNER/NAME"
        )
    if revision is None:
        raise UserError(
            f"models.{key}: {model!r} is no folder here, so it is read as a hub id; pin it with models.{key}_revision "
            f"(a commit of the hub repository), so that the same weights are used every time"
        )
    return f"hub:{model}@{revision}"
