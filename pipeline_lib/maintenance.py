"""Looking after a store: where something comes from, what is damaged, what is not needed any more."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.plan import Plan
from pipeline_lib.records import Record
from pipeline_lib.store import (
    KEY_CHARACTERS,
    RECORD_SUFFIX,
    Store,
    file_sha256,
    read_record,
    record_path,
    result_record_path,
)

_HIDDEN_IN_SHOW = frozenset({"stage", "version", "set", "members"})


# --- show -------------------------------------------------------------------------------------------------------------


def provenance(path: Path, store: Store, depth: int) -> Iterator[str]:
    """Lines that say how `path` was made: what determines it, then each input in turn, each shown once.

    Raises `UserError` where there is no record.
    """
    record = read_record(path) or read_record(store.path(str(path)))
    if record is None:
        raise UserError(f"{path} has no record in {store.root}; give a table, a picture or an artifact of the store")
    yield from _describe(record, store, depth, 0, set())


def _describe(record: Record, store: Store, depth: int, level: int, shown: set[str]) -> Iterator[str]:
    indent = "  " * level
    yield f"{indent}{record.path}"
    if record.path in shown:
        yield f"{indent}  (shown above)"
        return
    shown.add(record.path)
    yield f"{indent}  key {record.key[:KEY_CHARACTERS]}  sha256 {record.sha256[:16]}  made {record.created}"
    inputs = {entry.path for entry in record.inputs}
    for name, value in record.spec.items():
        if name not in _HIDDEN_IN_SHOW and not _names_inputs(value, inputs):
            yield f"{indent}  {name}: {json.dumps(value, ensure_ascii=False)}"
    for name, value in record.details.items():
        yield f"{indent}  ({name}: {json.dumps(value, ensure_ascii=False)})"
    if level < depth:
        for source in _sources(record, store):
            if (input_record := store.record(source)) is not None:
                yield from _describe(input_record, store, depth, level + 1, shown)


def _names_inputs(value: object, inputs: set[str]) -> bool:
    return (
        value in inputs
        if isinstance(value, str)
        else isinstance(value, list) and bool(inputs.intersection(map(str, value)))
    )


def _sources(record: Record, store: Store) -> list[str]:
    """What an artifact was made from; for a set, its units."""
    if "set" in record.spec:
        return list(record.spec["members"])
    return [entry.path for entry in record.inputs]


# --- verify -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """What `verify_store` found; paths of results are relative to the working folder, others to the store."""

    n_checked: int
    faults: list[str]
    faulty: list[str]
    dependants: list[str]


def verify_store(store: Store, results: Path) -> Verification:
    """Hash all artifacts and results; find what is damaged and what was made from it.

    An artifact is faulty if it is missing, has another size or digest than its record says, has no readable record, or
    was made from an input whose digest is not the present one.

    Raises `UserError` where there is no store.
    """
    if not store.root.is_dir():
        raise UserError(f"the store {store.root} does not exist; name it with --store")
    records = {record.path: record for record in store.records()}
    records |= {record.path: record for record in _result_records(results)}
    faults: dict[str, str] = {}
    for path, record in records.items():
        file = _locate(path, store)
        if not file.is_file():
            faults[path] = f"missing: {path} (its record is there)"
        elif file.stat().st_size != record.n_bytes:
            faults[path] = f"damaged: {path} has {file.stat().st_size} bytes, its record says {record.n_bytes}"
        elif file_sha256(file) != record.sha256:
            faults[path] = f"damaged: {path} does not have the SHA-256 of its record"
    for path in _unrecorded(store):
        faults[path] = f"unfinished: {path} has no readable record"
    for path in sorted({parent for record in records.values() for parent in _parents(record)} - records.keys()):
        faults.setdefault(path, f"missing: {path}, from which others were made")
    dependants: set[str] = set()
    lost = set(faults)
    grew = True
    while grew:
        found = {
            path
            for path, record in records.items()
            if path not in lost and (_stale(record, records) or lost.intersection(_parents(record)))
        }
        dependants |= found
        lost |= found
        grew = bool(found)
    return Verification(len(records), list(faults.values()), sorted(faults), sorted(dependants))


def remove_all(paths: list[str], store: Store) -> None:
    """Remove artifacts and results with their records."""
    for path in paths:
        file = _locate(path, store)
        result_record_path(file).unlink(missing_ok=True)
        record_path(file).unlink(missing_ok=True)
        file.unlink(missing_ok=True)


def _parents(record: Record) -> list[str]:
    return [entry.path for entry in record.inputs] + list(record.spec.get("members", []))


def _stale(record: Record, records: dict[str, Record]) -> bool:
    """Whether an input has been made anew with other content."""
    return any(entry.path in records and records[entry.path].sha256 != entry.sha256 for entry in record.inputs)


def _locate(path: str, store: Store) -> Path:
    inside = store.path(path)
    return inside if inside.exists() or record_path(inside).exists() else Path(path)


def _result_records(results: Path) -> Iterator[Record]:
    for path in sorted(results.rglob(f".records/*{RECORD_SUFFIX}")):
        result = path.parent.parent / path.name.removesuffix(RECORD_SUFFIX)
        if (record := read_record(result)) is not None:
            yield record.model_copy(update={"path": str(result)})


def _unrecorded(store: Store) -> Iterator[str]:
    for path in sorted(store.root.glob("*/**/*")):
        artifact = path.is_file() and path.suffix in (".parquet", ".safetensors", ".json", ".png")
        hidden = any(part.startswith(".") for part in path.relative_to(store.root).parts)
        spec_or_record = path.parent.name == "specs" or path.name.endswith(RECORD_SUFFIX)
        if artifact and not hidden and not spec_or_record and read_record(path) is None:
            yield store.relative(path)


# --- gc ---------------------------------------------------------------------------------------------------------------


def unreached(plan: Plan) -> list[tuple[str, int]]:
    """Artifacts (path relative to the store, bytes) that no target of the plan needs."""
    reached = plan.reached()
    return [(record.path, record.n_bytes) for record in plan.store.records() if record.path not in reached]
