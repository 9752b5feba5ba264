"""Which test images few-shot methods classify correctly: what accuracies and their differences are sums of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.metrics.cells import predicted
from pipeline_lib.records import FewShotCells

Read = Callable[[str], pa.Table]
_ROUNDING = 0.01  # percentage points: a cell's accuracy may have been rounded


@dataclass(frozen=True, eq=False)
class Outcome:
    """Which test images of one data set a method classifies correctly at one number of shots.

    pool: name of the collection of real images that the test images come from; source_ids: int64 [N], which image of
    the pool each is (data sets of one pool that name the same id share that image); seeds: what was repeated, empty for
    a method without shots or chance, which has one row and counts for every seed; correct: bool [n_seeds, N].

    Raises ValueError for other shapes.
    """

    dataset: str
    pool: str
    source_ids: NDArray[np.int64]
    seeds: tuple[int, ...]
    correct: NDArray[np.bool_]

    def __post_init__(self) -> None:
        object.__setattr__(self, "source_ids", np.asarray(self.source_ids, dtype=np.int64))
        object.__setattr__(self, "correct", np.asarray(self.correct, dtype=np.bool_))
        shape = (len(self.seeds) or 1, *self.source_ids.shape)
        if self.source_ids.ndim != 1 or not len(self.source_ids) or self.correct.shape != shape:
            raise ValueError(
                f"{self.dataset}: source_ids have shape {self.source_ids.shape}, correct {self.correct.shape}, with "
                f"{len(self.seeds)} seeds; allowed is [N], N at least 1, and [n_seeds, N], one row without seeds"
            )


Terms = list[tuple[float, Outcome]]  # weights of runs, as `pipeline_lib.metrics.few_shot.contrast` sums them


class Outcomes:
    """The runs of all cells; each table of predictions, read(cells.predictions), is read once.

    Raises ValueError for cells of several encoders or splits: no row says which it is of.
    """

    def __init__(self, cells: Sequence[FewShotCells], read: Read):
        kinds = sorted({(one.encoder_name, one.split) for one in cells})
        if len(kinds) != 1:
            raise ValueError(
                f"cells are of these encoders and splits: {kinds}; give cells of one encoder and one split"
            )
        self.cells = {(one.dataset, one.method): one for one in cells}
        self.datasets = list(dict.fromkeys(one.dataset for one in cells))
        self._read = read
        self._outcomes: dict[tuple[str, str], dict[int, Outcome]] = {}

    @property
    def dataset(self) -> str:
        """The only data set. Raises ValueError where there are several."""
        if len(self.datasets) != 1:
            raise ValueError(f"cells are of the data sets {self.datasets}; this table is of one, give its cells alone")
        return self.datasets[0]

    def cells_of(self, dataset: str, method: str) -> FewShotCells:
        """One method on one data set."""
        if (dataset, method) not in self.cells:
            raise ValueError(f"there are no cells of {method} on {dataset}; give them, or why they are missing")
        return self.cells[dataset, method]

    def shots(self, dataset: str, method: str) -> list[int]:
        """The numbers of shots of a method, ascending."""
        return sorted(cell.shots for cell in self.cells_of(dataset, method).cells)

    def not_computed(self, dataset: str, method: str) -> str | None:
        """Why a method has no cells on a data set; None where it has."""
        return self.cells_of(dataset, method).not_computed

    def outcome(self, dataset: str, method: str, shots: int) -> Outcome:
        """One method at one number of shots; zero-shot CLIP, which every table of predictions has, at 0."""
        if (dataset, method) not in self._outcomes:
            zero_shot = method == "zero_shot"
            cells = self.cells_of(dataset, "ct_init" if zero_shot else method)
            table = self._read(cells.predictions)
            self._outcomes[dataset, method] = (
                {0: zero_shot_outcome(cells, table)} if zero_shot else outcomes_of(cells, table)
            )
        runs = self._outcomes[dataset, method]
        if shots not in runs:
            raise ValueError(f"{method} on {dataset} has no cell at {shots} shots, only at {sorted(runs)}")
        return runs[shots]

    def mean(self, method: str, datasets: Sequence[str], shots: Sequence[int]) -> Terms:
        """The mean accuracy of a method: each data set and each number of shots counts once."""
        weight = 1 / (len(datasets) * len(shots))
        return [(weight, self.outcome(dataset, method, n)) for dataset in datasets for n in shots]

    def gain(self, method: str, over: str, datasets: Sequence[str], shots: Sequence[int]) -> Terms:
        """The mean accuracy of a method minus that of another."""
        subtracted = [(-weight, run) for weight, run in self.mean(over, datasets, shots)]
        return self.mean(method, datasets, shots) + subtracted


def outcomes_of(cells: FewShotCells, table: pa.Table) -> dict[int, Outcome]:
    """The runs of a method by number of shots. table: the predictions that `cells` names.

    Raises ValueError where the two do not belong together.
    """
    labels, _, tuned = predicted(table)
    n_seeds = len(cells.seeds)
    if len(tuned) != n_seeds * len(cells.cells):
        raise ValueError(
            f"{cells.predictions} has {len(tuned)} predictions of each image; {cells.method} on {cells.dataset} needs "
            f"one for each of {len(cells.cells)} numbers of shots and {n_seeds} seeds"
        )
    correct = (tuned == labels).reshape(len(cells.cells), n_seeds, len(labels))
    for cell, of_shots in zip(cells.cells, correct, strict=True):
        found = 100 * of_shots.mean(axis=1)
        if not np.allclose(found, cell.top1_per_seed, rtol=0, atol=_ROUNDING):
            raise ValueError(
                f"{cells.predictions} gives {cells.method} on {cells.dataset} at {cell.shots} shots the accuracies "
                f"{found.round(2).tolist()}; its record says {cell.top1_per_seed}"
            )
    source_ids = table["source_id"].to_numpy()
    return {
        cell.shots: Outcome(cells.dataset, cells.pool, source_ids, tuple(cells.seeds), of_shots)
        for cell, of_shots in zip(cells.cells, correct, strict=True)
    }


def zero_shot_outcome(cells: FewShotCells, table: pa.Table) -> Outcome:
    """Zero-shot CLIP on the data set of `cells`: it has no shots, so no seeds. table: as in `outcomes_of`."""
    labels, zero_shot, _ = predicted(table)
    return Outcome(cells.dataset, cells.pool, table["source_id"].to_numpy(), (), zero_shot == labels)
