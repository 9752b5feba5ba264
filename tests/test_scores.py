"""Scores against a float64 softmax, and their bounds; the stages that read features shard by shard."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib import scores, stages
from pipeline_lib.classifiers.head import Head, save_head, save_heads, zero_shot_head
from pipeline_lib.embeddings import write_embeddings
from pipeline_lib.records import MANIFEST, SCORES, predictions_schema
from pipeline_lib.scores import score
from pipeline_lib.store import Artifact, Store


def make(n=500, d=16, n_classes=7, seed=0):
    rng = np.random.default_rng(seed)
    head = zero_shot_head(rng.normal(size=(n_classes, 1, d)), 100.0, [str(i) for i in range(n_classes)])
    features = rng.normal(size=(n, d))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), rng.integers(0, n_classes, n), head


def test_agrees_with_float64():
    features, own, head = make()
    logits = features.astype(float) @ head.weight.astype(float).T
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    result = score(features, own, head)
    np.testing.assert_allclose(result.own_probability, p[np.arange(500), own], rtol=2e-4, atol=1e-12)
    np.testing.assert_allclose(result.max_probability, p.max(axis=1), rtol=2e-4)
    np.testing.assert_array_equal(result.predicted_class, p.argmax(axis=1))
    assert result.own_probability.dtype == result.max_probability.dtype == np.float32
    assert result.predicted_class.dtype == np.int32


def test_two_classes_in_closed_form():
    # cosines 0.6 and 0.8: the logits differ by 20 at CLIP's scale of 100
    head = zero_shot_head(np.eye(2)[:, None], 100.0, ["x", "y"])
    result = score(np.array([[0.6, 0.8]] * 2), np.array([0, 1]), head)
    np.testing.assert_allclose(result.own_probability, [1 / (1 + np.exp(20)), 1 / (1 + np.exp(-20))], rtol=1e-4)
    np.testing.assert_array_equal(result.predicted_class, [1, 1])


def test_extreme_logits_do_not_overflow_and_ties_go_to_the_first():
    head = Head(np.array([[1e4], [1e4], [-1e4]]), np.zeros(3), ("a", "b", "c"))
    result = score(np.ones((3, 1)), np.array([0, 1, 2]), head)
    np.testing.assert_array_equal(result.own_probability, [0.5, 0.5, 0.0])
    np.testing.assert_array_equal(result.predicted_class, [0, 0, 0])


def test_bias_counts():
    head = Head(np.zeros((2, 1)), np.array([0.0, np.log(3.0)]), ("a", "b"))
    assert score(np.ones((1, 1)), np.array([1]), head).own_probability == pytest.approx(0.75)


def test_blocks_do_not_change_the_result(monkeypatch):
    features, own, head = make()
    whole = score(features, own, head)
    monkeypatch.setattr(scores, "_BLOCK_VALUES", 16 * 33)  # 33 rows: the last block is partial
    parts = score(features, own, head)
    np.testing.assert_allclose(parts.own_probability, whole.own_probability, rtol=1e-4)
    np.testing.assert_array_equal(parts.predicted_class, whole.predicted_class)


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr(scores, "_BLOCK_VALUES", 64_000)
    n, n_classes = 50_000, 64
    head = Head(np.ones((n_classes, 2)), np.zeros(n_classes), tuple(map(str, range(n_classes))))
    features, own = np.ones((n, 2), np.float16), np.zeros(n, np.int32)
    tracemalloc.start()
    score(features, own, head)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * n + 8 * 64_000 * 4  # the result and a few blocks; all logits at once would be 12.8 MB
    assert peak > 12 * n


def test_features_that_are_not_finite_are_marked_and_spoil_no_other_row():
    features, own, head = make()
    clean = score(features, own, head)
    features[3], features[8, 0], features[9, 0] = np.nan, np.inf, -np.inf
    result = score(features, own, head)
    bad = np.zeros(500, bool)
    bad[[3, 8, 9]] = True
    assert np.isnan(result.own_probability[bad]).all() and np.isnan(result.max_probability[bad]).all()
    assert (result.predicted_class[bad] == -1).all()
    np.testing.assert_array_equal(result.own_probability[~bad], clean.own_probability[~bad])


def test_no_images_give_no_scores():
    _, _, head = make()
    result = score(np.empty((0, 16), np.float16), np.empty(0, np.int32), head)
    assert len(result.own_probability) == len(result.predicted_class) == len(result.max_probability) == 0


@pytest.mark.parametrize(
    "features, own, message",
    [
        (np.ones((2, 15)), np.zeros(2, int), r"takes \[N, 16\]"),
        (np.ones((2, 16)), np.zeros(3, int), "one integer for each of 2"),
        (np.ones((2, 16)), np.zeros(2), "one integer"),
        (np.ones((2, 16)), np.array([0, 7]), "classes 0 to 6"),
        (np.ones((2, 16)), np.array([-1, 0]), "from -1 to 0"),
    ],
)
def test_bad_input_is_named(features, own, message):
    with pytest.raises(ValueError, match=message):
        score(features, own, make()[2])


# --- the stages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Features of three shards, each with classes and prompts of its own, and a head."""
    features, own, head = make()
    for name, rows in (("a", slice(0, 200)), ("b", slice(200, 201)), ("c", slice(201, 500))):
        n = rows.stop - rows.start
        table = pa.table(
            {
                "image_id": [f"i{number}" for number in range(rows.start, rows.stop)],
                "class_name": [str(index) for index in own[rows]],
                "prompt": [f"prompt {index} of {name}" for index in own[rows]],
                "seed": pa.array(range(rows.start, rows.stop), pa.int64()),
                "source_id": pa.array(range(rows.start, rows.stop), pa.int64()),
                "valid": [True] * n,
            }
        )
        write_embeddings(table, features[rows], tmp_path / f"{name}.parquet")
    save_head(tmp_path / "head", head)
    save_heads(tmp_path / "tuned", {seed: make(seed=seed)[2] for seed in (5, 6)})
    monkeypatch.setattr(stages, "member_paths", lambda *_: ["a.parquet", "b.parquet", "c.parquet"])
    return Store(tmp_path)


def run(stage: str, store: Store, spec: dict, **location: str) -> Artifact:
    artifact = Artifact(stage, {"stage": stage, "class_names": [str(i) for i in range(7)], **spec}, ".parquet")
    artifact = Artifact(stage, artifact.spec, ".parquet", location=location)
    stages.STAGES[stage](artifact, store)
    return artifact


def test_scores_of_shards_are_those_of_all_images(store: Store):
    """One table in order, whatever the shards; dictionaries of different shards are merged."""
    artifact = run("scores", store, {"embeddings": ["any"], "head": "head"})
    table = pq.read_table(store.path(artifact))
    features, own, head = make()
    expected = score(features.astype(np.float16), own, head)
    assert table.schema.equals(SCORES)
    assert table["image_id"].to_pylist() == [f"i{number}" for number in range(500)]
    np.testing.assert_array_equal(table["class_index"], own)
    np.testing.assert_array_equal(table["predicted_class"], expected.predicted_class)
    np.testing.assert_allclose(table["own_probability"], expected.own_probability, rtol=1e-4)
    np.testing.assert_allclose(table["max_probability"], expected.max_probability, rtol=1e-4)
    names = ["a"] * 200 + ["b"] + ["c"] * 299
    assert table["prompt"].to_pylist() == [f"prompt {i} of {name}" for i, name in zip(own, names, strict=True)]
    assert pq.read_metadata(store.path(artifact)).num_row_groups == 1


def test_predictions_of_shards_are_those_of_all_images(store: Store):
    """The zero-shot head's and each seed's, in the order of the seeds."""
    artifact = run("predictions", store, {"embeddings": "any", "head": "head", "classifier": "tuned"})
    table = pq.read_table(store.path(artifact))
    features, own, head = make()
    half = features.astype(np.float16)
    assert table.schema.equals(predictions_schema(2))
    np.testing.assert_array_equal(table["label"], own)
    np.testing.assert_array_equal(table["source_id"], range(500))
    np.testing.assert_array_equal(table["zero_shot"], head.logits(half).argmax(axis=1))
    tuned = np.stack([make(seed=seed)[2].logits(half).argmax(axis=1) for seed in (5, 6)], axis=1)
    np.testing.assert_array_equal(table["tuned"].to_pylist(), tuned)


def test_classifiers_are_tuned_on_the_kept_images(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Features and labels of the manifest's kept rows, across shards, on the device that the configuration names."""
    pytest.importorskip("torch")
    from pipeline_lib.classifiers import tuning

    features, own, _ = make()
    kept = np.random.default_rng(3).random(500) < 0.4
    columns = {field.name: pa.nulls(500, field.type) for field in MANIFEST}
    columns |= {"image_id": [f"i{n}" for n in range(500)], "class_index": pa.array(own, pa.int32()), "kept": kept}
    pq.write_table(pa.table(columns), store.path("manifest"))
    asked = []
    original = tuning.tune

    def spy(*arguments: object) -> object:
        asked.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(tuning, "tune", spy)
    settings = {"epochs": 1, "learning_rate": 0.001, "weight_decay": 0.1, "batch_size": 32, "seeds": [5], "loss": "ce"}
    spec = {"embeddings": ["any"], "head": "head", "manifest": "manifest", **settings}
    artifact = run("classifiers", store, spec, device="cpu")
    np.testing.assert_array_equal(asked[0][0], features.astype(np.float16)[kept])
    np.testing.assert_array_equal(asked[0][1], own[kept])
    assert asked[0][-1] == "cpu"
    record = store.record(artifact)
    assert record is not None and record.details["n_images"] == kept.sum()
