"""Digests of what comes from outside the store: model weights and folders of images."""

import hashlib
import json
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.files import file_sha256, write_json
from pipeline_lib.paths import files_below, is_file, is_folder, kind_of
from pipeline_lib.sections import HUB, LOCAL
from pipeline_lib.store import key_of

_CACHE_FROM_BYTES = 64 * 1024 * 1024  # in all; less hashes faster than the cache is worth
# Of a model folder these determine the numbers; READMEs and pictures do not.
_MODEL_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".pt", ".pth", ".ckpt", ".bin", ".jinja"})


class MissingModelError(UserError):
    """A model that should be here is not. What needs it can be planned all the same, not made."""


class DigestCache:
    """Digests of many or large files, remembered by the files' paths, sizes and modification times."""

    def __init__(self, path: Path):
        self._path = path
        self._known = _read_known(path)
        self._changed = False

    def files(self, root: Path, files: Sequence[Path]) -> str:
        """SHA-256 over the files' paths relative to `root` and their contents."""
        return self._remembered("", files, lambda: _digest(root, files))

    def file(self, path: Path) -> str:
        """SHA-256 of one file's content."""
        return self._remembered("file ", [path], lambda: file_sha256(path))

    def _remembered(self, kind: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
        stats = [(path, path.stat()) for path in files]
        for path, status in stats:
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is no file but {kind_of(path)}; remove it, or put the file there")
        if sum(status.st_size for _, status in stats) < _CACHE_FROM_BYTES:
            return compute()
        listing = [f"{path.absolute()}:{status.st_size}:{status.st_mtime_ns}" for path, status in stats]
        identity = hashlib.sha256((kind + "\n".join(listing)).encode(errors="surrogateescape")).hexdigest()
        if identity not in self._known:
            self._known[identity] = compute()
            self._changed = True
        return self._known[identity]

    def save(self) -> None:
        """Keep what was learned; a read-only folder only costs the time to hash again."""
        if self._changed:
            with suppress(OSError):
                write_json(self._path, {"digests": self._known, "check": key_of(self._known)})
            self._changed = False


def _read_known(path: Path) -> dict[str, str]:
    """What a cache's file holds; nothing where it is damaged: one flipped bit would be another model, under other
    keys."""
    try:
        content = json.loads(path.read_bytes())
        known: dict[str, str] = content["digests"]
        return known if content["check"] == key_of(known) else {}
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return {}


def _digest(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        line = f"{path.relative_to(root).as_posix()}\0{file_sha256(path)}\n"
        digest.update(line.encode(errors="surrogateescape"))  # file names are bytes, and may be no UTF-8
    return digest.hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that determine what the model computes; sorted."""
    return files_below(folder, _MODEL_SUFFIXES)


def model_digest(model: str, revision: str | None, key: str, cache: DigestCache) -> str:
    """What identifies a model's weights: the content of a local folder, or the pinned revision of a hub id.

    `key` is the configuration key to name in errors.
    """
    folder = Path(model)
    if is_folder(model):
        files = model_files(folder)
        if not files:
            raise UserError(f"models.{key}: the folder {model!r} holds no {' or '.join(sorted(_MODEL_SUFFIXES))} file")
        return f"sha256:{cache.files(folder, files)}"
    if model.startswith((".", "/")) or model.count("/") != 1:
        raise MissingModelError(
            f"models.{key}: the folder {model!r} does not exist; name a model folder or a hub id OWNER/NAME"
        )
    if revision is None:
        raise UserError(
            f"models.{key}: {model!r} is no folder here, so it is read as a hub id; pin it with models.{key}_revision "
            f"(a commit of the hub repository), so that the same weights are used every time"
        )
    return f"hub:{model}@{revision}"


def encoder_digest(model: str, pretrained: str | None, revision: str | None, name: str, cache: DigestCache) -> str:
    """What identifies a CLIP model: the content of a local folder or checkpoint, or the names that open_clip resolves.

    `name` is the key below `models.encoders` to name in errors.
    """
    key = f"models.encoders.{name}"
    if model.startswith(LOCAL):
        folder = model.removeprefix(LOCAL)
        if not is_folder(folder):
            raise MissingModelError(f"{key}: the folder {folder!r} of {model!r} does not exist; name a model folder")
        return model_digest(folder, None, f"encoders.{name}", cache)
    if model.startswith(HUB):
        if revision is None:
            raise UserError(
                f"{key}: pin {model!r} with {key}.revision (a commit of the hub repository), so that the same weights "
                f"are used every time"
            )
        return f"hub:{model.removeprefix(HUB)}@{revision}"
    if pretrained is None:
        raise UserError(
            f"{key}: {model!r} names an architecture without weights; name them in {key}.pretrained (for example "
            f"openai), or give {LOCAL}FOLDER or {HUB}OWNER/NAME"
        )
    if is_file(pretrained):
        return f"open_clip:{model}:sha256:{cache.file(Path(pretrained))}"
    if Path(pretrained).suffix or "/" in pretrained:
        raise MissingModelError(
            f"{key}.pretrained: the checkpoint {pretrained!r} does not exist; name a file or an open_clip tag"
        )
    return f"open_clip:{model}:{pretrained}" + (f"@{revision}" if revision else "")
