"""What can be said of a person's own images without reading them: which files there are, and which labels."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.paths import files_below, is_file, is_folder, kind_of
from pipeline_lib.yaml_files import shortened

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".ppm"})
# Pictures of formats that are not read (`shards.FORMATS`). Left out in silence, a class would be without them.
UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf"}
)
PARQUET_SUFFIXES = frozenset({".parquet"})
# What a local data set of Hugging Face `datasets` consists of; the YAML head of README.md says what its splits are.
DATA_SUFFIXES = IMAGE_SUFFIXES | PARQUET_SUFFIXES | {".arrow", ".csv", ".json", ".jsonl", ".md", ".tar", ".txt", ".zip"}


def parquet_files(pattern: str, where: str, key: str = "parquet") -> list[Path]:
    """The Parquet files that a path, a pattern or a folder names, sorted. Raises ValueError where there are none,
    naming the `key` below `where` that the pattern is the value of."""
    path = Path(pattern)
    if is_folder(pattern):
        files = files_below(path, PARQUET_SUFFIXES)
    elif has_magic(pattern):
        files = sorted(Path(name) for name in glob(pattern, recursive=True))  # noqa: PTH207 -- the pattern may be absolute
        for file in files:
            if not is_file(str(file)):
                raise ValueError(
                    f"{where}.{key}: {file}, which {shortened(pattern)} names, is no file but {kind_of(file)}; let the "
                    f"pattern name Parquet files alone, as *.parquet"
                )
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
        if fault := column_fault(schema, column):
            raise ValueError(f"{where}.label_column: {file} {fault}")
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


def column_fault(schema: pa.Schema, column: str) -> str | None:
    """Why a table has not one column of this name, as the end of a sentence; None where it has."""
    if (n := schema.names.count(column)) == 1:
        return None
    if n:
        return f"has {n} columns named {column!r}; rename all but one"
    return f"has no column {column!r}; it has {', '.join(map(repr, schema.names)) or 'none'}"


def parquet_rows(file: Path, where: str, key: str = "parquet") -> int:
    """The number of rows of one file. Raises ValueError for a file that is no Parquet."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where}.{key}: {file} is no Parquet file that can be read: {error}") from None


def named_images(file: Path, column: str, where: str, key: str = "parquet") -> Iterator[Path]:
    """The image files that rows of a Parquet file name by a path, instead of holding an image's bytes.

    None where there is no such column, or where it holds something else. Raises ValueError for one that is not there,
    or that is not below the Parquet file's folder.
    """
    schema = parquet_schema(file, where)
    if column_fault(schema, column) or not _may_name_files(schema.field(column).type):
        return
    try:
        with pq.ParquetFile(file) as opened:
            for number in range(opened.num_row_groups):
                if not _holds_bytes(opened.metadata.row_group(number), column):
                    for value in opened.read_row_group(number, columns=[column])[column].to_pylist():
                        if (name := image_name(value)) is not None:
                            yield image_beside(file, name)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{where}.{key}: {file} cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}.{key}: {error}") from None


def _may_name_files(kind: pa.DataType) -> bool:
    """Whether images of a column of this type may be paths: texts, or Hugging Face's {bytes, path}."""
    return is_text(kind) or (pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _holds_bytes(group: pq.RowGroupMetaData, column: str) -> bool:
    """Whether every row of a row group has an image's bytes, as far as its statistics say so: then it names no file."""
    chunks = (group.column(number) for number in range(group.num_columns))
    found = next((chunk for chunk in chunks if chunk.path_in_schema == f"{column}.bytes"), None)
    return found is not None and found.statistics is not None and found.statistics.null_count == 0


def image_name(value: Any) -> str | None:
    """The path that stands for an image in a table, None where there is none, or where the image's bytes are there."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else None
    return value if isinstance(value, str) else None


def image_beside(file: Path, name: str) -> Path:
    """The image file that a table names by a path relative to the table's own folder.

    Raises ValueError for a path that leads out of the folder (a table is often someone else's, and what lies elsewhere
    is not), and for what is no file.
    """
    path = file.parent / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(
            f"{file} names the image {shortened(name)}, which leads out of its folder; put the images beside it, or "
            f"their bytes into it"
        )
    if not is_file(str(path)):
        raise ValueError(
            f"{file} names the image {shortened(name)}, which is {kind_of(path)} in its folder; put the "
            f"image there, or its bytes into the column"
        )
    return path


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
