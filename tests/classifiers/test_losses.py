"""The soft-target loss against a float64 closed form written out in numpy, and where its minimum lies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline_lib.classifiers.losses import soft_target_cross_entropy

torch.set_num_threads(1)
RNG = np.random.default_rng(0)
LOGITS, TARGET = RNG.normal(size=(6, 4)) * 3, RNG.normal(size=(6, 4)) * 5
LABELS = RNG.integers(0, 4, 6)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def tensors(dtype=torch.float64):
    return torch.tensor(LOGITS, dtype=dtype), torch.tensor(LABELS), torch.tensor(TARGET, dtype=dtype)


@pytest.mark.parametrize("temperature, weight", [(2.0, 0.5), (1.0, 0.5), (4.0, 0.25), (2.0, 1.0), (2.0, 0.0)])
def test_value_in_closed_form(temperature, weight):
    log_p = np.log(softmax(LOGITS))
    hard = -log_p[np.arange(6), LABELS].mean()
    soft = -(softmax(TARGET / temperature) * log_p).sum(axis=1).mean()
    value = soft_target_cross_entropy(*tensors(), temperature, weight)
    assert value.shape == ()
    assert float(value) == pytest.approx((1 - weight) * hard + weight * soft, rel=1e-12)


def test_defaults_are_the_papers():
    logits, labels, target = tensors()
    expected = 0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits, torch.softmax(target / 2, dim=1))
    torch.testing.assert_close(soft_target_cross_entropy(logits, labels, target), expected)


def test_weight_zero_is_cross_entropy_and_needs_no_target():
    logits, labels, _ = tensors()
    torch.testing.assert_close(
        soft_target_cross_entropy(logits, labels, None, weight=0.0), F.cross_entropy(logits, labels)
    )


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_gradient_in_closed_form(weight):
    """d loss / d logits = (softmax(logits) - mixture) / B: CE against one mixture of hard and soft target."""
    logits, labels, target = tensors()
    logits.requires_grad_()
    target.requires_grad_()
    soft_target_cross_entropy(logits, labels, target, weight=weight).backward()
    mixture = (1 - weight) * np.eye(4)[LABELS] + weight * softmax(TARGET / 2)
    np.testing.assert_allclose(logits.grad.numpy(), (softmax(LOGITS) - mixture) / 6, atol=1e-14)
    assert target.grad is None  # no gradient reaches the zero-shot head


def test_minimum_is_at_the_mixture_of_label_and_softened_target():
    _, labels, target = tensors()
    mixture = 0.5 * np.eye(4)[LABELS] + 0.5 * softmax(TARGET / 2)
    entropy = -(mixture * np.log(mixture)).sum(axis=1).mean()
    at = torch.tensor(np.log(mixture))
    lowest = float(soft_target_cross_entropy(at, labels, target))
    assert lowest == pytest.approx(entropy, rel=1e-12)
    for seed in range(5):
        step = torch.randn(at.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert float(soft_target_cross_entropy(at + 0.05 * step, labels, target)) > lowest


def test_large_logits_stay_finite():
    value = soft_target_cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([1]), torch.tensor([[1e4, -1e4]]))
    assert float(value) == pytest.approx(1e4)  # 0.5 * 2e4 + 0.5 * 0


@pytest.mark.parametrize(
    "target, temperature, weight, message",
    [
        (torch.zeros(6, 3), 2.0, 0.5, r"shape \(6, 3\)"),
        (None, 2.0, 0.5, "shape None"),
        (torch.zeros(6, 4), 0.0, 0.5, "temperature is 0.0"),
        (torch.zeros(6, 4), 2.0, 1.5, "weight is 1.5"),
    ],
)
def test_bad_input_is_named(target, temperature, weight, message):
    logits, labels, _ = tensors()
    with pytest.raises(ValueError, match=message):
        soft_target_cross_entropy(logits, labels, target, temperature, weight)
