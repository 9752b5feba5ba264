"""Tuning with real and synthetic images against float64 training loops written out in numpy, and against `tune`."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from pipeline_lib.classifiers import descent, tuning
from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.few_shot_tuning import FewShotSettings, tune_few_shot, tune_with_chosen_epochs
from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.tuning import TuningSettings, tune

torch.set_num_threads(1)
D, C = 6, 4
TRAININGS = ["real", "synthetic", "mix", "real_then_synthetic", "synthetic_then_real"]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make(n_real=20, n_synthetic=70, seed=0):
    rng = np.random.default_rng(seed)
    head = Head(10 * unit(rng.normal(size=(C, D))), np.zeros(C), tuple("abcd"))
    real, synthetic = (
        Examples(unit(rng.normal(size=(n, D))).astype(np.float32), rng.integers(0, C, n)) for n in (n_real, n_synthetic)
    )
    return real, synthetic, head


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Reference:
    """AdamW with clipping by norm in float64, on the sum of mean losses of batches that are named by their rows."""

    def __init__(self, head, weight_decay=0.1, max_grad_norm=1.0):
        self.p = np.hstack([head.weight, head.bias[:, None]]).astype(float)
        self.zero_shot, self.decay, self.max_norm = head, weight_decay, max_grad_norm
        self.restart()

    def restart(self):
        """A new optimiser."""
        self.m, self.v, self.t = np.zeros_like(self.p), np.zeros_like(self.p), 0

    def step(self, rate, batches):
        """batches: (examples, rows, weight of the soft targets, temperature) of each term."""
        gradient = np.zeros_like(self.p)
        for examples, rows, weight, temperature in batches:
            x = np.hstack([examples.features[rows].astype(float), np.ones((len(rows), 1))])
            soft = softmax(self.zero_shot.logits(examples.features[rows]).astype(float) / temperature)
            target = (1 - weight) * np.eye(C)[examples.labels[rows]] + weight * soft
            gradient += (softmax(x @ self.p.T) - target).T @ x / len(rows)
        gradient *= min(1.0, self.max_norm / (np.sqrt((gradient**2).sum()) + 1e-6))
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * gradient, 0.999 * self.v + 0.001 * gradient**2
        self.p = self.p * (1 - rate * self.decay)
        self.p = self.p - rate * (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)

    def check(self, result, atol=1e-5):
        np.testing.assert_allclose(result.head.weight, self.p[:, :-1], atol=atol)
        np.testing.assert_allclose(result.head.bias, self.p[:, -1], atol=atol)
        assert np.abs(result.head.weight - self.zero_shot.weight).max() > 1e-3


def cosine(rate, total):
    return [rate * 0.5 * (1 + math.cos(math.pi * t / total)) for t in range(total)]


@pytest.fixture
def batches(monkeypatch):
    """Rows of the batches that are drawn, by the number of images they are drawn from."""
    drawn, batch = {}, tuning.CachedImages.batch

    def record(self, rows):
        drawn.setdefault(len(self), []).append(rows.numpy())
        return batch(self, rows)

    monkeypatch.setattr(tuning.CachedImages, "batch", record)
    return drawn


@pytest.fixture
def rates(monkeypatch):
    """Learning rates of the steps that are made."""
    seen, step = [], descent._AdamW.step

    def spy(self, loss, rate):
        seen.append(rate)
        step(self, loss, rate)

    monkeypatch.setattr(descent._AdamW, "step", spy)
    return seen


# --- mix training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_real, n_synthetic", [(20, 70), (3, 70), (70, 20), (33, 65)])
@pytest.mark.parametrize("soft_target_weight", [0.0, 0.5])
def test_mix_agrees_with_a_float64_loop(n_real, n_synthetic, soft_target_weight, batches):
    real, synthetic, head = make(n_real, n_synthetic)
    settings = FewShotSettings(
        epochs=3, real_batch_size=8, synthetic_batch_size=32, soft_target_weight=soft_target_weight, temperature=1.5
    )
    result = tune_few_shot(real, synthetic, head, "mix", settings, 5)
    n_steps = 3 * math.ceil(n_synthetic / 32)
    reference = Reference(head)
    steps = zip(cosine(1e-3, n_steps), batches[n_real], batches[n_synthetic], strict=True)
    for rate, real_rows, synthetic_rows in steps:
        reference.step(rate, [(real, real_rows, 0.0, 1.0), (synthetic, synthetic_rows, soft_target_weight, 1.5)])
    reference.check(result)
    assert result.steps == n_steps and len(result.epoch_losses) == 3


@pytest.mark.parametrize("n_real, n_synthetic, real_size", [(20, 70, 8), (3, 70, 32), (70, 20, 32), (5, 200, 2)])
def test_mix_passes_over_synthetic_images_and_cycles_real_ones(n_real, n_synthetic, real_size, batches):
    real, synthetic, head = make(n_real, n_synthetic)
    settings = FewShotSettings(epochs=7, real_batch_size=real_size, synthetic_batch_size=32)
    tune_few_shot(real, synthetic, head, "mix", settings, 0)
    n_steps = 7 * math.ceil(n_synthetic / 32)
    assert len(batches[n_real]) == len(batches[n_synthetic]) == n_steps
    seen = np.bincount(np.concatenate(batches[n_real]), minlength=n_real)
    assert seen.max() - seen.min() <= 1 and seen.sum() == n_steps * min(real_size, n_real)
    epochs = np.concatenate(batches[n_synthetic]).reshape(7, n_synthetic)
    assert all(sorted(epoch) == list(range(n_synthetic)) for epoch in epochs)


def test_both_losses_count_alike_whatever_the_sizes():
    """With a full batch of each, 3 real images weigh as much as 300 synthetic ones."""
    real, synthetic, head = make(3, 300)
    settings = FewShotSettings(epochs=5, real_batch_size=3, synthetic_batch_size=300)
    reference = Reference(head)
    for rate in cosine(1e-3, 5):
        reference.step(rate, [(real, np.arange(3), 0.0, 1.0), (synthetic, np.arange(300), 0.0, 1.0)])
    reference.check(tune_few_shot(real, synthetic, head, "mix", settings, 0))


# --- one kind of images, and phases -----------------------------------------------------------------------------------


@pytest.mark.parametrize("soft_target_weight", [0.0, 0.5])
def test_real_images_alone_are_tunes_numbers(soft_target_weight):
    real, synthetic, head = make(70)
    settings = FewShotSettings(epochs=4, soft_target_weight=soft_target_weight)
    found = tune_few_shot(real, synthetic, head, "real", settings, 3)
    expected = tune(real.features, real.labels, head, TuningSettings(epochs=4, batch_size=32), [3])[0]
    np.testing.assert_array_equal(found.head.weight, expected.head.weight)
    np.testing.assert_array_equal(found.head.bias, expected.head.bias)
    assert (found.epoch_losses, found.steps, found.seed) == (expected.epoch_losses, 12, 3)


def test_synthetic_images_alone_are_tunes_numbers():
    _, synthetic, head = make(n_synthetic=600)
    settings = FewShotSettings(epochs=2, soft_target_weight=0.5, temperature=3.0)
    found = tune_few_shot(None, synthetic, head, "synthetic", settings, 0)
    same = TuningSettings(epochs=2, batch_size=512, soft_target_weight=0.5, temperature=3.0)
    expected = tune(synthetic.features, synthetic.labels, head, same, [0])[0]
    np.testing.assert_array_equal(found.head.weight, expected.head.weight)
    assert found.epoch_losses == expected.epoch_losses


@pytest.mark.parametrize("training", ["real_then_synthetic", "synthetic_then_real"])
@pytest.mark.parametrize("soft_target_weight", [0.0, 0.5])
def test_phases_agree_with_a_float64_loop(training, soft_target_weight, batches):
    """Each phase has an optimiser and a cosine of its own; soft targets stay the zero-shot head's in a second phase."""
    real, synthetic, head = make(20, 70)
    settings = FewShotSettings(
        epochs=3, real_batch_size=8, synthetic_batch_size=32, soft_target_weight=soft_target_weight
    )
    result = tune_few_shot(real, synthetic, head, training, settings, 5)
    reference = Reference(head)
    phases = [(real, 0.0), (synthetic, soft_target_weight)]
    for examples, weight in phases if training == "real_then_synthetic" else phases[::-1]:
        reference.restart()
        drawn = batches[len(examples)]
        for rate, rows in zip(cosine(2e-3, 9), drawn, strict=True):
            reference.step(rate, [(examples, rows, weight, 2.0)])
    reference.check(result)
    assert result.steps == 18 and len(result.epoch_losses) == 6


def test_a_first_phase_is_training_on_its_images_alone():
    real, synthetic, head = make()
    settings = FewShotSettings(epochs=3, synthetic_batch_size=32)
    for training, first, second in (
        ("real_then_synthetic", "real", "synthetic"),
        ("synthetic_then_real", "synthetic", "real"),
    ):
        found = tune_few_shot(real, synthetic, head, training, settings, 1)
        alone = tune_few_shot(real, synthetic, head, first, settings, 1)
        after = tune_few_shot(real, synthetic, alone.head, second, settings, 1)
        np.testing.assert_array_equal(found.head.weight, after.head.weight)
        assert found.epoch_losses == alone.epoch_losses + after.epoch_losses


@pytest.mark.parametrize(
    "training, cosines",
    [
        ("real", [(0.02, 15)]),
        ("synthetic", [(0.02, 25)]),
        ("mix", [(0.01, 25)]),
        ("real_then_synthetic", [(0.02, 15), (0.02, 25)]),
        ("synthetic_then_real", [(0.02, 25), (0.02, 15)]),
    ],
)
def test_cosines_count_the_steps_that_are_made(training, cosines, rates):
    settings = FewShotSettings(
        epochs=5, learning_rate=0.02, mix_learning_rate=0.01, real_batch_size=8, synthetic_batch_size=16
    )
    result = tune_few_shot(*make(20, 70), training, settings, 0)
    expected = [rate for rate_and_total in cosines for rate in cosine(*rate_and_total)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert result.steps == len(expected)


# --- promises ---------------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers():
    assert dataclasses.asdict(FewShotSettings()) == {
        "epochs": 30,
        "learning_rate": 2e-3,
        "mix_learning_rate": 1e-3,
        "weight_decay": 0.1,
        "real_batch_size": 32,
        "synthetic_batch_size": 512,
        "max_grad_norm": 1.0,
        "betas": (0.9, 0.999),
        "soft_target_weight": 0.0,
        "temperature": 2.0,
    }


@pytest.mark.parametrize("training", TRAININGS)
def test_a_seed_decides_everything_that_is_drawn(training):
    arguments, settings = make(), FewShotSettings(epochs=2, real_batch_size=8, synthetic_batch_size=16)
    torch.manual_seed(1)
    first = tune_few_shot(*arguments, training, settings, 0)
    torch.manual_seed(2)
    again, other = (tune_few_shot(*arguments, training, settings, seed) for seed in (0, 1))
    np.testing.assert_array_equal(first.head.weight, again.head.weight)
    assert first.epoch_losses == again.epoch_losses
    assert np.abs(first.head.weight - other.head.weight).max() > 1e-6


@pytest.mark.parametrize("training", TRAININGS)
def test_inputs_are_left_alone_and_half_precision_is_near(training):
    real, synthetic, head = make()
    for examples in (real, synthetic):
        examples.features.setflags(write=False)
        examples.labels.setflags(write=False)
    before = head.weight.copy()
    settings = FewShotSettings(epochs=2, soft_target_weight=0.5)
    full = tune_few_shot(real, synthetic, head, training, settings, 0).head
    half = [Examples(examples.features.astype(np.float16), examples.labels) for examples in (real, synthetic)]
    np.testing.assert_allclose(tune_few_shot(*half, head, training, settings, 0).head.weight, full.weight, atol=2e-3)
    np.testing.assert_array_equal(head.weight, before)
    assert full.class_names == head.class_names


@pytest.mark.parametrize(
    "training, empty",
    [("real", ("c", "d")), ("synthetic", ("a", "c")), ("mix", ("c",)), ("real_then_synthetic", ("c",))],
)
def test_empty_classes_are_those_without_any_image(training, empty):
    real, synthetic, head = make()
    real = Examples(real.features, np.arange(20) % 2)
    synthetic = Examples(synthetic.features, np.arange(70) % 2 * 2 + 1)
    assert tune_few_shot(real, synthetic, head, training, FewShotSettings(epochs=1), 0).empty_classes == empty


def test_number_of_threads_is_put_back(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    tune_few_shot(*make(), "mix", FewShotSettings(epochs=1), 0, threads=3)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        tune_few_shot(*make(), "mix", FewShotSettings(epochs=40, mix_learning_rate=1e30), 0)
    assert asked == [3, 7, 1, 7]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("training", TRAININGS)
def test_a_gpu_gives_nearly_the_same_head(training):
    settings = FewShotSettings(epochs=3, real_batch_size=8, synthetic_batch_size=32, soft_target_weight=0.5)
    expected = tune_few_shot(*make(), training, settings, 0).head
    np.testing.assert_allclose(
        tune_few_shot(*make(), training, settings, 0, "cuda").head.weight, expected.weight, atol=2e-3
    )


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["mix_learning_rate", "real_batch_size", "synthetic_batch_size", "epochs"])
def test_bad_settings_are_named(setting):
    with pytest.raises(ValueError, match=f"tuning setting {setting} is 0; allowed is"):
        FewShotSettings(**{setting: 0})
    with pytest.raises(ValueError, match=r"soft_target_weight is 1\.5"):
        FewShotSettings(soft_target_weight=1.5)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_images_that_are_needed_and_missing_are_named(training, kind):
    real, synthetic, head = make()
    for missing in (None, Examples(np.ones((0, D), np.float32), np.ones(0, int))):
        given = {"real": real, "synthetic": synthetic, kind: missing}
        arguments = (given["real"], given["synthetic"], head, training, FewShotSettings(epochs=1), 0)
        if training in (kind, "mix", "real_then_synthetic", "synthetic_then_real"):
            with pytest.raises(ValueError, match=f"no {kind} images; training '{training}' needs some"):
                tune_few_shot(*arguments)
        else:
            assert tune_few_shot(*arguments).steps == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"training": "both"}, "allowed are real, synthetic, mix, real_then_synthetic, synthetic_then_real"),
        ({"seed": -1}, "seeds are"),
        ({"real": Examples(np.ones((3, D), np.float32), np.zeros(3, int))}, "real images: 3 of 3 rows .* length 1"),
        ({"synthetic": Examples(np.eye(D, dtype=np.float32), np.full(D, C))}, "synthetic images: 6 of 6 labels"),
    ],
)
def test_bad_input_is_named(change, message):
    real, synthetic, head = make()
    arguments = {"real": real, "synthetic": synthetic, "initial": head, "training": "mix", "seed": 0}
    with pytest.raises(ValueError, match=message):
        tune_few_shot(**{**arguments, **change}, settings=FewShotSettings(epochs=1))


def test_the_number_of_epochs_is_the_best_of_doubles_up_to_the_most_steps():
    """Against a search by hand: each candidate tuned on its own, judged on the validation images alone."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(3, 8))

    def examples(per_class: int, noise: float) -> Examples:
        labels = np.repeat(np.arange(3), per_class)
        features = centres[labels] + noise * rng.normal(size=(len(labels), 8))
        return Examples((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels)

    real, validation = examples(3, 0.8), examples(20, 1.5)
    initial = Head(rng.normal(size=(3, 8)).astype(np.float32), np.zeros(3, np.float32), ("a", "b", "c"))
    settings = FewShotSettings(epochs=4, learning_rate=0.05, real_batch_size=4)  # 3 steps an epoch
    tuned, epochs = tune_with_chosen_epochs(real, validation, initial, settings, 70, seed=3)
    judged = {}
    for candidate in (4, 8, 16, 24):  # 24 epochs are the first with 70 steps
        head = tune_few_shot(real, None, initial, "real", dataclasses.replace(settings, epochs=candidate), seed=3).head
        logits = torch.tensor(head.logits(validation.features), dtype=torch.float64)
        labels = torch.tensor(validation.labels)
        wrong, loss = int((logits.argmax(1) != labels).sum()), float(torch.nn.functional.cross_entropy(logits, labels))
        judged[candidate] = (wrong, loss, head)
    best = min(judged, key=lambda candidate: judged[candidate][:2])
    assert len({wrong for wrong, _, _ in judged.values()}) > 1  # else nothing was chosen
    assert epochs == best
    assert np.array_equal(tuned.head.weight, judged[best][2].weight)
    with pytest.raises(ValueError, match="no validation images"):
        nothing = Examples(np.empty((0, 8), np.float32), np.empty(0, np.int64))
        tune_with_chosen_epochs(real, nothing, initial, settings, 70, seed=3)
