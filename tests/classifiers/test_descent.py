"""Gradient descent on a head: torch's own optimiser to the bit, and which images come together in a step."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from pipeline_lib.classifiers import descent
from pipeline_lib.classifiers.descent import Schedule, Term, descend
from pipeline_lib.classifiers.head import Head
from pipeline_lib.classifiers.tuning import CachedImages

torch.set_num_threads(1)


def make_head(n_classes, d, scale=10.0, seed=0):
    weight = np.random.default_rng(seed).normal(size=(n_classes, d)) * scale / math.sqrt(d)
    return Head(weight, np.zeros(n_classes), tuple(f"class {i}" for i in range(n_classes)))


def make_images(n, head, seed=1):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, head.dimension))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    return CachedImages(features, rng.integers(0, head.n_classes, n), head, False, torch.device("cpu"))


class Numbered:
    """Images that are only counted."""

    device = place = torch.device("cpu")

    def __init__(self, n, smallest_batch=1):
        self.n, self.smallest_batch = n, smallest_batch

    def __len__(self):
        return self.n


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes, d, scale", [(4, 6, 10.0), (10, 256, 100.0), (7, 333, 100.0), (100, 64, 30.0)])
@pytest.mark.parametrize("max_grad_norm, weight_decay", [(1.0, 0.1), (0.05, 0.0), (math.inf, 0.5)])
def test_steps_are_those_of_torchs_adamw_to_the_bit(n_classes, d, scale, max_grad_norm, weight_decay):
    start = make_head(n_classes, d, scale)
    images = make_images(150, start)
    schedule = Schedule(epochs=4, learning_rate=0.01, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
    term = Term(images, 32)
    found = descend([term], start, schedule, seed=3)

    weight, bias = (torch.tensor(values, requires_grad=True) for values in (start.weight, start.bias))
    optimizer = torch.optim.AdamW([weight, bias], lr=0.01, weight_decay=weight_decay, foreach=False)
    rows = term.passes(generator(3))
    for step in range(20):
        features, labels, _ = images.batch(next(rows))
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / 20))
        optimizer.zero_grad()
        F.cross_entropy(F.linear(features, weight, bias), labels).backward()
        clip_grad_norm_([weight, bias], max_grad_norm)
        optimizer.step()
    np.testing.assert_array_equal(found.head.weight, weight.detach().numpy())
    np.testing.assert_array_equal(found.head.bias, bias.detach().numpy())
    assert found.steps == 20 and np.abs(found.head.weight - start.weight).max() > 1e-3


def test_terms_are_added(monkeypatch):
    start = make_head(4, 6)
    terms = [Term(make_images(40, start, seed=1), 16), Term(make_images(10, start, seed=2), 4)]
    summed, step = [], descent._AdamW.step

    def spy(self, loss, rate):
        summed.append(loss.item())
        step(self, loss, rate)

    monkeypatch.setattr(descent._AdamW, "step", spy)
    each = {id(term): [] for term in terms}
    loss_of = Term.loss

    def record(self, rows, weight, bias):
        loss = loss_of(self, rows, weight, bias)
        each[id(self)].append((len(rows), loss.item()))
        return loss

    monkeypatch.setattr(Term, "loss", record)
    result = descend(terms, start, Schedule(epochs=2), 0)
    first, second = each.values()
    np.testing.assert_allclose(summed, [a[1] + b[1] for a, b in zip(first, second, strict=True)], rtol=1e-6)
    assert [size for size, _ in first] == [16, 16, 8] * 2 and [size for size, _ in second] == [4] * 6
    for epoch, loss in enumerate(result.epoch_losses):
        steps = slice(3 * epoch, 3 * epoch + 3)
        means = [
            sum(n * value for n, value in term[steps]) / sum(n for n, _ in term[steps]) for term in (first, second)
        ]
        assert loss == pytest.approx(sum(means), rel=1e-9)


def test_start_is_left_alone():
    start = make_head(4, 6)
    before = start.weight.copy()
    descend([Term(make_images(40, start), 16)], start, Schedule(epochs=2), 0)
    np.testing.assert_array_equal(start.weight, before)


# --- which images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, size, smallest, sizes",
    [
        (70, 32, 1, [32, 32, 6]),
        (65, 32, 1, [32, 32, 1]),
        (65, 32, 2, [32, 33]),
        (66, 32, 2, [32, 32, 2]),
        (64, 32, 2, [32, 32]),
        (33, 32, 2, [33]),
        (5, 32, 2, [5]),
        (1, 32, 2, [1]),
    ],
)
def test_a_pass_has_each_image_once_and_no_batch_that_is_too_small(n, size, smallest, sizes):
    term = Term(Numbered(n, smallest), size)
    assert term.batch_sizes() == sizes
    batches = list(itertools.islice(term.passes(generator()), 3 * len(sizes)))
    assert [len(batch) for batch in batches] == sizes * 3
    for number in range(3):
        rows = torch.cat(batches[number * len(sizes) : (number + 1) * len(sizes)])
        assert sorted(rows.tolist()) == list(range(n))
    if n > 32:
        assert not torch.equal(torch.cat(batches[: len(sizes)]), rows)  # each pass is shuffled anew


@pytest.mark.parametrize("n, size", [(5, 32), (7, 3), (10, 4), (3, 3), (33, 32), (1, 8), (40, 32), (9, 1)])
def test_cycled_images_are_seen_equally_often_at_any_time(n, size):
    seen = np.zeros(n, int)
    batches = list(itertools.islice(Term(Numbered(n), size).cycle(generator()), 50))
    for batch in batches:
        assert len(batch) == min(n, size)
        np.add.at(seen, batch.numpy(), 1)
        assert seen.max() - seen.min() <= 1
    if n > 3:
        assert len({tuple(batch.tolist()) for batch in batches}) > 5


def test_order_of_one_kind_is_not_that_of_the_other():
    """Images are often sorted by class: with one order for both, a step would have the same classes twice."""
    drawn = []

    class Recorded(Numbered):
        def batch(self, rows):
            drawn.append(rows)
            return torch.ones(len(rows), 6), torch.zeros(len(rows), dtype=torch.int64), None

    descend([Term(Recorded(40), 40), Term(Recorded(40), 40)], make_head(4, 6), Schedule(epochs=1), 0)
    assert len(drawn) == 2 and not torch.equal(*drawn)
