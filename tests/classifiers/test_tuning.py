"""Classifier Tuning against a float64 training loop written out in numpy, and its promises."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from pipeline_lib.classifiers import descent, tuning
from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.tuning import TuningSettings, tune

torch.set_num_threads(1)
N, D, C = 70, 6, 4


def make_data(seed=0, n=N, scale=10.0):
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    head = Head(scale * unit(rng.normal(size=(C, D))), np.zeros(C), tuple("abcd"))
    features = unit(rng.normal(size=(n, D))).astype(np.float32)
    return features, rng.integers(0, C, n), head, head.logits(features)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference(features, labels, head, soft, settings, seed):
    """AdamW (Loshchilov and Hutter, algorithm 2) with clipping by norm and cosine annealing, in float64."""
    x = features.astype(float)
    p = np.hstack([head.weight, head.bias[:, None]]).astype(float)  # [C, D + 1], clipped and stepped as one
    x = np.hstack([x, np.ones((len(x), 1))])
    targets = np.eye(C)[labels]
    if settings.soft_target_weight:
        w = settings.soft_target_weight
        targets = (1 - w) * targets + w * softmax(soft.astype(float) / settings.temperature)
    m, v, (b1, b2) = np.zeros_like(p), np.zeros_like(p), settings.betas
    generator = torch.Generator().manual_seed(seed)
    batches_an_epoch = math.ceil(len(x) / settings.batch_size)
    total, t, losses, norms = settings.epochs * batches_an_epoch, 0, [], []
    for _ in range(settings.epochs):
        order = torch.randperm(len(x), generator=generator).numpy()
        summed = 0.0
        for batch in range(batches_an_epoch):
            rows = order[batch * settings.batch_size : (batch + 1) * settings.batch_size]
            q = softmax(x[rows] @ p.T)
            summed += -(targets[rows] * np.log(q)).sum()
            gradient = (q - targets[rows]).T @ x[rows] / len(rows)
            norms.append(np.sqrt((gradient**2).sum()))
            gradient = gradient * min(1.0, settings.max_grad_norm / (norms[-1] + 1e-6))
            rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * t / total))
            t += 1
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            p = p * (1 - rate * settings.weight_decay)
            p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        losses.append(summed / len(x))
    return p[:, :-1], p[:, -1], losses, norms


@pytest.mark.parametrize("soft_target_weight", [0.0, 0.5])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.05])
@pytest.mark.parametrize("held", [2**26, N * C, N * C - 1, 0])  # soft targets held, or computed batch by batch
def test_agrees_with_a_float64_loop(soft_target_weight, max_grad_norm, held, monkeypatch):
    monkeypatch.setattr(tuning, "_SOFT_TARGETS_HELD", held)
    monkeypatch.setattr(tuning, "_BLOCK_ROWS", 32)
    features, labels, head, soft = make_data()
    settings = TuningSettings(
        epochs=2, batch_size=32, soft_target_weight=soft_target_weight, max_grad_norm=max_grad_norm
    )
    weight, bias, losses, norms = reference(features, labels, head, soft, settings, seed=5)
    result = tune(features, labels, head, settings, [5])[0]
    np.testing.assert_allclose(result.head.weight, weight, atol=1e-5)
    np.testing.assert_allclose(result.head.bias, bias, atol=1e-5)
    np.testing.assert_allclose(result.epoch_losses, losses, atol=1e-5)
    assert np.abs(result.head.weight - head.weight).max() > 1e-3
    assert result.steps == len(norms) == 6  # 32 + 32 + 6 images, twice
    if max_grad_norm == 0.05:
        assert min(norms) > max_grad_norm  # clipping acts in every step here ...


def test_clipping_changes_the_result():
    features, labels, head, _ = make_data(scale=30.0)
    # ... and is seen through Adam where the norm varies between steps: a spike is cut, its successors weigh more.
    results = [
        tune(features, labels, head, TuningSettings(epochs=2, batch_size=8, max_grad_norm=norm), [0])[0].head.weight
        for norm in (0.5, math.inf)
    ]
    assert np.abs(results[0] - results[1]).max() > 1e-4


def test_learning_rate_is_annealed_over_the_steps_really_made(monkeypatch):
    features, labels, head, _ = make_data()
    rates, step = [], descent._AdamW.step

    def spy(self, loss, rate):
        rates.append(rate)
        step(self, loss, rate)

    monkeypatch.setattr(descent._AdamW, "step", spy)
    result = tune(features, labels, head, TuningSettings(epochs=5, batch_size=32), [0])[0]
    assert result.steps == len(rates) == 15
    np.testing.assert_allclose(rates, [1e-3 * (1 + math.cos(math.pi * t / 15)) for t in range(15)], rtol=1e-12)


def test_defaults_are_the_papers():
    settings = dataclasses.asdict(TuningSettings())
    assert settings == {
        "epochs": 30,
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "batch_size": 512,
        "max_grad_norm": 1.0,
        "betas": (0.9, 0.999),
        "soft_target_weight": 0.0,
        "temperature": 2.0,
    }


def test_a_seed_does_not_depend_on_the_others_nor_on_global_state():
    features, labels, head, _ = make_data()
    settings = TuningSettings(epochs=3, batch_size=16)
    torch.manual_seed(1)
    together = tune(features, labels, head, settings, [2, 0, 1])
    torch.manual_seed(2)
    alone = tune(features, labels, head, settings, [0])[0]
    assert [result.seed for result in together] == [2, 0, 1]
    np.testing.assert_array_equal(together[1].head.weight, alone.head.weight)
    assert together[1].epoch_losses == alone.epoch_losses
    assert np.abs(together[0].head.weight - alone.head.weight).max() > 1e-6  # seeds do differ


def test_number_of_threads_is_put_back(monkeypatch):
    features, labels, head, _ = make_data()
    asked = []
    monkeypatch.setattr(tuning.torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(tuning.torch, "set_num_threads", asked.append)
    tune(features, labels, head, TuningSettings(epochs=1), [0, 1], threads=3)
    with pytest.raises(FloatingPointError):
        tune(features, labels, head, TuningSettings(epochs=40, batch_size=8, learning_rate=1e30), [0])
    assert asked == [3, 7, 1, 7]


def test_initial_head_and_inputs_are_left_alone():
    features, labels, head, _ = make_data()
    for array in (features, labels):
        array.setflags(write=False)  # as a column read from Parquet is
    before = head.weight.copy()
    first, second = tune(features, labels, head, TuningSettings(epochs=2, soft_target_weight=0.5), [0, 1])
    np.testing.assert_array_equal(head.weight, before)
    assert first.head.class_names == head.class_names
    assert not np.shares_memory(first.head.weight, second.head.weight)


def test_soft_targets_held_or_not_are_the_same(monkeypatch):
    features, labels, head, _ = make_data(n=300)
    results = []
    for held in (2**26, 0):
        monkeypatch.setattr(tuning, "_SOFT_TARGETS_HELD", held)
        settings = TuningSettings(epochs=3, batch_size=32, soft_target_weight=0.5)
        results.append(tune(features.astype(np.float16), labels, head, settings, [0])[0])
    np.testing.assert_allclose(results[0].head.weight, results[1].head.weight, atol=1e-5)
    assert results[0].epoch_losses == pytest.approx(results[1].epoch_losses, rel=1e-6)


def test_many_soft_targets_are_never_held_at_once(monkeypatch):
    monkeypatch.setattr(tuning, "_SOFT_TARGETS_HELD", 0)
    rows, original = [], torch.nn.functional.linear

    def spy(x, *arguments):
        rows.append(len(x))
        return original(x, *arguments)

    monkeypatch.setattr(tuning.F, "linear", spy)
    features, labels, head, _ = make_data(n=300)
    tune(features, labels, head, TuningSettings(epochs=1, batch_size=32, soft_target_weight=0.5), [0])
    assert max(rows) == 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_gives_nearly_the_same_head(fits, monkeypatch):
    features, labels, head, _ = make_data(n=300)
    settings = TuningSettings(epochs=3, batch_size=32, soft_target_weight=0.5)
    expected = tune(features, labels, head, settings, [0])[0]
    monkeypatch.setattr(tuning, "_fits", lambda *_: fits)
    for held in (2**26, 0):
        monkeypatch.setattr(tuning, "_SOFT_TARGETS_HELD", held)
        found = tune(features.astype(np.float16), labels, head, settings, [0], "cuda")[0]
        np.testing.assert_allclose(found.head.weight, expected.head.weight, atol=2e-3)


def test_float16_features_give_nearly_the_same_head():
    features, labels, head, _ = make_data()
    settings = TuningSettings(epochs=3, batch_size=32)
    half = tune(features.astype(np.float16), labels, head, settings, [0])[0].head
    full = tune(features, labels, head, settings, [0])[0].head
    np.testing.assert_allclose(half.weight, full.weight, atol=2e-3)
    assert half.weight.dtype == np.float32


def test_tuning_learns_what_can_be_learnt():
    features, _, head, _ = make_data(n=400)
    teacher = np.random.default_rng(9).normal(size=(C, D))
    labels = (features @ teacher.T).argmax(axis=1)
    before = (head.logits(features).argmax(axis=1) == labels).mean()
    settings = TuningSettings(learning_rate=1.0, batch_size=64, weight_decay=0.0)  # far to go from a head that is wrong
    result = tune(features, labels, head, settings, [0])[0]
    after = (result.head.logits(features).argmax(axis=1) == labels).mean()
    assert after > 0.95 > before
    assert result.epoch_losses[-1] < 0.2 * result.epoch_losses[0]


def test_a_soft_target_of_the_zero_shot_head_holds_it_near():
    features, labels, head, _ = make_data(n=300)  # random labels: only the soft targets say anything
    drift = []
    for weight in (0.0, 1.0):
        settings = TuningSettings(learning_rate=0.05, soft_target_weight=weight, temperature=1.0, weight_decay=0.0)
        drift.append(np.abs(tune(features, labels, head, settings, [0])[0].head.weight - head.weight).max())
    assert drift[1] < 0.2 * drift[0]


def test_classes_without_images_are_reported():
    features, labels, head, _ = make_data()
    labels = np.where(labels == 2, 1, labels)
    result = tune(features, labels, head, TuningSettings(epochs=1), [0])[0]
    assert result.empty_classes == ("c",)
    assert tune(*make_data()[:3], TuningSettings(epochs=1), [0])[0].empty_classes == ()


def with_bad_rows(value):
    features = make_data()[0]
    features[[3, 9]] = value
    return features


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": with_bad_rows(np.nan)}, "2 of 70 rows of features are not finite"),
        ({"features": with_bad_rows(np.inf)}, "2 of 70 rows of features are not finite"),
        ({"features": with_bad_rows(2.0)}, "2 of 70 rows of features do not have length 1"),
        ({"features": np.ones((N, D + 1), np.float32)}, r"takes \[N, 6\]"),
        ({"features": np.ones((0, D), np.float32), "labels": np.zeros(0, int)}, "no training images"),
        ({"labels": np.zeros(N - 1, int)}, "one integer for each of 70"),
        ({"labels": np.zeros(N)}, "one integer for each of 70"),
        ({"labels": np.full(N, C)}, "70 of 70 labels are out of range, the first is 4; allowed is 0 to 3"),
        ({"labels": np.full(N, -1)}, "the first is -1"),
        ({"seeds": []}, "seeds are"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": [-1]}, "from 0"),
    ],
)
def test_bad_input_is_named(change, message):
    features, labels, head, _ = make_data()
    arguments = {
        "features": features,
        "labels": labels,
        "initial": head,
        "settings": TuningSettings(epochs=1, soft_target_weight=0.5),
        "seeds": [0],
    }
    with pytest.raises(ValueError, match=message):
        tune(**{**arguments, **change})


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"max_grad_norm": 0.0},
        {"temperature": -1.0},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"soft_target_weight": 1.1},
    ],
)
def test_bad_settings_are_named(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} is "):
        TuningSettings(**setting)


def test_divergence_stops_with_its_epoch_and_remedy():
    features, labels, head, _ = make_data()
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        tune(features, labels, head, TuningSettings(epochs=40, batch_size=8, learning_rate=1e30), [0])
