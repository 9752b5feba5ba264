"""Scores against a float64 softmax, and their bounds."""

import tracemalloc

import numpy as np
import pytest

from pipeline_lib import scores
from pipeline_lib.classifiers.head import Head, zero_shot_head
from pipeline_lib.scores import score


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
