"""Where something comes from: the records of an artifact and of all that it was made from, as lines for people."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.errors import UserError
from pipeline_lib.records import Record
from pipeline_lib.store import BESIDE, KEY_CHARACTERS, Store, read_record

_HIDDEN = frozenset({"stage", "version", "set", "members"})
# Of these, made by the hundred, `show` describes one in the place of many.
_UNITS = frozenset({"prompts", "images", "real_images", "shots", "embeddings", "heads"})
_MANY = 3
_LONG = 200  # characters


def provenance(path: Path, store: Store, depth: int, *, is_whole: bool = False) -> Iterator[str]:
    """Lines that say how `path` was made: what determines it, then each input in turn, each described once.

    Of many units of one kind (shards of images, their features) the number and the keys are said, and one is described;
    long lists are cut. With `is_whole` everything is printed. Inputs that are not in this store are named; where it has
    none of them, a line says so. Raises `UserError` where there is no record.
    """
    record = read_record(path) or read_record(store.path(str(path)))
    if record is None:
        raise UserError(f"{path} has no record in {store.root}; give a table, a picture or an artifact of the store")
    yield from _Chain(store, depth, is_whole).describe(record, 0)


@dataclass(frozen=True)
class _Chain:
    """Describes records and what they were made from, and remembers what has been described."""

    store: Store
    depth: int
    is_whole: bool
    shown: set[str] = field(default_factory=set)
    groups: set[frozenset[str]] = field(default_factory=set)

    def describe(self, record: Record, level: int) -> Iterator[str]:
        """Lines of a record and of its inputs, `level` steps from the start."""
        indent = "  " * level
        self.shown.add(record.path)
        yield f"{indent}{record.path}"
        yield f"{indent}  key {record.key[:KEY_CHARACTERS]}  sha256 {record.sha256[:16]}  made {record.created}"
        inputs = {entry.path for entry in record.inputs}
        spec = {name: value for name, value in record.spec.items() if name not in _HIDDEN}
        yield from self._values(
            indent, {name: value for name, value in spec.items() if not _names_inputs(value, inputs)}
        )
        details = {name: value for name, value in record.details.items() if name != BESIDE}
        yield from (f"{line})" for line in self._values(indent, details, opening="("))
        if level == self.depth:
            return
        sources = _sources(record)
        known = {source: found for source in sources if (found := self.store.record(source)) is not None}
        if sources and not known:
            yield (
                f"{indent}  None of the {len(sources)} artifacts that it was made from is in {self.store.root}: it was "
                f"made elsewhere. Name the store that has them with --store, or make it here."
            )
            return
        for source in sources:
            if source not in known:
                yield f"{indent}  {source}"
                yield f"{indent}    (not in {self.store.root})"
        kinds: dict[str, list[Record]] = {}
        for source, found in known.items():
            kinds.setdefault(_kind(source), []).append(found)
        repeated: list[str] = []
        for kind, records in kinds.items():
            yield from self._inputs(kind, records, level + 1, repeated)
        if repeated:
            yield f"{indent}  shown above: {'; '.join(repeated)}"

    def _inputs(self, kind: str, records: list[Record], level: int, repeated: list[str]) -> Iterator[str]:
        """Lines of the inputs of one kind; what was shown before goes to `repeated`."""
        if self.is_whole or len(records) <= _MANY or kind.partition("/")[0] not in _UNITS:
            for record in records:
                if record.path in self.shown:
                    repeated.append(record.path)
                else:
                    yield from self.describe(record, level)
            return
        group = frozenset(record.path for record in records)
        keys = sorted(record.key[:KEY_CHARACTERS] for record in records)
        title = f"{len(records)} of {kind} (keys {keys[0]} to {keys[-1]})"
        example = next((record for record in records if record.path not in self.shown), None)
        if example is None or group in self.groups:
            repeated.append(title)
            return
        self.groups.add(group)
        yield f"{'  ' * level}{title}, such as:"
        yield from self.describe(example, level)

    def _values(self, indent: str, values: Mapping[str, Any], opening: str = "") -> Iterator[str]:
        """A line of names and values, or one for each where all is printed."""
        shown = [f"{name}: {self._shortened(value)}" for name, value in values.items()]
        for line in shown if self.is_whole else filter(None, [", ".join(shown)]):
            yield f"{indent}  {opening}{line}"

    def _shortened(self, value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        if self.is_whole or len(text) <= _LONG:
            return text
        return f"{text[:_LONG]}... ({len(value)} {'characters' if isinstance(value, str) else 'entries'})"


def _kind(path: str) -> str:
    """What inputs are alike in: their stage, of features what they are of, and whether they are sets."""
    stage, second, *_ = path.split("/")
    return f"{stage}/{second}" if stage == "embeddings" or second == "sets" else stage


def _names_inputs(value: object, inputs: set[str]) -> bool:
    return (
        value in inputs
        if isinstance(value, str)
        else isinstance(value, list) and bool(inputs.intersection(map(str, value)))
    )


def _sources(record: Record) -> list[str]:
    """What an artifact was made from; for a set, its units."""
    if "set" in record.spec:
        return list(record.spec["members"])
    return [entry.path for entry in record.inputs]
