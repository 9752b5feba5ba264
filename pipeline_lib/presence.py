"""Presence: whether another run is alive in a working folder. A lock tells, which ends with its process, however."""

import base64
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_PRESENT: list[int] = []  # open handles: the locks last as long as this process


def announce(folder: Path) -> bool:
    """Say that this process works in `folder`, until it ends; returns whether it is the only one that does.

    Where the file system has no locks, nothing is known, and the answer is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "presence.lock", os.O_RDWR | os.O_CREAT, 0o666)
    _PRESENT.append(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except OSError:
        alone = False
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)  # from an exclusive lock to one that others can have too
    return alone


def clear_remains(snakemake: Path, folders: Sequence[Path]) -> bool:
    """`announce` in Snakemake's own folder; where nobody else is there, remove what a killed run left of itself.

    These are its locks, plain files that would have to be removed by hand (--unlock), and its marks of what jobs were
    making below `folders`. An artifact that is there is whole, so its mark says nothing; and Snakemake, which makes it
    again, then takes what was to be made from it for made, and ends well without the table that was asked for.
    """
    alone = announce(snakemake)
    if alone:
        for lock in (snakemake / "locks").glob("*.lock"):
            lock.unlink(missing_ok=True)
        marks = snakemake / "incomplete"
        for mark in [path for path in marks.rglob("*") if path.is_file()]:
            path = _marked(mark.relative_to(marks))
            if path is not None and any(path.absolute().is_relative_to(folder.absolute()) for folder in folders):
                mark.unlink(missing_ok=True)
    return alone


def clear_unreadable(snakemake: Path) -> None:
    """Remove what Snakemake has noted of files it made, where that is no text: it would end with a traceback in every
    run. It does without such notes, for artifacts are made when they are missing and for no other reason."""
    for note in (snakemake / "metadata").rglob("*"):
        try:
            if note.is_file():
                note.read_text(encoding="utf-8")
        except ValueError:
            note.unlink(missing_ok=True)


def _marked(mark: Path) -> Path | None:
    """The path that a mark is of: its name is the path in Base64, cut into folders (@...) where it is long."""
    name = "".join(part.removeprefix("@") for part in mark.parts)
    try:
        return Path(base64.urlsafe_b64decode(name).decode())
    except ValueError:  # not one of these
        return None
