"""Images in tables: Parquet files, and whatever Hugging Face `datasets` loads."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.datasets.loaders.split import Raw, RealSplit
from pipeline_lib.datasets.own_data import class_label_names, column_fault, image_beside, image_name
from pipeline_lib.errors import UserError
from pipeline_lib.paths import kind_of
from pipeline_lib.yaml_files import shortened


def parquet(files: Sequence[Path], image_column: str, label_column: str) -> RealSplit:
    """Rows of Parquet files, in order. Images are bytes, or Hugging Face's {bytes, path}; a path is taken relative to
    the file."""
    labels: list[str] = []
    groups: list[tuple[Path, int, int, int]] = []  # file, row group, its first row in the file, its number of rows
    for file in files:
        try:
            schema, metadata = pq.read_schema(file), pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file} is no Parquet file that can be read: {error}; write it again") from None
        for column in (image_column, label_column):
            if fault := column_fault(schema, column):
                raise UserError(f"{file} {fault}")
        names = class_label_names(schema, label_column)
        labels += [
            _label(value, names) for value in pq.read_table(file, columns=[label_column])[label_column].to_pylist()
        ]
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        firsts = accumulate(sizes, initial=0)
        groups += [(file, group, first, size) for group, (first, size) in enumerate(zip(firsts, sizes, strict=False))]
    places = [(group, row) for group, (*_, size) in enumerate(groups) for row in range(size)]
    lock = threading.Lock()

    @lru_cache(maxsize=2)  # images are read in order, by a few threads
    def images_of(group: int) -> pa.ChunkedArray:
        file, number, *_ = groups[group]
        with pq.ParquetFile(file) as opened:
            return opened.read_row_group(number, columns=[image_column])[image_column]

    def read(index: int) -> Raw:
        group, row = places[index]
        with lock:
            value = images_of(group)[row].as_py()
        if (name := image_name(value)) is not None:
            return image_beside(groups[group][0], name).read_bytes()
        return _bytes_of(value)

    return RealSplit(
        labels=labels,
        paths=[f"{groups[group][0].name}/{groups[group][2] + row}" for group, row in places],
        read=read,
        source_ids=range(len(labels)),
        all_labels=frozenset(labels),
    )


def hugging_face(
    source: str, revision: str | None, config: str | None, split: str, image_column: str, label_column: str
) -> RealSplit:
    """A split of a data set on the Hugging Face hub, or in a folder."""
    table = _load(source, revision, config, split)
    absent = [column for column in (image_column, label_column) if column not in table.column_names]
    if absent:
        raise UserError(f"{source} has no column {absent[0]!r}; it has {', '.join(map(repr, table.column_names))}")
    import datasets

    feature = table.features[label_column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    labels = [_label(value, names) for value in table[label_column]]
    encoded = table.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    lock = threading.Lock()

    def read(index: int) -> Raw:
        with lock:
            value = encoded[index][image_column]
        if (name := image_name(value)) is not None:
            return _image_of_loaded(Path(source), name).read_bytes()
        return _bytes_of(value)

    return RealSplit(
        labels=labels,
        paths=[f"{split}/{index}" for index in range(len(labels))],
        read=read,
        source_ids=range(len(labels)),
        all_labels=frozenset(labels) if names is None else frozenset(names),
    )


def _load(source: str, revision: str | None, config: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: Hugging Face `datasets` is not installed: pip install datasets") from None
    try:
        return datasets.load_dataset(source, config, split=split, revision=revision)
    except ValueError as error:  # an unknown configuration or split: the message lists what there is
        raise UserError(f"{source}: {error}") from None
    except (OSError, datasets.exceptions.DatasetsError, RuntimeError) as error:
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"{source}: the data set cannot be loaded ({type(error).__name__}: {error}). Without access to the hub, "
            f"run `hf download {source} --repo-type dataset{at} --local-dir FOLDER` elsewhere and name FOLDER as id"
        ) from None


def _label(value: Any, names: Sequence[str] | None) -> str:
    """A label as text: by name where its number has one. Hidden labels, -1, have none and so fit no class."""
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value)


def _image_of_loaded(source: Path, name: str) -> Path:
    """The file of an image that `datasets` names by its path: in the data set's folder, or what was downloaded or
    unpacked from it. Raises ValueError for one that lies elsewhere, and for what is no file."""
    from datasets.config import DOWNLOADED_DATASETS_PATH, HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    path, caches = source / name, (HF_DATASETS_CACHE, DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    if not any(path.resolve().is_relative_to(Path(folder).resolve()) for folder in (source, *caches)):
        raise ValueError(f"{shortened(name)} leads out of the data set's folder; put the images there")
    if not path.is_file():
        raise ValueError(f"{shortened(name)} is {kind_of(path)}; put the image there")
    return path


def _bytes_of(value: Any) -> bytes:
    """The bytes of a table's image, from either form that it may have. Raises ValueError for others."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return content
    raise ValueError(f"neither bytes nor a path, but {type(content).__name__}")
