"""Making a set of units: what is there is kept, what is missing is made once, even by jobs that run side by side."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from pipeline_lib.errors import UserError
from pipeline_lib.files import storage_errors
from pipeline_lib.presence import NO_LOCKS
from pipeline_lib.records import Member, SetReceipt
from pipeline_lib.store import Artifact, Store

log = logging.getLogger(__name__)
MAX_LOCKS = 200  # open lock files at a time; also bounds how long another job waits for a unit


def make_set(
    artifact: Artifact,
    store: Store,
    make_units: Callable[[Sequence[Artifact]], None],
    units_per_round: int = MAX_LOCKS,
    prepare: Callable[[], object] | None = None,
) -> int:
    """Make the units of `artifact` that are not there intact, then write its receipt. Returns how many were made.

    `make_units` makes all units it is given; each must become complete on its own, so that an interrupted job loses
    only the units in flight. A unit that another process is making at this moment is left to it and awaited; with few
    `units_per_round`, jobs that share units share the work too.

    `prepare` is called once, when something is missing and before anything is locked: what waits for another process
    (a claim on a GPU) belongs there. In `make_units` it would wait with units locked that the other may wait for.
    """
    made = 0
    pending = [unit for unit in artifact.members if not store.is_intact(unit)]
    if pending and prepare is not None:
        prepare()
    while pending:
        # Units are locked in one order without waiting, so two jobs never wait for each other.
        locked = list(islice(_lockable(pending, store), min(units_per_round, MAX_LOCKS)))
        try:
            mine = [unit for unit, _ in locked if not _usable(unit, store)]
            for unit in mine:
                store.require(unit)
            if mine:
                log.info("%s: %d of %d units to make", artifact.folder, len(mine), len(artifact.members))
                make_units(mine)
                made += len(mine)
        finally:
            for _, lock in locked:
                lock.release()
        pending = [unit for unit in pending if not store.is_complete(unit)]
        if pending and not locked:
            log.info("%s: waiting for %d units that another process is making", artifact.folder, len(pending))
            FileLock(_lock_path(pending[0], store)).acquire().lock.release()
    if not made:
        log.info("%s: all %d units are there", artifact.folder, len(artifact.members))
    _write_receipt(artifact, store, made)
    return made


def read_receipt(path: Path) -> SetReceipt:
    """The receipt of a set."""
    return SetReceipt.model_validate_json(path.read_bytes())


def member_paths(store: Store, sets: Sequence[str]) -> list[str]:
    """Paths (relative to the store) of the units of several sets, in order. They are to be read, so they are hashed.

    Raises `UserError` for a unit that is missing, or is not the one that the set's receipt names.
    """
    paths = []
    for name in sets:
        for member in read_receipt(store.path(name)).members:
            store.require_content(member.path, member.sha256, named_by=name)
            paths.append(member.path)
    return paths


def _usable(unit: Artifact, store: Store) -> bool:
    """Whether the unit is there intact; removes a damaged one, so the caller must hold its lock."""
    if not store.is_complete(unit):
        return False
    if store.is_intact(unit):
        return True
    log.warning("%s: content does not match its record; it is made again", store.path(unit))
    store.remove(unit.path)
    return False


def _lock_path(unit: Artifact, store: Store) -> Path:
    # In 256 folders: where a lock file stays, one folder would hold a file per unit for ever.
    return store.root / ".locks" / unit.short_key[:2] / f"{unit.short_key}.lock"


def _lockable(units: Sequence[Artifact], store: Store) -> Iterator[tuple[Artifact, FileLock]]:
    """The units that no other process is making, each locked when it is reached."""
    for unit in units:
        if (lock := _try_lock(unit, store)) is not None:
            yield unit, lock


def _try_lock(unit: Artifact, store: Store) -> FileLock | None:
    path = _lock_path(unit, store)
    lock = FileLock(path)
    try:
        with storage_errors(store.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise UserError(
                f"{path} cannot be locked: {error.strerror}. Name a store on a file system that has locks (store in "
                f"the configuration): without them, jobs that run side by side would make the same twice"
            ) from error
        raise
    return lock


def _write_receipt(artifact: Artifact, store: Store, made: int) -> None:
    members = []
    for unit in artifact.members:
        record = store.record(unit)
        assert record is not None
        rows = pq.read_metadata(store.path(unit)).num_rows if unit.suffix == ".parquet" else None
        members.append(Member(path=unit.path, sha256=record.sha256, n_rows=rows))
    receipt = SetReceipt(stage=str(artifact.spec["set"]), members=members)
    with store.making(artifact, {"units_made": made}) as path:
        path.write_text(receipt.model_dump_json(indent=1) + "\n", encoding="utf-8")
