"""Embeddings: frozen, L2-normalised image features, computed once per (image, encoder)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.records import embeddings_schema
from pipeline_lib.store import Store

ROWS_PER_GROUP = 10_000
COPIED = ("image_id", "class_name", "prompt", "seed", "source_id", "valid")  # columns taken over from the shard


def write_embeddings(columns: pa.Table, features: NDArray[np.float32], path: Path) -> None:
    """Write features float [N, d] (stored as float16) beside the copied columns of their shard.

    Raises ValueError for a non-finite feature of a valid image.
    """
    bad = ~np.isfinite(features).all(axis=1) & columns["valid"].to_numpy()
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {len(bad)} features are not finite: the encoder's weights are damaged")
    schema = embeddings_schema(features.shape[1])
    values = pa.array(np.nan_to_num(features).astype(np.float16).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    table = pa.table([*(columns[name].cast(schema.field(name).type) for name in COPIED), column], schema=schema)
    pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of several shards, in order: `table` has the columns `COPIED`, `features` is float16 [N, d]."""

    table: pa.Table
    features: NDArray[np.float16]

    def class_index(self, class_names: Sequence[str]) -> NDArray[np.int32]:
        """int32 [N]: position of each image's class in `class_names`. Raises ValueError for a class not among them."""
        position = {name: index for index, name in enumerate(class_names)}
        column = self.table["class_name"].combine_chunks()
        unknown = [name for name in column.dictionary.to_pylist() if name not in position]
        if unknown:
            raise ValueError(f"images of {unknown[:5]} were found, the classes are {list(class_names)[:5]} ...")
        lookup: NDArray[np.int32] = np.array([position[name] for name in column.dictionary.to_pylist()], np.int32)
        class_index: NDArray[np.int32] = lookup[column.indices.to_numpy()]
        return class_index


def read_embeddings(store: Store, paths: Sequence[str]) -> Features:
    """Read the embeddings of several shards (paths relative to the store)."""
    tables = [pq.read_table(store.path(path)) for path in paths]
    table = pa.concat_tables(tables).unify_dictionaries()
    column = table["embedding"].combine_chunks()
    features = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    return Features(table.select(list(COPIED)), features)
