"""Paths that a person names: whether there can be such a file, what is there, and which files lie below a folder."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline_lib.errors import UserError

_NAME_BYTES, _PATH_BYTES = 255, 4095  # Linux: NAME_MAX, and PATH_MAX without its NUL
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


def check_path(text: str) -> str:
    """`text`, if the system can have a file of that name. Raises ValueError for NUL and for names that are too long."""
    if not text or "\0" in text:
        raise ValueError(f"{text!r} cannot be a path: it is empty or holds NUL; correct it")
    longest = max(len(os.fsencode(part)) for part in Path(text).parts or [text])
    if longest > _NAME_BYTES or len(os.fsencode(text)) > _PATH_BYTES:
        raise ValueError(
            f"{text[:40]!r}... cannot be a path: a name in it has {longest} bytes, of {_NAME_BYTES} at the most, or "
            f"all of it more than {_PATH_BYTES}; shorten it"
        )
    return text


def is_folder(path: str) -> bool:
    """Whether a folder is there; not, where there can be none (`Path.is_dir` raises for names that are too long)."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str) -> bool:
    """Whether a file is there; not, where there can be none."""
    return os.path.isfile(path)  # noqa: PTH113


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def kind_of(path: Path) -> str:
    """What there is under a name, in words, links followed: a file, a folder, a named pipe, a link to nowhere."""
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "no file")
    except (OSError, ValueError):  # not there, links that go round in a circle, NUL in the name
        return "a link that leads nowhere" if path.is_symlink() else "not there"


def sub_folders(folder: Path) -> list[str]:
    """Names of the visible sub-folders, in alphabetical order. Raises `UserError` for a folder that cannot be read."""
    return sorted(entry.name for entry in _visible(folder) if _is_folder(entry))


def files_below(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Files with one of the (lower-case) suffixes below a folder, links followed, hidden ones left out; sorted.

    None where there is no such folder. Raises `UserError` for a folder that cannot be read (its files would be left out
    in silence), for a link back to a folder that it lies in (they would be there many times), and for what has such a
    name and is no file (a pipe would be read for ever).
    """
    return sorted(_files_below(folder, suffixes, ())) if is_folder(str(folder)) else []


def _files_below(folder: Path, suffixes: frozenset[str], above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """See `files_below`. above: device and number of each folder that led here."""
    status = folder.stat()
    path = (*above, (status.st_dev, status.st_ino))
    if path[-1] in above:
        raise UserError(f"{folder} is a link back to a folder that it lies in, so its files have no end; remove it")
    for entry in _visible(folder):
        if _is_folder(entry):
            yield from _files_below(folder / entry.name, suffixes, path)
        elif os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122 -- a Path for each is half the time
            if not is_file(entry.path) if entry.is_symlink() else not entry.is_file():
                raise UserError(f"{entry.path} is no file but {kind_of(Path(entry.path))}; remove it")
            yield folder / entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that go round in a circle
        return False


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden; they tell folders from files without a look at each."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be read: {error.strerror}; give this user the permission, or name another one"
        ) from None
