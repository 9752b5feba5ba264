"""Presence: who is at work, in a working folder and on a store. A lock tells, which ends with its process, however."""

import base64
import errno
import fcntl
import json
import os
import platform
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.files import storage_errors

_HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})
NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})

# --- in a working folder ----------------------------------------------------------------------------------------------


def announce(folder: Path) -> bool | None:
    """Say that this process works in `folder`, until it ends; returns whether it is the only one that does, None where
    the file system has no locks to tell. Raises `StorageError` where the folder cannot be written to.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "presence.lock", os.O_RDWR | os.O_CREAT, 0o666)
    # The handle stays open: the lock lasts as long as this process.
    alone = _try_lock(handle, fcntl.LOCK_EX)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)  # from an exclusive lock to one that others can have too
    return alone


def clear_remains(snakemake: Path, folders: Sequence[Path]) -> bool | None:
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
        except (OSError, ValueError):
            with suppress(OSError):
                note.unlink()


def _marked(mark: Path) -> Path | None:
    """The path that a mark is of: its name is the path in Base64, cut into folders (@...) where it is long."""
    name = "".join(part.removeprefix("@") for part in mark.parts)
    try:
        return Path(base64.urlsafe_b64decode(name).decode())
    except ValueError:  # not one of these
        return None


# --- on a store -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a process does on a store: a run, whose jobs make the artifacts with these keys, or something (None) that
    must be alone, because it removes artifacts."""

    doing: str
    makes: Collection[str] | None
    folder: str
    host: str
    process: int
    since: str

    def __str__(self) -> str:
        return f"{self.doing} in {self.folder} (process {self.process} on {self.host}, since {self.since})"

    def hinders(self, makes: Collection[str] | None) -> bool:
        """Whether something that makes these must wait until this work is done."""
        return self.makes is None or makes is None or not set(self.makes).isdisjoint(makes)


@contextmanager
def at_work(store: Path, doing: str, makes: Collection[str] | None) -> Iterator[None]:
    """`start_work` for the block alone."""
    handle = start_work(store, doing, makes)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def start_work(store: Path, doing: str, makes: Collection[str] | None) -> int | None:
    """Say that this process is at work on a store, until it ends or closes the handle; see `Work` for `makes`.

    Raises `UserError` where the work of another process is in the way: Snakemake removes what a job is to make before
    the job starts, and jobs of the other run may be reading it. What makes nothing may do without a permission to
    write; and where the file system has no locks, nothing is known and nothing refused.
    """
    work = Work(doing, makes, str(Path.cwd()), platform.node(), os.getpid(), time.strftime("%Y-%m-%d %H:%M"))
    folder = store / ".locks" / "work"
    try:
        with storage_errors(store), _turn(folder):
            for other in _at_work(folder):
                if other.hinders(makes):
                    raise UserError(
                        f"the store in {store} is in use by {other}. Nothing was done: wait until it has ended, then "
                        f"give the same command again."
                    )
            return _notice(folder, work)
    except OSError as error:
        if error.errno in NO_LOCKS or (makes is not None and not makes):
            return None
        raise


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Within it no other process starts work."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "turn.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _notice(folder: Path, work: Work) -> int:
    """Write a notice of work that starts; returns the open handle that keeps it locked."""
    handle, name = tempfile.mkstemp(prefix="run.", suffix=".lock", dir=folder)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.fchmod(handle, 0o644)
        with open(handle, "w", encoding="utf-8", closefd=False) as stream:
            json.dump(asdict(work), stream, default=list)
    except BaseException:
        Path(name).unlink()
        os.close(handle)
        raise
    return handle


def _at_work(folder: Path) -> list[Work]:
    """The work that is going on; removes the notices of processes that have ended."""
    found = []
    for path in sorted(folder.glob("run.*.lock")):
        with suppress(FileNotFoundError), path.open("rb") as stream:
            if _try_lock(stream.fileno(), fcntl.LOCK_SH):
                with suppress(OSError):  # somebody else's
                    path.unlink()
            else:
                found.append(Work(**json.load(stream)))
    return found


def _try_lock(handle: int, kind: int) -> bool | None:
    """Lock without waiting; False where somebody else has the lock, None where there are no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True
