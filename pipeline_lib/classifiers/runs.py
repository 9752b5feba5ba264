"""What one method fitted on one data set, for every number of shots and every seed, and the file that holds it all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.classifiers.head import Head, read_tensors, write_tensors
from pipeline_lib.classifiers.tip_adapter import TipAdapter

_HEAD = {"weight", "bias"}
_CACHE = {"keys", "labels"}
_REASON = "not_computed"


@dataclass(frozen=True, eq=False)
class Run:
    """One classifier: fitted to `shots` images per class, drawn by `seed`.

    details: what it was fitted to and what was chosen on validation images, as JSON values.
    """

    shots: int
    seed: int
    classifier: Head | TipAdapter
    details: Mapping[str, Any] = field(default_factory=dict)


def save_runs(path: str | os.PathLike[str], runs: Sequence[Run], metadata: Mapping[str, str] | None = None) -> None:
    """Write runs, in order, as safetensors: tensors `SHOTS.SEED.weight` and `.bias` of a head, `.keys` and `.labels` of
    a Tip-Adapter, whose zero-shot head (the same in all runs) is `weight` and `bias`; the rest is JSON in the metadata.

    Raises ValueError without runs, for a pair of shots and seed that comes twice, and for heads of different classes.
    """
    names = {_head_of(run).class_names for run in runs}
    pairs = [(run.shots, run.seed) for run in runs]
    if len(names) != 1 or len(set(pairs)) != len(pairs):
        raise ValueError(f"runs of (shots, seed) {pairs}, {len(names)} lists of classes; give each once, of the same")
    tensors: dict[str, NDArray[Any]] = {}
    listed = []
    for run in runs:
        prefix, classifier = f"{run.shots}.{run.seed}", run.classifier
        entry: dict[str, Any] = {"shots": run.shots, "seed": run.seed, "details": dict(run.details)}
        if isinstance(classifier, Head):
            tensors |= {f"{prefix}.weight": classifier.weight, f"{prefix}.bias": classifier.bias}
        else:
            tensors |= {f"{prefix}.keys": classifier.keys, f"{prefix}.labels": classifier.labels}
            tensors |= {"weight": classifier.head.weight, "bias": classifier.head.bias}
            entry |= {"alpha": classifier.alpha, "beta": classifier.beta}
        listed.append(entry)
    text = {**(metadata or {}), "runs": json.dumps(listed, sort_keys=True)}
    write_tensors(path, tensors, names.pop(), text)


def save_reason(
    path: str | os.PathLike[str], reason: str, class_names: Sequence[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write, in place of runs, why there are none."""
    write_tensors(path, {}, class_names, {**(metadata or {}), "runs": "[]", _REASON: reason})


def load_reason(path: str | os.PathLike[str]) -> str | None:
    """Why a file holds no runs, as `save_reason` wrote it; None for one with runs."""
    return read_tensors(path)[1].get(_REASON)


def load_runs(path: str | os.PathLike[str], class_names: Sequence[str]) -> list[Run]:
    """Read what `save_runs` wrote, in its order, for exactly these classes; of `save_reason` nothing. Raises ValueError
    for anything else."""
    tensors, text = read_tensors(path)
    if json.loads(text.get("class_names", "null")) != list(class_names):
        raise ValueError(f"{path}: its classes are not the {len(class_names)} that are asked for; fit it again")
    if "runs" not in text:
        raise ValueError(f"{path}: the file holds no runs; fit it again")
    runs = []
    for entry in json.loads(text["runs"]):
        prefix = f"{entry['shots']}.{entry['seed']}"
        parts = {name.rpartition(".")[2] for name in tensors if name.rpartition(".")[0] == prefix}
        classifier: Head | TipAdapter
        if parts == _HEAD:
            classifier = Head(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"], tuple(class_names))
        elif parts == _CACHE:
            head = Head(tensors["weight"], tensors["bias"], tuple(class_names))
            keys, labels = tensors[f"{prefix}.keys"], tensors[f"{prefix}.labels"].astype(np.int32)
            classifier = TipAdapter(head, keys, labels, entry["alpha"], entry["beta"])
        else:
            raise ValueError(f"{path}: tensors of {prefix} are {sorted(parts)}; allowed are a head's or a cache's")
        runs.append(Run(entry["shots"], entry["seed"], classifier, entry["details"]))
    return runs


def _head_of(run: Run) -> Head:
    return run.classifier if isinstance(run.classifier, Head) else run.classifier.head
