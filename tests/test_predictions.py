"""Tables of predictions: columns by run, and what each run was fitted to."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib.predictions import by_run, predictions_table, read_runs, write_predictions
from pipeline_lib.store import Artifact, Store


def shard(first: int, n: int, runs: int) -> pa.Table:
    """Images `first` to `first + n`; run r says that image i is of class 10 r + i."""
    numbers = np.arange(first, first + n)
    images = pa.table({"image_id": [f"i{number}" for number in numbers], "source_id": pa.array(numbers)})
    return predictions_table(images, numbers % 3, numbers % 2, numbers[:, None] + 10 * np.arange(runs))


@pytest.mark.parametrize("runs", [0, 1, 3])
def test_runs_are_rows_whatever_the_shards(tmp_path: Path, runs: int):
    """Of an encoder without batch norm there is no run: the table of Table 6 says so."""
    store, artifact = Store(tmp_path), Artifact("predictions/x", {"stage": "predictions"}, ".parquet")
    details = [{"n_real": run} for run in range(runs)]
    write_predictions(artifact, store, [shard(0, 4, runs), shard(4, 2, runs)], details)
    table = pq.read_table(store.path(artifact))
    assert by_run(table).shape == (runs, 6)
    np.testing.assert_array_equal(by_run(table), 10 * np.arange(runs)[:, None] + np.arange(6))
    assert table["label"].to_pylist() == [0, 1, 2, 0, 1, 2]
    assert table["zero_shot"].to_pylist() == [0, 1, 0, 1, 0, 1]
    assert table["source_id"].to_pylist() == list(range(6))
    assert read_runs(table) == details
