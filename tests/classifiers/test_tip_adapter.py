"""Tip-Adapter against the original implementation (tests/data/tip_adapter_reference.py) and float64 loops in numpy."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.classifiers import tip_adapter as module
from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.tip_adapter import TipAdapter, TipAdapterSettings, fine_tune, tip_adapter

REFERENCE = Path(__file__).parent.parent / "data" / "tip_adapter_reference.npz"
D = 12


@pytest.fixture(scope="module")
def reference():
    return dict(np.load(REFERENCE))


def of_reference(reference):
    """Shots, validation images and head that the original was given."""
    shots, validation = (Examples(reference[name], reference[f"{name}_labels"]) for name in ("shots", "validation"))
    text = reference["text"]
    return shots, validation, Head(100 * text, np.zeros(len(text)), tuple("abcde"[: len(text)]))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_data(n_classes=4, each=3, n_validation=6, seed=0, noise=1.0, scale=30.0):
    """Overlapping classes, shots in no order, and a head that is often wrong."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, D))
    found = []
    for per_class in (each, n_validation):
        labels = rng.permutation(np.repeat(np.arange(n_classes), per_class))
        found.append(Examples(unit(centres[labels] + noise * rng.normal(size=(len(labels), D))), labels))
    text = unit(centres + 2 * rng.normal(size=centres.shape))
    return *found, Head(scale * text, np.zeros(n_classes), tuple(f"class {n}" for n in range(n_classes)))


def settings(**changes):
    return TipAdapterSettings(
        **{"alpha": 1.17, "beta": 5.5, "epochs": 4, "learning_rate": 1e-3, "batch_size": 5, **changes}
    )


def plain_logits(features, head, keys, labels, alpha, beta):
    """Equation 6 of the paper, in float64."""
    features, keys = features.astype(float), keys.astype(float)
    kernel = np.exp(-beta * (1 - features @ keys.T))
    return features @ head.weight.T.astype(float) + head.bias + alpha * kernel @ np.eye(head.n_classes)[labels]


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# --- the original's numbers -------------------------------------------------------------------------------------------


def test_logits_are_the_originals(reference):
    """With the same features, shots, alpha and beta: to 1e-5."""
    shots, _, head = of_reference(reference)
    alpha, beta, *_ = reference["settings"]
    logits = TipAdapter(head, shots.features, shots.labels, alpha, beta).logits(reference["test"])
    np.testing.assert_allclose(logits, reference["tip_adapter"], rtol=1e-5, atol=1e-5)
    assert logits.dtype == np.float32
    assert np.abs(head.logits(reference["test"]) - reference["tip_adapter"]).max() > 0.1  # the cache matters


def test_fine_tuned_logits_are_the_originals(reference, monkeypatch):
    """After the same 20 epochs with all shots in each batch, with the alpha and beta of training: to 2e-5, while the
    tuning changed them by 0.09."""
    pytest.importorskip("torch")
    shots, validation, head = of_reference(reference)
    alpha, beta, epochs, rate = reference["settings"]
    monkeypatch.setattr(module, "_searched", lambda adapter, _: adapter)
    chosen = settings(alpha=alpha, beta=beta, epochs=int(epochs), learning_rate=rate, batch_size=256)
    logits = fine_tune(shots, validation, head, chosen, seed=0).logits(reference["test"])
    np.testing.assert_allclose(logits, reference["tip_adapter_f"], rtol=1e-5, atol=2e-5)
    assert np.abs(reference["tip_adapter_f"] - reference["tip_adapter"]).max() > 0.05


def test_the_search_finds_what_the_originals_find_together(reference):
    """Its best accuracy is that of the best of the original's eleven configurations, whose ranges it covers."""
    shots, validation, head = of_reference(reference)
    found = tip_adapter(shots, validation, head)
    accuracy = 100 * (found.logits(validation.features).argmax(axis=1) == validation.labels).mean()
    assert accuracy == pytest.approx(reference["search_best"].max())
    assert accuracy > reference["search_best"].min()
    assert {tuple(row) for row in reference["search"]} == {(*scale, 200, 20) for scale in module._SCALES}
    search = module._Search(found, validation)
    for (*scale, _, _), best in zip(reference["search"], reference["search_best"], strict=True):
        alphas, betas = module._grid(*scale)
        assert (len(betas), len(alphas)) == (200, 20)
        assert 100 * search.correct(alphas, betas).max() / len(validation) == pytest.approx(best)


# --- the forward pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [2**19, 1, 30])
def test_logits_in_closed_form_whatever_the_blocks(block, monkeypatch):
    shots, validation, head = make_data()
    head = Head(head.weight, np.arange(4.0), head.class_names)
    monkeypatch.setattr(module, "_BLOCK", block)
    logits = TipAdapter(head, shots.features, shots.labels, 2.5, 4.0).logits(validation.features)
    expected = plain_logits(validation.features, head, shots.features, shots.labels, 2.5, 4.0)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_classes_without_shots_keep_the_heads_logits():
    shots, validation, head = make_data()
    some = np.flatnonzero((shots.labels == 1) | (shots.labels == 3))
    adapter = TipAdapter(head, shots.features[some], shots.labels[some], 1.0, 3.0)
    logits, zero_shot = adapter.logits(validation.features), head.logits(validation.features)
    np.testing.assert_array_equal(logits[:, [0, 2]], zero_shot[:, [0, 2]])
    assert (logits[:, [1, 3]] > zero_shot[:, [1, 3]]).all()


def test_float16_features_are_widened():
    shots, validation, head = make_data()
    half = TipAdapter(head, shots.features.astype(np.float16), shots.labels, 2.0, 5.0)
    full = TipAdapter(head, shots.features, shots.labels, 2.0, 5.0)
    assert half.keys.dtype == np.float32
    assert half.labels.dtype == np.int32
    found = half.logits(validation.features.astype(np.float16))
    np.testing.assert_allclose(found, full.logits(validation.features), atol=0.1)


def test_it_needs_no_torch():
    """To predict, and to search."""
    code = (
        "import sys, numpy as np; from pipeline_lib.classifiers.tip_adapter import *\n"
        "head = Head(np.eye(2), np.zeros(2), ('a', 'b')); shots = Examples(np.eye(2), np.arange(2))\n"
        "tip_adapter(shots, shots, head).logits(np.eye(2)); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# --- the search -------------------------------------------------------------------------------------------------------


def every_pair(shots, validation, head):
    """(correct images, -mean cross-entropy, -alpha, -beta) of every pair, in float64, one after the other."""
    rows = []
    for largest_beta, largest_alpha in module._SCALES:
        for i in range(200):
            beta = i * (largest_beta - 0.1) / 200 + 0.1
            kernel = np.exp(-beta * (1 - validation.features.astype(float) @ shots.features.T.astype(float)))
            cached = kernel @ np.eye(head.n_classes)[shots.labels]
            for j in range(20):
                alpha = j * (largest_alpha - 0.1) / 20 + 0.1
                logits = validation.features.astype(float) @ head.weight.T.astype(float) + alpha * cached
                loss = -np.log(softmax(logits)[np.arange(len(validation)), validation.labels]).mean()
                rows.append(((logits.argmax(axis=1) == validation.labels).sum(), -loss, -alpha, -beta))
    return rows


def test_the_most_correct_and_among_equals_the_surest_wins(monkeypatch):
    """Against a search over all pairs one by one; few validation images, so many pairs are equally good."""
    shots, validation, head = make_data(n_classes=3, each=2, n_validation=3, seed=1)
    rows = every_pair(shots, validation, head)
    best = max(rows)
    assert sum(row[0] == best[0] for row in rows) > 100
    for block in (2**19, 500):
        monkeypatch.setattr(module, "_BLOCK", block)
        found = tip_adapter(shots, validation, head)
        assert (found.alpha, found.beta) == pytest.approx((-best[2], -best[3]), rel=1e-12)
    np.testing.assert_array_equal(found.keys, shots.features)
    np.testing.assert_array_equal(found.labels, shots.labels)


def test_blocks_of_the_search_change_nothing(monkeypatch):
    """All images and betas at once, or one image and one beta at a time."""
    shots, validation, head = make_data(noise=1.5)
    search = module._Search(TipAdapter(head, shots.features, shots.labels, 1.0, 1.0), validation)
    alphas, betas = np.linspace(0.1, 20, 20), np.linspace(0.1, 9, 7)
    correct, losses = search.correct(alphas, betas), search.losses(alphas, betas)
    assert len(np.unique(correct)) > 1
    for block in (1, 500):
        monkeypatch.setattr(module, "_BLOCK", block)
        np.testing.assert_array_equal(search.correct(alphas, betas), correct)
        np.testing.assert_allclose(search.losses(alphas, betas), losses, rtol=1e-5)


def test_where_nothing_tells_the_smallest_pair_wins():
    """One class only: every pair is right and has no loss."""
    shots, validation, _ = make_data(n_classes=1)
    found = tip_adapter(shots, validation, Head(np.ones((1, D)), np.zeros(1), ("a",)))
    assert (found.alpha, found.beta) == pytest.approx((0.1, 0.1))


def test_long_keys_leave_out_what_would_overflow():
    """Tuned keys may be long: exp(beta (cos - 1)) stays a number, also for images twice as near."""
    shots, validation, head = make_data()
    long = Examples(8 * shots.features, shots.labels)
    with np.errstate(all="raise", under="ignore"):
        found = tip_adapter(long, validation, head)
        largest = (validation.features @ long.features.T).max() - 1
        assert 4 < 50 * largest / 40 < 10  # most of the widest range is too much
        assert np.isfinite(found.logits(validation.features)).all()
    assert found.beta * largest <= 40
    with pytest.raises(FloatingPointError, match="too long for any beta; lower the learning rate"):
        tip_adapter(Examples(1000 * shots.features, shots.labels), validation, head)


def test_it_helps_where_the_head_is_wrong():
    """Unseen images of the same classes."""
    shots, validation, head = make_data(each=16, n_validation=4, noise=0.6, seed=2)
    test = make_data(each=16, n_validation=200, noise=0.6, seed=2)[1]
    top1 = [
        (one.logits(test.features).argmax(axis=1) == test.labels).mean()
        for one in (head, tip_adapter(shots, validation, head), fine_tune(shots, validation, head, settings(), 0))
    ]
    assert min(top1[1:]) > top1[0] + 0.1


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def tuned_in_float64(shots, head, chosen, seed):
    """AdamW (Loshchilov and Hutter, algorithm 2) on the keys, the gradient written out."""
    import torch

    x, keys = shots.features.astype(float), shots.features.astype(float)
    targets = np.eye(head.n_classes)[shots.labels]
    zero_shot = x @ head.weight.T.astype(float)
    m, v, t = np.zeros_like(keys), np.zeros_like(keys), 0
    total = chosen.epochs * math.ceil(len(x) / chosen.batch_size)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(chosen.epochs):
        order = torch.randperm(len(x), generator=generator).numpy()
        for start in range(0, len(x), chosen.batch_size):
            rows = order[start : start + chosen.batch_size]
            kernel = np.exp(-chosen.beta * (1 - x[rows] @ keys.T))
            q = softmax(zero_shot[rows] + chosen.alpha * kernel @ targets)
            by_kernel = chosen.alpha * (q - targets[rows]) @ targets.T / len(rows)
            gradient = (by_kernel * kernel * chosen.beta).T @ x[rows]
            rate = chosen.learning_rate * 0.5 * (1 + math.cos(math.pi * t / total))
            t += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            keys = keys * (1 - rate * 0.01)
            keys = keys - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-4)
    return keys


@pytest.mark.parametrize("batch_size", [5, 12, 100])
def test_tuned_keys_follow_a_float64_loop(batch_size):
    """Batches in the seed's order, a partial one at the end, and a cosine over the steps that are really made."""
    pytest.importorskip("torch")
    shots, validation, head = make_data()
    chosen = settings(learning_rate=0.01, batch_size=batch_size)
    found = fine_tune(shots, validation, head, chosen, seed=3)
    expected = tuned_in_float64(shots, head, chosen, 3)
    np.testing.assert_allclose(found.keys, expected, atol=1e-5)
    assert np.abs(expected - shots.features).max() > 0.01


def test_alpha_and_beta_are_searched_for_the_tuned_keys():
    """Not those of the shots, nor those of training."""
    pytest.importorskip("torch")
    shots, validation, head = make_data(noise=1.5, seed=5)
    found = fine_tune(shots, validation, head, settings(learning_rate=0.05, epochs=10), seed=0)
    again = tip_adapter(Examples(found.keys, shots.labels), validation, head)
    assert (found.alpha, found.beta) == (again.alpha, again.beta)
    untuned = tip_adapter(shots, validation, head)
    assert (found.alpha, found.beta) != (untuned.alpha, untuned.beta)


def test_the_seed_decides_everything():
    torch = pytest.importorskip("torch")
    shots, validation, head = make_data()
    torch.manual_seed(1)
    first = fine_tune(shots, validation, head, settings(), seed=0)
    torch.manual_seed(2)
    again = fine_tune(shots, validation, head, settings(), seed=0)
    other = fine_tune(shots, validation, head, settings(), seed=1)
    np.testing.assert_array_equal(first.keys, again.keys)
    assert (first.alpha, first.beta) == (again.alpha, again.beta)
    assert np.abs(first.keys - other.keys).max() > 1e-6


def test_inputs_are_left_alone():
    """Shots that cannot be written to, as a column read from Parquet is."""
    pytest.importorskip("torch")
    shots, validation, head = make_data()
    before = shots.features.copy()
    shots.features.setflags(write=False)
    fine_tune(shots, validation, head, settings(learning_rate=0.1), seed=0)
    np.testing.assert_array_equal(shots.features, before)


def test_threads_are_given_back(monkeypatch):
    torch = pytest.importorskip("torch")
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    before = torch.get_num_threads()
    shots, validation, head = make_data()
    fine_tune(shots, validation, head, settings(epochs=1), seed=0, threads=3)
    assert asked == [3, before]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keys": np.ones((3, D + 1))}, r"keys have shape \(3, 13\)"),
        ({"labels": np.zeros(2, int)}, r"labels \(2,\)"),
        ({"keys": np.ones((0, D)), "labels": np.zeros(0, int)}, "one key or more"),
        ({"labels": np.array([0, 1, 4])}, "labels are 0 to 4; allowed is 0 to 3"),
        ({"labels": np.array([0, -1, 2])}, "labels are -1 to 2"),
        ({"keys": np.full((3, D), np.nan)}, "not finite"),
        ({"alpha": math.inf}, "not finite"),
        ({"beta": math.nan}, "not finite"),
    ],
)
def test_bad_caches_are_named(change, message):
    head = make_data()[2]
    good = {"head": head, "keys": np.ones((3, D)), "labels": np.arange(3), "alpha": 1.0, "beta": 1.0}
    TipAdapter(**good)
    with pytest.raises(ValueError, match=message):
        TipAdapter(**{**good, **change})


def test_bad_validation_images_are_named():
    shots, validation, head = make_data()
    with pytest.raises(ValueError, match="no validation images"):
        tip_adapter(shots, Examples(validation.features[:0], validation.labels[:0]), head)
    with pytest.raises(ValueError, match="labels are 0 to 7; allowed is 0 to 3"):
        tip_adapter(shots, Examples(validation.features[:2], np.array([0, 7])), head)
    with pytest.raises(ValueError, match=r"the head takes \[N, 12\]"):
        tip_adapter(shots, Examples(np.ones((2, D + 1), np.float32), np.array([0, 1])), head)


def test_divergence_stops_with_its_epoch_and_remedy():
    pytest.importorskip("torch")
    shots, validation, head = make_data()
    with pytest.raises(FloatingPointError, match=r"Tip-Adapter-F with seed 4: the loss of epoch 0 is .*lower"):
        fine_tune(shots, validation, head, settings(beta=1e4, learning_rate=1.0), seed=4)
