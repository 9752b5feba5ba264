"""Looking after a store: what is damaged, and what is not needed any more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.config import Config
from pipeline_lib.errors import UserError
from pipeline_lib.model_cards import require_intact
from pipeline_lib.plan import Plan
from pipeline_lib.progress import Progress
from pipeline_lib.records import Input, Member, Record
from pipeline_lib.sets import read_receipt
from pipeline_lib.store import (
    BESIDE,
    RECORD_SUFFIX,
    Store,
    faults_beside,
    file_fault,
    read_record,
    record_path,
    result_record_path,
)

# --- verify -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """What `verify_store` found; paths of results are relative to the working folder, others to the store.

    `faults` are lines for people; `faulty` are the paths that are damaged themselves, `dependants` those made from
    them. `absent` are artifacts that others were made from and of which nothing is here; `elsewhere` are results that
    are whole, but that some of these were made into. Neither is damage: a clone has results without a store, and a
    store may have been pulled in part.
    """

    n_checked: int
    faults: list[str]
    faulty: list[str]
    dependants: list[str]
    absent: list[str]
    elsewhere: list[str]


def verify_store(store: Store, results: Path) -> Verification:
    """Hash all artifacts and results; find what is damaged and what was made from it.

    An artifact is faulty if it is missing, has another size or digest than its record says, or has no readable record.
    A result is faulty, too, if a file that comes with it is missing or has another digest. What was made from something
    whose digest is not the present one is a dependant, though all may be whole.

    Raises `UserError` where there is no store.
    """
    if not store.root.is_dir():
        raise UserError(f"the store {store.root} does not exist; name it with --store")
    stored = {record.path: record for record in store.records()}
    made = {record.path: record for record in _result_records(results)}
    records = stored | made
    faulty: dict[str, list[str]] = {}
    with Progress("verify", len(records), "artifacts") as progress:
        for path, record in records.items():
            file = _locate(path, store)
            if faults := [*filter(None, [file_fault(file, record)]), *faults_beside(file, record)]:
                faulty[path] = faults
            progress.update(1)
    for path in _unrecorded(store, results):
        faulty[path] = [f"unfinished: {path} has no readable record"]
    absent = {parent for record in records.values() for parent in _parents(record)} - records.keys() - faulty.keys()
    elsewhere = {path for path, record in made.items() if not absent.isdisjoint(_parents(record))}
    stale = {path for path, record in records.items() if path not in faulty and _is_stale(record, records, store)}
    dependants: set[str] = set()
    lost = set(faulty)
    grew = True
    while grew:
        found = {
            path
            for path, record in records.items()
            if path not in lost and (path in stale or lost.intersection(_parents(record)))
        }
        dependants |= found
        lost |= found
        grew = bool(found)
    return Verification(
        n_checked=len(stored | made),
        faults=[fault for faults in faulty.values() for fault in faults],
        faulty=sorted(faulty),
        dependants=sorted(dependants),
        absent=sorted(absent),
        elsewhere=sorted(elsewhere - lost),
    )


def remove_all(paths: Sequence[str], store: Store) -> None:
    """Remove artifacts and results with their records, and with the files that come with a result."""
    for path in paths:
        file = _locate(path, store)
        record = read_record(file)
        # The record goes first: none may outlive what it vouches for.
        result_record_path(file).unlink(missing_ok=True)
        record_path(file).unlink(missing_ok=True)
        for name in record.details.get(BESIDE, ()) if record else ():
            file.with_name(name).unlink(missing_ok=True)
        file.unlink(missing_ok=True)


def _parents(record: Record) -> list[str]:
    return [entry.path for entry in record.inputs] + list(record.spec.get("members", []))


def _is_stale(record: Record, records: dict[str, Record], store: Store) -> bool:
    """Whether an input, or of a set that is whole a unit, has been made anew with other content."""
    sources: list[Input | Member] = [*record.inputs]
    if "set" in record.spec:
        sources += read_receipt(store.path(record.path)).members
    return any(source.path in records and records[source.path].sha256 != source.sha256 for source in sources)


def _locate(path: str, store: Store) -> Path:
    inside = store.path(path)
    return inside if inside.exists() or record_path(inside).exists() else Path(path)


def _result_records(results: Path) -> Iterator[Record]:
    for path in sorted(results.rglob(f".records/*{RECORD_SUFFIX}")):
        result = path.parent.parent / path.name.removesuffix(RECORD_SUFFIX)
        if (record := read_record(result)) is not None:
            yield record.model_copy(update={"path": str(result)})


def _unrecorded(store: Store, results: Path) -> Iterator[str]:
    """Artifacts and results that no record vouches for."""
    for path in sorted(store.root.glob("*/**/*")):
        artifact = path.is_file() and path.suffix in (".parquet", ".safetensors", ".json", ".png")
        hidden = any(part.startswith(".") for part in path.relative_to(store.root).parts)
        spec_or_record = path.parent.name == "specs" or path.name.endswith(RECORD_SUFFIX)
        if artifact and not hidden and not spec_or_record and store.record(store.relative(path)) is None:
            yield store.relative(path)
    # Of results, only what has a record that cannot be read: the folder may hold files of other origin.
    for record in sorted(results.rglob(f".records/*{RECORD_SUFFIX}")):
        result = record.parent.parent / record.name.removesuffix(RECORD_SUFFIX)
        if read_record(result) is None:
            yield str(result)


# --- gc ---------------------------------------------------------------------------------------------------------------


def studies(config: Config, others: Sequence[Config]) -> list[Plan]:
    """The plans of the studies whose artifacts are kept: `others`, and that of `config` if it has the same store.

    Raises `UserError` where `others` have several stores, or a model that is not here or damaged: then what a study
    reaches is not known.
    """
    stores = {other.store for other in others} or {config.store}
    if len(stores) > 1:
        raise UserError(f"store: these studies have several ({', '.join(sorted(stores))}); collect one at a time")
    plans = []
    for one in [config, *others]:
        if one.store in stores:
            require_intact(one.models)
            plans.append(Plan(one))
            plans[-1].require_models()
    return plans


def unreached(plans: Sequence[Plan]) -> list[tuple[str, int]]:
    """Artifacts (path relative to the store, bytes) that no target of any of the plans, which share a store, needs."""
    reached = set().union(*(plan.reached() for plan in plans))
    return [(record.path, record.n_bytes) for record in plans[0].store.records() if record.path not in reached]


def resting_on(paths: Sequence[str], results: Path) -> list[str]:
    """The results below `results` that were made from one of these artifacts."""
    gone = set(paths)
    return [record.path for record in _result_records(results) if gone.intersection(_parents(record))]
