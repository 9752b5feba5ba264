"""The content-addressed store: every artifact's path is computed from the specification of what makes it.

A *spec* is canonical JSON of all that determines an artifact's bytes; its *key* is the SHA-256 of that JSON. Beside
each artifact lies its *record* (`<artifact>.record.json`): the spec, the inputs with their digests, the digest of the
content, library versions and wall time. An artifact without a record is not finished, whatever its bytes.
"""

import hashlib
import json
import os
import platform
import re
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline_lib.errors import UserError
from pipeline_lib.records import Input, Record

RECORD_SUFFIX = ".record.json"
KEY_CHARACTERS = 16  # of 64 in a path; the record holds the whole key
_REPORTED_LIBRARIES = ("diffusers", "numpy", "open_clip_torch", "pyarrow", "torch", "transformers")


def canonical_json(value: Any) -> str:
    """JSON with one form per value: sorted keys, no white space, no NaN; Unicode normalised to NFC."""
    return unicodedata.normalize(
        "NFC", json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    )


def key_of(spec: Any) -> str:
    """SHA-256 (64 hexadecimal characters) of the canonical JSON of `spec`."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()


def slug(text: str) -> str:
    """A readable, harmless path component for any text. Not unique: the key beside it is."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", ascii_text).strip("_")[:40] or "unnamed"


@dataclass(frozen=True)
class Artifact:
    """What is to be made, and where.

    `folder` is readable and relative to the store; `inputs` are the paths (relative to the store) that the stage reads,
    all of them named in the spec; `after` are the sets that the graph must have made before, where those are not the
    inputs themselves (a head is a unit of the set of all heads, and which set that is says nothing about the head);
    `location` says where to find what the spec names by digest (a model folder) and how to work (batch size). None of
    them is part of the key, which comes from `spec` alone.
    """

    folder: str
    spec: Mapping[str, Any]
    suffix: str
    inputs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    location: Mapping[str, Any] = field(default_factory=dict)
    file_name: str | None = None
    members: tuple["Artifact", ...] = field(default=(), repr=False)

    @cached_property
    def key(self) -> str:
        return key_of(self.spec)

    @property
    def short_key(self) -> str:
        return self.key[:KEY_CHARACTERS]

    @property
    def path(self) -> str:
        """Path relative to the store."""
        return f"{self.folder}/{self.file_name or self.short_key}{self.suffix}"

    def as_json(self) -> dict[str, Any]:
        """What a stage needs to make the artifact: the content of its spec file."""
        return {
            "key": self.key,
            "path": self.path,
            "inputs": list(self.inputs),
            "location": dict(self.location),
            "spec": dict(self.spec),
            "members": [member.as_json() for member in self.members],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Artifact":
        path = Path(value["path"])
        artifact = cls(
            folder=str(path.parent),
            spec=value["spec"],
            suffix=path.suffix,
            inputs=tuple(value["inputs"]),
            location=value["location"],
            file_name=path.stem,
            members=tuple(cls.from_json(member) for member in value["members"]),
        )
        if artifact.key != value["key"]:
            raise UserError(
                f"The spec file for {value['path']} was altered: its key is {value['key'][:KEY_CHARACTERS]}, its "
                f"content hashes to {artifact.short_key}. Delete it; the next run writes it again."
            )
        return artifact


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: Path, *, fsync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to `path` when the block ends well, removed when it does not.

    The content is fsynced before the rename and the folder after it, so that a reader, or a machine that comes back
    after a power cut, sees the whole file or none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
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


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any, *, fsync: bool = True) -> None:
    """Write indented JSON atomically."""
    with atomic_path(path, fsync=fsync) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    """The content of a JSON file, or None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that determine numbers; read without importing them."""
    versions = {"python": platform.python_version()}
    for name in _REPORTED_LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


# --- the store --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A folder of artifacts and their records."""

    root: Path

    def path(self, artifact: Artifact | str) -> Path:
        return self.root / (artifact if isinstance(artifact, str) else artifact.path)

    def relative(self, path: Path) -> str:
        """The path of an artifact relative to the store."""
        # Links are not followed: a stage's folder may be a link to a larger disk.
        try:
            return path.absolute().relative_to(self.root.absolute()).as_posix()
        except ValueError:
            return path.as_posix()

    def spec_path(self, artifact: Artifact) -> Path:
        return self.root / "specs" / f"{artifact.short_key}.json"

    def write_specs(self, artifacts: Iterable[Artifact]) -> None:
        """Write the spec files that the stages read. They are derived from the configuration, so they need no fsync."""
        for artifact in artifacts:
            path, content = self.spec_path(artifact), artifact.as_json()
            # Rewritten when only the location or batch size differs: these are not part of the key.
            if _read_json(path) != content:
                write_json(path, content, fsync=False)

    def record(self, artifact: Artifact | str) -> Record | None:
        """The record of an artifact, or None where it has none that can be read."""
        return read_record(self.path(artifact))

    def is_complete(self, artifact: Artifact | str) -> bool:
        """Whether the artifact is there, with a record of the same key and size. Reads no content: see `is_intact`."""
        path = self.path(artifact)
        record = read_record(path)
        if record is None or not path.is_file() or path.stat().st_size != record.n_bytes:
            return False
        return isinstance(artifact, str) or record.key == artifact.key

    def is_intact(self, artifact: Artifact | str) -> bool:
        """Whether the artifact is complete and its content has the recorded digest."""
        record = self.record(artifact)
        return record is not None and self.is_complete(artifact) and file_sha256(self.path(artifact)) == record.sha256

    @contextmanager
    def making(
        self, artifact: Artifact, details: Mapping[str, Any] | None = None, *, path: Path | None = None
    ) -> Iterator[Path]:
        """Yield a temporary path to write `artifact` to; afterwards both it and its record are in place.

        `path` is where the artifact goes if not at its place in the store (tables lie in the results folder). `details`
        are what the run knows and the spec does not (device, batch size): they go into the record. Inputs must be
        complete; their digests are recorded.
        """
        record_file = record_path(self.path(artifact)) if path is None else result_record_path(path)
        inputs = self.require(artifact)
        place = artifact.path if path is None else path.as_posix()
        path = path or self.path(artifact)
        with atomic_path(path) as temporary:
            yield temporary
            record = Record(
                key=artifact.key,
                path=place,
                spec=dict(artifact.spec),
                inputs=inputs,
                sha256=file_sha256(temporary),
                n_bytes=temporary.stat().st_size,
                versions=library_versions(),
                wall_time_s=_lap(),
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                details=dict(details or {}),
            )
            # An old record must never vouch for new bytes: it goes first, the new one comes last.
            record_file.unlink(missing_ok=True)
        write_json(record_file, record.model_dump())

    def require(self, artifact: Artifact) -> list[Input]:
        """The inputs of an artifact with their digests. Raises `UserError` for one that is not there."""
        return [self._input(name) for name in artifact.inputs]

    def _input(self, name: str) -> Input:
        record = self.record(name)
        if record is None or not self.is_complete(name):
            raise UserError(
                f"{self.path(name)} is missing or incomplete although the graph says it was made. "
                f"Run `python -m pipeline_lib verify --store {self.root} --remove`, then the same command again."
            )
        return Input(path=name, key=record.key, sha256=record.sha256)

    def is_current(self, result: Path, artifact: Artifact) -> bool:
        """Whether a file in the results folder is the planned one, and what it was made from is still in the store."""
        record = read_record(result)
        return record is not None and record.key == artifact.key and all(map(self.is_complete, artifact.inputs))

    def mark_outdated(self, artifact: Artifact) -> str:
        """Write a note, newer than any result, that a result must be made again; returns its path."""
        # In a folder of its own: Snakemake lists a folder once, and would not see the second note in it.
        path = self.root / ".outdated" / artifact.short_key / "note"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The time makes the content new too: Snakemake takes a small file of known content for unchanged.
        path.write_text(f"{time.time_ns()}\n", encoding="utf-8")
        return str(path)

    def remove(self, path: str) -> None:
        """Remove an artifact and its record; the record first, so that no record outlives what it vouches for."""
        target = self.path(path)
        record_path(target).unlink(missing_ok=True)
        target.unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """Every readable record below the store."""
        for path in sorted(self.root.rglob(f"*{RECORD_SUFFIX}")):
            record = read_record(path.with_name(path.name.removesuffix(RECORD_SUFFIX)))
            if record is not None:
                yield record


_last_finished = time.perf_counter()


def _lap() -> float:
    """Seconds since this process finished its previous artifact, or started: what the present one took."""
    global _last_finished  # one process makes one artifact after the other
    now = time.perf_counter()
    seconds, _last_finished = round(now - _last_finished, 3), now
    return seconds


def record_path(path: Path) -> Path:
    return path.with_name(path.name + RECORD_SUFFIX)


def result_record_path(path: Path) -> Path:
    """Where the record of a result lies: out of the way of people who look into the results folder."""
    return path.parent / ".records" / f"{path.name}{RECORD_SUFFIX}"


def read_record(path: Path) -> Record | None:
    """The record of an artifact or a result, or None where there is none that can be read."""
    for candidate in (record_path(path), result_record_path(path)) if path.name else ():
        try:
            return Record.model_validate_json(candidate.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
    return None
