"""Files that are whole or not there: written atomically, hashed, and a message for people where there is no room."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline_lib.errors import UserError
from pipeline_lib.paths import nearest_existing

_TEMPORARY_SUFFIX = ".tmp"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_ALLOWED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@contextmanager
def atomic_path(path: Path, *, fsync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to `path` when the block ends well, removed when it does not.

    The content is fsynced before the rename and the folder after it, so that a reader, or a machine that comes back
    after a power cut, sees the whole file or none. What a killed process leaves behind, `remove_abandoned` finds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _locked_temporary(path)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        if fsync:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
        if fsync:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, and the open handle that keeps it locked: a lock ends with its process, however that
    ends."""
    while True:
        prefix = f".{path.name[:80]}."
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=_TEMPORARY_SUFFIX, dir=path.parent)
        with suppress(OSError):  # a file system without locks: `remove_abandoned` leaves its files alone
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # taken for an abandoned one before it was locked


def remove_abandoned(folder: Path) -> list[Path]:
    """Remove the temporary files below `folder` whose process was killed, not those being written; returns them."""
    removed = []
    # A stage's folder may be a link to a larger disk; no other links are followed.
    tops = [folder, *(path for path in folder.glob("*") if path.is_symlink() and path.is_dir())]
    for parent, _, names in chain.from_iterable(map(os.walk, tops)):
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") and path.suffix == _TEMPORARY_SUFFIX and _unlink_unlocked(path):
                removed.append(path)
    return removed


def _unlink_unlocked(path: Path) -> bool:
    """Remove a file that nobody has locked; False where somebody has, or where it cannot be told or done."""
    try:
        with path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True


class StorageError(UserError, OSError):
    """A place that cannot be written to: still an OSError, with a message for the person at the keyboard."""


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Where the block cannot write below `folder`, raise `StorageError`: a full disk, a used-up quota, no permission.

    Other errors, such as a missing permission to read something elsewhere, stay what they are.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageError(_no_room(error, folder)) from error
        if error.errno in _NOT_ALLOWED and error.filename and _is_below(Path(error.filename), folder):
            raise StorageError(
                f"{error.filename} cannot be written: {error.strerror}. Give this user the permission to write below "
                f"{folder}, or choose another folder (store, results: in the configuration; logs, .snakemake: where "
                f"the run is started), then run the same command again."
            ) from error
        raise


def _no_room(error: OSError, folder: Path) -> str:
    place = nearest_existing(Path(error.filename).parent if error.filename else folder)
    if error.errno == errno.EDQUOT:
        left = "the quota is used up"
    else:
        left = f"{shutil.disk_usage(place).free / 1e6:.1f} MB are free"
    return (
        f"No space left in {place}: {left}. What was finished stays. Make room (`python -m pipeline_lib gc` lists what "
        f"the configuration does not need; `python -m pipeline_lib plan` says how much it does), then run the same "
        f"command again: it goes on from there."
    )


def _is_below(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any, *, fsync: bool = True) -> None:
    """Write indented JSON atomically."""
    with atomic_path(path, fsync=fsync) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_hashed: dict[tuple[int, ...], str] = {}  # what this process has hashed, by what changes when a file does


def sha256_once(path: Path) -> str:
    """`file_sha256`, computed once by a process as long as the file does not change."""
    stat = path.stat()
    identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if identity not in _hashed:
        _hashed[identity] = file_sha256(path)
    return _hashed[identity]
