"""The content-addressed store: every artifact's path is computed from the specification of what makes it.

A *spec* is canonical JSON of all that determines an artifact's bytes; its *key* is the SHA-256 of that JSON. Beside
each artifact lies its *record* (`<artifact>.record.json`): the spec, the inputs with their digests, the digest of the
content, library versions and wall time. An artifact without a record is not finished, whatever its bytes.
"""

import hashlib
import json
import platform
import re
import shlex
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline_lib.errors import UserError
from pipeline_lib.files import atomic_path, file_sha256, read_json, sha256_once, storage_errors, write_json
from pipeline_lib.records import Input, Record

RECORD_SUFFIX = ".record.json"
KEY_CHARACTERS = 16  # of 64 in a path; the record holds the whole key
BESIDE = "beside"  # in the details of a result's record: the files that come with it, with their digests
_BESIDE_SUFFIXES = (".json", ".md", ".png", ".svg")
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


def file_fault(path: Path, record: Record, sha256_of: Callable[[Path], str] = file_sha256) -> str | None:
    """What is wrong with the file at `path`, of which `record` is the record; None where it is whole."""
    if not path.is_file():
        return f"missing: {path} (its record is there)"
    if (n_bytes := path.stat().st_size) != record.n_bytes:
        return f"damaged: {path} has {n_bytes} bytes, its record says {record.n_bytes}"
    if sha256_of(path) != record.sha256:
        return f"damaged: {path} does not have the SHA-256 of its record"
    return None


def faults_beside(result: Path, record: Record, sha256_of: Callable[[Path], str] = file_sha256) -> Iterator[str]:
    """A line for each file that comes with a result and is not what the result's record says."""
    for name, sha256 in record.details.get(BESIDE, {}).items():
        file = result.with_name(name)
        if not file.is_file():
            yield f"missing: {file} (the record of {result} names it)"
        elif sha256_of(file) != sha256:
            yield f"damaged: {file} does not have the SHA-256 in the record of {result}"


@cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that determine numbers; read without importing them."""
    versions = {"python": platform.python_version()}
    for name in _REPORTED_LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


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
        with storage_errors(self.root):
            for artifact in artifacts:
                path, content = self.spec_path(artifact), artifact.as_json()
                content["check"] = key_of(content)  # location and inputs are not in the key
                # Rewritten when only the location or batch size differs: these are not part of the key.
                if read_json(path) != content:
                    write_json(path, content, fsync=False)

    def record(self, artifact: Artifact | str) -> Record | None:
        """The record of an artifact, or None where it has none that can be read, or another artifact's."""
        record = read_record(self.path(artifact))
        name = artifact if isinstance(artifact, str) else artifact.path
        return record if record is not None and record.path == name else None

    def is_complete(self, artifact: Artifact | str) -> bool:
        """Whether the artifact is there, with a record of the same key and size. Reads no content: see `is_intact`."""
        path, record = self.path(artifact), self.record(artifact)
        if record is None or not path.is_file() or path.stat().st_size != record.n_bytes:
            return False
        return isinstance(artifact, str) or record.key == artifact.key

    def is_intact(self, artifact: Artifact | str) -> bool:
        """Whether the artifact is complete and its content has the recorded digest."""
        record = self.record(artifact)
        if record is None or file_fault(self.path(artifact), record) is not None:
            return False
        return isinstance(artifact, str) or record.key == artifact.key

    @contextmanager
    def making(
        self, artifact: Artifact, details: Mapping[str, Any] | None = None, *, path: Path | None = None
    ) -> Iterator[Path]:
        """Yield a temporary path to write `artifact` to; afterwards both it and its record are in place. A process
        that is killed leaves both, the record alone, or neither.

        `path` is where the artifact goes if not at its place in the store (tables lie in the results folder); the
        digests of what was written beside it before, under the same name with another ending, are recorded too.
        A result that comes out as it was, of the same inputs, keeps its record: git, which holds both, sees no change.
        `details` are what the run knows and the spec does not (device, batch size): they go into the record. Inputs
        must be complete; their digests are recorded. Raises `StorageError` where the place cannot be written to.
        """
        record_file = record_path(self.path(artifact)) if path is None else result_record_path(path)
        inputs = self.require(artifact)
        place = artifact.path if path is None else path.as_posix()
        details = dict(details or {})
        if path is not None and (beside := _digests_beside(path)):
            details[BESIDE] = beside
        path = path or self.path(artifact)
        with storage_errors(path.parent if place != artifact.path else self.root), atomic_path(path) as temporary:
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
                details=details,
            )
            if path.is_file() and file_sha256(path) != record.sha256:
                # An old record must never vouch for new bytes, nor a new one for old bytes.
                record_file.unlink(missing_ok=True)
                path.unlink()
            if place == artifact.path or not _tells_the_same(read_record(path), record):
                # Before the artifact: one that is there has its record, wherever the process is killed.
                write_json(record_file, checked(record).model_dump())

    def require(self, artifact: Artifact) -> list[Input]:
        """The inputs of an artifact with their digests. Raises `UserError` for one that is missing or damaged: they are
        hashed, each file once by a process, so that nothing is made from damaged bytes."""
        return [self._input(name) for name in artifact.inputs]

    def _input(self, name: str) -> Input:
        path, record = self.path(name), self.record(name)
        if record is None:
            raise self._damage(f"{'unfinished' if path.exists() else 'missing'}: {path} has no readable record")
        if fault := file_fault(path, record, sha256_once):
            raise self._damage(fault)
        return Input(path=name, key=record.key, sha256=record.sha256)

    def require_content(self, name: str, sha256: str, named_by: str) -> None:
        """Raises `UserError` where an artifact does not have the digest that another one, `named_by`, has of it."""
        path = self.path(name)
        if not path.is_file():
            raise self._damage(f"missing: {path}, which {self.path(named_by)} names")
        if sha256_once(path) != sha256:
            raise self._damage(f"damaged: {path} does not have the SHA-256 that {self.path(named_by)} names")

    def _damage(self, fault: str) -> UserError:
        root = shlex.quote(str(self.root))
        return UserError(
            f"{fault}. Nothing is made from it. Run `python -m pipeline_lib verify --store {root} --remove`, then the "
            f"same command again: it makes again what is damaged and what was made from that, and nothing else."
        )

    def is_current(self, result: Path, artifact: Artifact) -> bool:
        """Whether a file in the results folder is the planned one, whole with what comes with it, and what it was made
        from is still in the store."""
        record = read_record(result)
        return (
            record is not None
            and record.key == artifact.key
            and file_fault(result, record) is None
            and not any(faults_beside(result, record))
            and all(map(self.is_complete, artifact.inputs))
        )

    def mark_outdated(self, artifact: Artifact) -> str:
        """Write a note, newer than any result, that a result must be made again; returns its path."""
        # In a folder of its own: Snakemake lists a folder once, and would not see the second note in it.
        path = self.root / ".outdated" / artifact.short_key / "note"
        with storage_errors(self.root):
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
            artifact = path.with_name(path.name.removesuffix(RECORD_SUFFIX))
            record = read_record(artifact)
            if record is not None and record.path == self.relative(artifact):
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


def _digests_beside(result: Path) -> dict[str, str]:
    """SHA-256 of the files that come with a result, by name: the Markdown, the numbers, the pictures of a table."""
    files = (result.with_suffix(suffix) for suffix in _BESIDE_SUFFIXES if suffix != result.suffix)
    return {file.name: file_sha256(file) for file in files if file.is_file()}


def read_spec(path: Path) -> Artifact:
    """The artifact of a spec file. Raises `UserError` where there is none, or it is damaged."""
    try:
        content = json.loads(path.read_bytes())
        if content.pop("check") != key_of(content):
            raise ValueError("not the content that was written")
        return Artifact.from_json(content)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `snakemake` writes the spec files when a run starts") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged, or no spec file; the next `snakemake` run writes it again") from None


def checked(record: Record) -> Record:
    """The record with the digest of its other fields: one flipped bit in it, and it vouches for nothing."""
    return record.model_copy(update={"check": key_of(json.loads(record.model_dump_json(exclude={"check"})))})


def _tells_the_same(old: Record | None, new: Record) -> bool:
    """Whether two records differ at most in when, for how long and with which versions the same was made."""
    circumstances = {"check", "created", "versions", "wall_time_s"}

    def told(record: Record) -> str:
        return canonical_json(record.model_dump(mode="json", exclude=circumstances))

    return old is not None and told(old) == told(new)


def read_record(path: Path) -> Record | None:
    """The record of an artifact or a result, or None where there is none that can be read, or it is damaged."""
    for candidate in (record_path(path), result_record_path(path)) if path.name else ():
        try:
            record = Record.model_validate_json(candidate.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        if record.check in (None, checked(record).check):
            return record
    return None
