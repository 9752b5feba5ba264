"""Predictions of real images: a column of predicted classes for each classifier, in one table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.records import predictions_schema
from pipeline_lib.store import Artifact, Store

_RUNS, _REASON = b"runs", b"not_computed"


def predictions_table(
    images: pa.Table, labels: NDArray[np.integer[Any]], zero_shot: NDArray[np.integer[Any]], by_run: NDArray[Any]
) -> pa.Table:
    """Predictions of one shard. images: a table with the columns image_id and source_id; labels and zero_shot: integers
    [N]; by_run: integers [N, n_runs]."""
    n_runs = by_run.shape[1]
    flat = pa.array(by_run.astype(np.int32).reshape(-1))
    if n_runs:
        tuned = pa.FixedSizeListArray.from_arrays(flat, n_runs)
    else:
        tuned = pa.ListArray.from_arrays(np.zeros(len(by_run) + 1, np.int32), flat)
    columns = [
        images["image_id"],
        images["source_id"],
        pa.array(labels.astype(np.int32)),
        pa.array(zero_shot.astype(np.int32)),
        tuned,
    ]
    return pa.table(columns, schema=predictions_schema(n_runs))


def write_predictions(
    artifact: Artifact,
    store: Store,
    shards: Sequence[pa.Table],
    runs: Sequence[Mapping[str, Any]] = (),
    reason: str | None = None,
) -> None:
    """Write the predictions of all shards as one table. What each run was fitted to, or the reason why there is no run,
    goes into the schema's metadata."""
    table = pa.concat_tables(shards).combine_chunks()
    if runs:
        table = table.replace_schema_metadata({_RUNS: json.dumps([dict(run) for run in runs], sort_keys=True)})
    elif reason is not None:
        table = table.replace_schema_metadata({_REASON: reason})
    with store.making(artifact) as path:
        pq.write_table(table, path, compression="zstd")


def read_runs(table: pa.Table) -> list[dict[str, Any]]:
    """What each run was fitted to, as `write_predictions` was given it; empty where it was given nothing."""
    runs: list[dict[str, Any]] = json.loads((table.schema.metadata or {}).get(_RUNS, b"[]"))
    return runs


def read_reason(table: pa.Table) -> str | None:
    """Why there is no run, as `write_predictions` was given it."""
    reason = (table.schema.metadata or {}).get(_REASON)
    return None if reason is None else reason.decode()


def by_run(table: pa.Table) -> NDArray[np.int64]:
    """Predicted classes, int64 [n_runs, N]."""
    column = table["tuned"].combine_chunks()
    predicted: NDArray[np.int64] = (
        column.flatten().to_numpy().reshape(len(table), getattr(column.type, "list_size", 0)).T.astype(np.int64)
    )
    return predicted
