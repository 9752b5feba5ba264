"""What can be said of a person's own images without reading them: which files there are, and which labels."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.digests import files_below, is_file, is_folder
from pipeline_lib.yaml_files import shortened

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PARQUET_SUFFIXES = frozenset({".parquet"})
# What a local data set of Hugging Face `datasets` consists of; the YAML head of README.md says what its splits are.
DATA_SUFFIXES = IMAGE_SUFFIXES | PARQUET_SUFFIXES | {".arrow", ".csv", ".json", ".jsonl", ".md", ".tar", ".txt", ".zip"}


def sub_folders(folder: Path) -> list[str]:
    """Names of the visible sub-folders, in alphabetical order."""
    with os.scandir(folder) as entries:  # tells folders from files without a look at each of 50,000 files
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def parquet_files(pattern: str, where: str, key: str = "parquet") -> list[Path]:
    """The Parquet files that a path, a pattern or a folder names, sorted. Raises ValueError where there are none,
    naming the `key` below `where` that the pattern is the value of."""
    path = Path(pattern)
    if is_folder(pattern):
        files = files_below(path, PARQUET_SUFFIXES)
    elif has_magic(pattern):
        files = sorted(Path(name) for name in glob(pattern, recursive=True))  # noqa: PTH207 -- the pattern may be absolute
    else:
        files = [path] if is_file(pattern) else []
    if not files:
        raise ValueError(
            f"{where}.{key}: {shortened(pattern)} names no file that is there; name a Parquet file, a pattern such as "
            f"birds/*.parquet, or a folder of Parquet files"
        )
    return files


@dataclass(frozen=True)
class Labels:
    """The labels of a column: their names, or the numbers as text where the files name none."""

    names: tuple[str, ...]
    are_numbers: bool


def parquet_labels(files: Sequence[Path], column: str, where: str) -> Labels:
    """The labels of Parquet files: the names that Hugging Face's ClassLabel metadata has in the order of its numbers,
    else the distinct texts in alphabetical order, else the distinct numbers.

    Raises ValueError for files that cannot be read and for a column that is missing or neither text nor whole numbers.
    """
    schemas = [parquet_schema(file, where) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        if column not in schema.names:
            raise ValueError(
                f"{where}.label_column: {file} has no column {column!r}; it has "
                f"{', '.join(map(repr, schema.names)) or 'none'}"
            )
    if names := class_label_names(schemas[0], column):
        return Labels(tuple(names), are_numbers=False)
    values: set[str | int] = set()
    are_numbers = pa.types.is_integer(schemas[0].field(column).type)
    for file, schema in zip(files, schemas, strict=True):
        kind = schema.field(column).type
        if not (pa.types.is_integer(kind) or is_text(kind)):
            raise ValueError(
                f"{where}.label_column: {column!r} of {file} holds {kind}; text or whole numbers are needed"
            )
        if pa.types.is_integer(kind) != are_numbers:
            raise ValueError(
                f"{where}.label_column: {column!r} holds {schemas[0].field(column).type} in {files[0]} and {kind} in "
                f"{file}; write the same in all files"
            )
        try:
            values.update(pc.unique(pq.read_table(file, columns=[column])[column]).to_pylist())
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{where}.parquet: {file} cannot be read: {error}") from None
    if None in values:
        raise ValueError(f"{where}.label_column: {column!r} has rows without a label; fill them in or remove them")
    return Labels(tuple(map(str, sorted(values))), are_numbers)  # type: ignore[type-var]


def parquet_schema(file: Path, where: str) -> pa.Schema:
    """The schema of one file. Raises ValueError for a file that is no Parquet."""
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where}.parquet: {file} is no Parquet file that can be read: {error}") from None


def parquet_rows(file: Path, where: str, key: str = "parquet") -> int:
    """The number of rows of one file. Raises ValueError for a file that is no Parquet."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where}.{key}: {file} is no Parquet file that can be read: {error}") from None


def class_label_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of a column's classes from the metadata that Hugging Face `datasets` writes, if it has them."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):  # no such metadata, or others under the same name
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text, plain or by dictionary."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
