"""Accuracies, gains and their intervals against closed forms, enumeration and simulation."""

import itertools
import statistics

import numpy as np
import pytest

from pipeline_lib.metrics.classification import (
    PairedDifference,
    average_gain,
    paired_bootstrap_gain,
    paired_difference,
    per_class_top1,
    top1,
)

Z = 1.959963984540054  # 97.5% point of the standard normal

# Paper, Table 1: top-1 of CLIP RN50 without and with synthetic images, the 17 data sets in the paper's order.
TABLE_1 = [
    (70.31, 80.06),
    (35.35, 45.69),
    (86.09, 87.74),
    (73.36, 75.74),
    (60.33, 60.78),
    (58.51, 60.07),
    (17.34, 21.94),
    (34.33, 38.05),
    (55.63, 56.93),
    (46.69, 56.94),
    (66.08, 67.05),
    (80.34, 80.35),
    (85.80, 86.81),
    (42.23, 43.19),
    (37.51, 55.37),
    (33.29, 36.55),
    (56.16, 59.37),
]


def record(pool, difference, source_ids=None):
    ids = np.arange(len(difference)) if source_ids is None else source_ids
    return PairedDifference(pool, np.asarray(ids), np.asarray(difference, float))


def random_difference(rng, n):
    """Differences as five tuned heads against one zero-shot head give them."""
    return rng.binomial(5, 0.7, n) / 5 - rng.binomial(1, 0.6, n)


def test_top1_is_the_mean_over_seeds_in_percent():
    labels = np.array([0, 1, 2, 2])
    predictions = np.array([[0, 1, 2, 2], [0, 0, 2, 1]])
    assert top1(predictions, labels) == 75.0
    np.testing.assert_array_equal(per_class_top1(predictions, labels, 4), [100.0, 50.0, 75.0, np.nan])


def test_paired_difference_averages_each_side_over_its_own_seeds():
    labels = np.array([0, 1])
    difference = paired_difference(np.array([[0, 0], [0, 1], [1, 1], [0, 1]]), np.array([[1, 1]]), labels)
    np.testing.assert_allclose(difference, [0.75, -0.25])


def test_gain_is_the_difference_of_the_accuracies():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 300)
    method, baseline = rng.integers(0, 10, (3, 300)), rng.integers(0, 10, (1, 300))
    gain = paired_bootstrap_gain(method, baseline, labels, resamples=200)
    assert gain.value == pytest.approx(top1(method, labels) - top1(baseline, labels))
    assert gain.low < gain.value < gain.high
    assert (gain.n, gain.resamples, gain.level) == (300, 200, 0.95)


@pytest.mark.parametrize("level, z", [(0.95, Z), (0.8, 1.2815515655446004)])
def test_interval_of_a_mean_agrees_with_the_normal_approximation(level, z):
    rng = np.random.default_rng(1)
    n = 4_000
    labels = np.zeros(n, int)
    method = (rng.random((3, n)) > 0.7).astype(int)
    baseline = (rng.random((1, n)) > 0.6).astype(int)
    gain = paired_bootstrap_gain(method, baseline, labels, level=level)
    half = 100 * z * paired_difference(method, baseline, labels).std() / np.sqrt(n)
    assert gain.low == pytest.approx(gain.value - half, abs=0.04 * half)
    assert gain.high == pytest.approx(gain.value + half, abs=0.04 * half)


def test_pairing_removes_what_is_hard_for_both():
    rng = np.random.default_rng(2)
    labels = np.zeros(2_000, int)
    baseline = (rng.random((1, 2_000)) > 0.5).astype(int)
    method = baseline.copy()
    method[0, :20] = 0
    gain = paired_bootstrap_gain(method, baseline, labels)
    assert gain.high - gain.low < 1.0  # unpaired it would be about 2 * 1.96 * sqrt(2 * 0.25 / 2000) = 6.2 points
    unchanged = paired_bootstrap_gain(baseline, baseline, labels)
    assert (unchanged.value, unchanged.low, unchanged.high) == (0.0, 0.0, 0.0)


def test_exact_quantiles_of_three_images():
    # The resampled sum is Binomial(3, 1/3): P(0) = 8/27, P(3) = 1/27, so 95% reaches from 0 to 3 and 80% from 0 to 2.
    labels, baseline, method = np.zeros(3, int), np.array([[1, 1, 1]]), np.array([[0, 1, 1]])
    wide = paired_bootstrap_gain(method, baseline, labels)
    assert (wide.low, wide.high) == pytest.approx((0.0, 100.0))
    narrow = paired_bootstrap_gain(method, baseline, labels, level=0.8)
    assert (narrow.low, narrow.high) == pytest.approx((0.0, 200 / 3))


def test_two_data_sets_that_share_images_agree_with_enumeration():
    # Four images; the first data set has all of them, the second has two, one of them twice.
    first = np.array([1.0, -0.5, 0.25, 0.0])
    second_ids, second = np.array([2, 3, 3]), np.array([-1.0, 0.5, 1.0])
    outcomes = []
    for draw in itertools.product(range(4), repeat=4):
        values = [value for image in draw for i, value in zip(second_ids, second, strict=True) if i == image]
        if values:
            outcomes.append(100 * (np.mean(first[list(draw)]) + np.mean(values)) / 2)
    gain = average_gain([record("p", first), record("p", second, second_ids)], resamples=40_000)
    # The bootstrap has atoms; the ends must be where the enumeration has its 2.5% and 97.5% points, within its error.
    for end, share in ((gain.low, 0.025), (gain.high, 0.975)):
        below = np.mean(np.array(outcomes) < end - 1e-6)
        at_most = np.mean(np.array(outcomes) <= end + 1e-6)
        assert below - 0.005 <= share <= at_most + 0.005
    assert gain.value == pytest.approx(100 * (first.mean() + second.mean()) / 2)
    assert gain.n == 4


def test_perfectly_correlated_data_sets_give_the_interval_of_one():
    rng = np.random.default_rng(3)
    difference = random_difference(rng, 1_000)
    order = rng.permutation(1_000)
    one = average_gain([record("p", difference)])
    same = average_gain([record("p", difference), record("p", difference[order], order), record("p", difference)])
    assert (same.value, same.low, same.high) == pytest.approx((one.value, one.low, one.high))
    assert same.n == one.n == 1_000


def test_opposed_data_sets_cancel_where_they_share_images_only():
    difference = random_difference(np.random.default_rng(4), 500)
    shared = average_gain([record("p", difference), record("p", -difference)])
    assert (shared.low, shared.high) == pytest.approx((0.0, 0.0), abs=1e-9)
    apart = average_gain([record("p", difference), record("q", -difference)])
    assert apart.high - apart.low > 1.0


def test_pools_are_drawn_independently_even_where_their_differences_are_equal():
    difference = random_difference(np.random.default_rng(8), 2_000)
    one = average_gain([record("p", difference)])
    two = average_gain([record("p", difference), record("q", difference)])
    assert two.high - two.low == pytest.approx((one.high - one.low) / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("pools", [("p", "q", "r"), ("p", "p", "q")])
def test_average_agrees_with_the_normal_approximation(pools):
    rng = np.random.default_rng(5)
    sizes = (1_000, 1_000, 4_000)  # each data set counts once, whatever its size
    differences = [random_difference(rng, n) for n in sizes]
    gain = average_gain([record(pool, d) for pool, d in zip(pools, differences, strict=True)])
    assert gain.value == pytest.approx(100 * np.mean([d.mean() for d in differences]))
    if pools[0] == pools[1]:
        variance = (differences[0] + differences[1]).var() / 1_000 + differences[2].var() / 4_000
        assert gain.n == 5_000
    else:
        variance = sum(d.var() / len(d) for d in differences)
        assert gain.n == 6_000
    assert gain.high - gain.low == pytest.approx(2 * Z * 100 * np.sqrt(variance) / 3, rel=0.04)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 200 images share a pool between two data sets with correlated differences; the true gain is known.
    rng = np.random.default_rng(6)
    trials, hits = 300, 0
    for _ in range(trials):
        shared = rng.random(200)
        first = (shared < 0.3).astype(float) - (shared > 0.8)
        second = (shared < 0.4).astype(float) - (rng.random(200) > 0.9)
        gain = average_gain([record("p", first), record("p", second)], resamples=400, seed=1)
        hits += gain.low <= 100 * (0.1 + 0.3) / 2 <= gain.high
    # Three binomial standard deviations (1.26 points) and a point of the percentile method's own shortfall.
    assert 0.90 <= hits / trials <= 0.985


def test_intervals_are_reproducible_and_depend_on_the_seed():
    difference = random_difference(np.random.default_rng(7), 777)
    first, again, other = (average_gain([record("p", difference)], resamples=500, seed=s) for s in (0, 0, 1))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_published_gain_of_table_1_is_the_mean_over_its_data_sets():
    records = [record(str(i), np.full(10, (syn - clip) / 100)) for i, (clip, syn) in enumerate(TABLE_1)]
    gain = average_gain(records, resamples=10)
    assert gain.value == pytest.approx(statistics.fmean(syn - clip for clip, syn in TABLE_1))
    assert round(gain.value, 2) == 4.31  # as printed


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: top1(np.array([0, 1]), np.array([0, 1])), "a row a seed"),
        (lambda: top1(np.array([[0, 1, 2]]), np.array([0, 1])), r"\[n_seeds, 2\]"),
        (lambda: top1(np.empty((1, 0), int), np.empty(0, int)), "N at least 1"),
        (lambda: per_class_top1(np.array([[0]]), np.array([5]), 5), "0 to 4"),
        (lambda: average_gain([]), "at least one"),
        (lambda: average_gain([record("p", [0.0])], resamples=0), "resamples is 0"),
        (lambda: average_gain([record("p", [0.0])], level=95), "level is 95"),
        (lambda: record("p", [0.0, 50.0]), "not percent"),
        (lambda: record("p", [0.0, np.nan]), "outside"),
        (lambda: record("p", [0.0], [1, 2]), "N at least 1"),
        (lambda: record("p", []), "N at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
