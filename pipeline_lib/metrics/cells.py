"""From predictions to one cell of a table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.metrics.classification import (
    PairedDifference,
    paired_bootstrap_gain,
    paired_difference,
    per_class_top1,
    top1,
)
from pipeline_lib.predictions import by_run
from pipeline_lib.records import Cell


def predicted(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Labels [N], zero-shot predictions [1, N] and tuned predictions [n_seeds, N] of a predictions table."""
    return (
        table["label"].to_numpy().astype(np.int64),
        table["zero_shot"].to_numpy().astype(np.int64)[None],
        by_run(table),
    )


def evaluate(spec: Mapping[str, Any], table: pa.Table, n_kept: int) -> Cell:
    """Top-1 of the zero-shot and the tuned heads, the gain with its 95% paired bootstrap interval, and per class."""
    labels, zero_shot, tuned = predicted(table)
    gain = paired_bootstrap_gain(tuned, zero_shot, labels, resamples=spec["bootstrap_resamples"])
    names = spec["class_names"]
    zero_shot_per_class, tuned_per_class = (
        {
            name: None if np.isnan(value) else round(float(value), 4)
            for name, value in zip(names, per_class_top1(predictions, labels, len(names)), strict=True)
        }
        for predictions in (zero_shot, tuned)
    )
    return Cell(
        dataset=spec["dataset"],
        task=spec["task"],
        pool=spec["pool"],
        strategy=spec["strategy"],
        clip_filter=spec["clip_filter"],
        loss=spec["loss"],
        n_classes=len(names),
        n_test=len(labels),
        images_per_class=spec["images_per_class"],
        n_kept=n_kept,
        seeds=spec["seeds"],
        clip=top1(zero_shot, labels),
        clip_syn=top1(tuned, labels),
        clip_syn_per_seed=[top1(tuned[i : i + 1], labels) for i in range(len(tuned))],
        gain=gain.value,
        gain_low=gain.low,
        gain_high=gain.high,
        zero_shot_per_class=zero_shot_per_class,
        tuned_per_class=tuned_per_class,
        generator=spec["generator"],
        encoder_name=spec["encoder_name"],
        encoder=spec["encoder"],
        split=spec["split"],
        predictions=spec["predictions"],
    )


def difference(cell: Cell, table: pa.Table) -> PairedDifference:
    """What the method of a cell gains on each image, for averages over data sets."""
    labels, zero_shot, tuned = predicted(table)
    return PairedDifference(cell.pool, table["source_id"].to_numpy(), paired_difference(tuned, zero_shot, labels))
