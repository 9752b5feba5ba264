"""The file of a method's classifiers: what is written is read, and what is not one is refused."""

from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.classifiers.head import Head, save_head
from pipeline_lib.classifiers.runs import Run, load_runs, save_runs
from pipeline_lib.classifiers.tip_adapter import TipAdapter

NAMES = ("a", "b/c", "ü")


def head(seed: int, names: tuple[str, ...] = NAMES) -> Head:
    rng = np.random.default_rng(seed)
    return Head(rng.normal(size=(len(names), 4)), rng.normal(size=len(names)), names)


def adapter(seed: int, k: int) -> TipAdapter:
    rng = np.random.default_rng(seed)
    return TipAdapter(head(0), rng.normal(size=(k, 4)), rng.integers(0, 3, k), alpha=1.5 + seed, beta=2.25)


def test_heads_come_back_in_their_order_with_their_details(tmp_path: Path):
    runs = [Run(16, 1, head(1), {"steps": 7}), Run(2, 0, head(2), {"steps": 3}), Run(2, 1, head(3))]
    save_runs(tmp_path / "runs", runs)
    found = load_runs(tmp_path / "runs", NAMES)
    assert [(run.shots, run.seed, run.details) for run in found] == [
        (16, 1, {"steps": 7}),
        (2, 0, {"steps": 3}),
        (2, 1, {}),
    ]
    for one, other in zip(found, runs, strict=True):
        assert isinstance(one.classifier, Head) and isinstance(other.classifier, Head)
        np.testing.assert_array_equal(one.classifier.weight, other.classifier.weight)
        np.testing.assert_array_equal(one.classifier.bias, other.classifier.bias)


def test_adapters_of_different_sizes_say_the_same_as_before(tmp_path: Path):
    runs = [Run(1, 0, adapter(0, 3)), Run(16, 0, adapter(1, 48))]
    save_runs(tmp_path / "runs", runs, {"key": "k"})
    features = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
    for one, other in zip(load_runs(tmp_path / "runs", NAMES), runs, strict=True):
        np.testing.assert_array_equal(one.classifier.logits(features), other.classifier.logits(features))
    save_runs(tmp_path / "again", runs, {"key": "k"})
    assert (tmp_path / "runs").read_bytes() == (tmp_path / "again").read_bytes()


def test_what_would_be_read_as_something_else_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="give each once"):
        save_runs(tmp_path / "runs", [Run(1, 0, head(1)), Run(1, 0, head(2))])
    with pytest.raises(ValueError, match="2 lists of classes"):
        save_runs(tmp_path / "runs", [Run(1, 0, head(1)), Run(1, 1, head(2, ("a", "b")))])
    with pytest.raises(ValueError, match="0 lists of classes"):
        save_runs(tmp_path / "runs", [])
    save_runs(tmp_path / "runs", [Run(1, 0, head(1))])
    with pytest.raises(ValueError, match="not the 3 that are asked for"):
        load_runs(tmp_path / "runs", NAMES[::-1])
    save_head(tmp_path / "head", head(1))
    with pytest.raises(ValueError, match="holds no runs"):
        load_runs(tmp_path / "head", NAMES)
