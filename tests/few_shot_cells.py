"""Cells of a few-shot study and the predictions they name, made from which images are classified correctly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.records import FewShotCell, FewShotCells, predictions_schema

RN50 = "open_clip:RN50:openai"


class FakeStudy:
    """Collects cells; `read` gives their predictions and counts how often each is read.

    Every label is 0; a correct prediction is 0, a wrong one 1.
    """

    def __init__(self, **common: Any):
        self.common = {"generator": "g", "encoder_name": "clip", "encoder": RN50, "split": "test"} | common
        self.cells: list[FewShotCells] = []
        self.tables: dict[str, pa.Table] = {}
        self.reads: list[str] = []

    def read(self, path: str) -> pa.Table:
        self.reads.append(path)
        return self.tables[path]

    def add(
        self,
        dataset: str,
        method: str,
        correct: Mapping[int, NDArray[Any]],
        *,
        seeds: list[int] | None = None,
        zero_shot: NDArray[Any] | None = None,
        pool: str | None = None,
        source_ids: NDArray[Any] | None = None,
        runs: list[dict[str, Any]] | None = None,
        n_test: int = 4,
        not_computed: str | None = None,
    ) -> FewShotCells:
        """One method on one data set. correct: by number of shots, bool [n_seeds, N]; none is a method that could not
        be run."""
        path = f"predictions/{dataset}.{method}"
        by_run = np.concatenate([*correct.values()]) if correct else np.zeros((0, n_test), bool)
        n_runs, n = by_run.shape
        zero_shot = np.zeros(n, bool) if zero_shot is None else zero_shot
        schema = predictions_schema(n_runs)
        columns = [
            [f"{dataset}-{i}" for i in range(n)],
            np.arange(n) if source_ids is None else source_ids,
            np.zeros(n, np.int32),
            np.where(zero_shot, 0, 1).astype(np.int32),
            pa.FixedSizeListArray.from_arrays(pa.array(np.where(by_run.T, 0, 1).astype(np.int32).reshape(-1)), n_runs)
            if n_runs
            else pa.array([[]] * n, pa.list_(pa.int32(), 0)),
        ]
        self.tables[path] = pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
        )
        seeds = seeds if seeds is not None else list(range(len(next(iter(correct.values()), []))))
        cells = FewShotCells(
            dataset=dataset,
            pool=pool or dataset,
            method=method,
            n_classes=2,
            n_test=n,
            seeds=seeds,
            zero_shot=100 * float(np.mean(zero_shot)),
            cells=[
                FewShotCell(
                    shots=shots,
                    top1=100 * float(np.mean(of_shots)),
                    top1_per_seed=[100 * float(np.mean(one)) for one in of_shots],
                    runs=runs or [{} for _ in of_shots],
                )
                for shots, of_shots in correct.items()
            ],
            n_encodes_test=2 * n,
            predictions=path,
            not_computed=not_computed,
            **self.common,
        )
        self.cells.append(cells)
        return cells
