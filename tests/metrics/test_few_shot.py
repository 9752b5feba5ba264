"""Contrasts of accuracies: hand-computed numbers, closed forms, the bootstrap, and simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline_lib.metrics.classification import PairedDifference, average_gain
from pipeline_lib.metrics.few_shot import contrast, t_quantile
from pipeline_lib.metrics.outcomes import Outcome


def outcome(correct, dataset="a", pool="p", source_ids=None, seeds=None):
    correct = np.atleast_2d(np.asarray(correct, bool))
    ids = np.arange(correct.shape[1]) if source_ids is None else np.asarray(source_ids)
    return Outcome(dataset, pool, ids, tuple(range(len(correct))) if seeds is None else seeds, correct)


def half(found):
    return (found.high - found.low) / 2


def repeated(correct, n_seeds=3):
    """The same outcome at every seed: nothing varies from seed to seed."""
    return np.tile(correct, (n_seeds, 1))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 24, 25, 300])
@pytest.mark.parametrize("share", [0.6, 0.95, 0.975, 0.9995])
def test_quantiles_of_students_t_are_scipys(degrees, share):
    assert t_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=1e-10)


def test_quantiles_are_those_of_the_printed_tables():
    assert [round(t_quantile(0.975, degrees), 3) for degrees in (1, 2, 4, 9)] == [12.706, 4.303, 2.776, 2.262]


def test_a_hand_computed_accuracy():
    # Seeds: 3/4 and 2/4, mean 0.625, variance 0.03125. Images: 1, 1/2, 0, 1, variance 0.6875 / 3.
    # Half-widths at 50%: of t with one degree of freedom 1, of the normal distribution 0.6744898.
    found = contrast([(1.0, outcome([[1, 1, 0, 1], [1, 0, 0, 1]]))], level=0.5)
    error = 100 * math.sqrt(0.03125 / 2 + 0.6744898**2 * 0.6875 / 3 / 4)
    assert found.value == pytest.approx(62.5)
    assert (found.low, found.high) == pytest.approx((62.5 - error, 62.5 + error), rel=1e-6)
    assert (found.n_seeds, found.n, found.level) == (2, 4, 0.5)


def test_a_hand_computed_difference():
    # By seed and image [[1, 0, 0], [0, 0, -1]]: seeds 1/3 and -1/3, variance 2/9; images 1/2, 0, -1/2, variance 1/4.
    method, baseline = outcome([[1, 1, 0], [1, 0, 0]]), outcome([[0, 1, 0], [1, 0, 1]])
    found = contrast([(1.0, method), (-1.0, baseline)], level=0.5)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.high == pytest.approx(100 * math.sqrt(2 / 9 / 2 + 0.6744898**2 * 1 / 4 / 3), rel=1e-6)
    assert found.low == pytest.approx(-found.high)


def test_zero_shot_has_the_binomial_interval_of_its_images():
    found = contrast([(1.0, outcome(np.arange(400) < 300, seeds=()))])
    assert found.value == 75.0 and found.n_seeds == 0
    assert half(found) == pytest.approx(100 * 1.959964 * math.sqrt(0.75 * 0.25 / 399), rel=1e-6)


def test_zero_shot_counts_for_every_seed():
    rng = np.random.default_rng(0)
    zero_shot, method = rng.random(300) < 0.5, rng.random((4, 300)) < 0.7
    once = contrast([(1.0, outcome(method)), (-1.0, outcome(zero_shot, seeds=()))])
    assert once == contrast([(1.0, outcome(method)), (-1.0, outcome(repeated(zero_shot, 4)))])
    assert once.n_seeds == 4


def test_what_seeds_or_images_have_in_common_cancels():
    rng = np.random.default_rng(1)
    hard = rng.random((5, 1)) + rng.random((1, 500)) < 1.0  # of a seed and of an image, for both methods
    method = hard.copy()
    method[:, :10] = True
    found = contrast([(1.0, outcome(method)), (-1.0, outcome(hard))])
    alone = contrast([(1.0, outcome(method))])
    assert half(found) < 0.1 * half(alone)
    same = contrast([(1.0, outcome(hard)), (-1.0, outcome(hard))])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_seeds_are_paired_between_data_sets():
    rng = np.random.default_rng(2)
    drawn = np.arange(6)[:, None] * 0.1
    up, down = rng.random((6, 2_000)) < 0.2 + drawn, rng.random((6, 2_000)) < 0.7 - drawn
    apart = [half(contrast([(0.5, outcome(one))])) for one in (up, down)]
    together = contrast([(0.5, outcome(up, "a", "p")), (0.5, outcome(down, "b", "q"))])
    assert half(together) < 0.2 * min(apart)


@pytest.mark.parametrize("pools", [("p", "p", "p"), ("p", "p", "q"), ("p", "q", "r")])
def test_where_seeds_do_not_matter_the_images_give_the_bootstraps_interval(pools):
    """Data sets of different sizes that share some images; each counts once, each shared image is one draw."""
    rng = np.random.default_rng(3)
    terms, records = [], []
    for name, pool, n in zip("abc", pools, (900, 500, 1_200), strict=True):
        ids = rng.permutation(1_500)[:n]
        hard = np.random.default_rng(4).random(1_500)[ids]
        method, baseline = hard + 0.3 * rng.random(n) < 0.8, hard + 0.3 * rng.random(n) < 0.7
        terms += [(1 / 3, outcome(repeated(method), name, pool, ids))]
        terms += [(-1 / 3, outcome(repeated(baseline), name, pool, ids))]
        records.append(PairedDifference(pool, ids, method.astype(float) - baseline))
    found, bootstrap = contrast(terms), average_gain(records, resamples=20_000)
    assert found.value == pytest.approx(bootstrap.value) and found.n == bootstrap.n
    assert half(found) == pytest.approx(half(bootstrap), rel=0.03)


def test_an_image_that_is_shown_twice_is_one_draw():
    correct = np.arange(100) % 4 > 0
    once = contrast([(1.0, outcome(correct, seeds=()))])
    twice = contrast([(1.0, outcome(np.repeat(correct, 2), source_ids=np.repeat(np.arange(100), 2), seeds=()))])
    assert twice.n == 100 and (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_intervals_end_where_the_sum_can_end():
    nearly = np.ones((2, 50), bool)
    nearly[0, 0] = False
    accuracy = contrast([(1.0, outcome(nearly))])
    assert accuracy.high == 100.0 and accuracy.low < 99.0
    difference = contrast([(1.0, outcome(~nearly)), (-1.0, outcome(nearly))])
    assert difference.low == -100.0 and difference.high > -99.0


def test_one_seed_or_one_image_gives_no_interval():
    one_seed = contrast([(1.0, outcome([[1, 0, 1, 1]]))])
    assert (one_seed.value, one_seed.low, one_seed.high, one_seed.n_seeds) == (75.0, None, None, 1)
    one_image = contrast([(1.0, outcome([[1], [0]]))])
    assert (one_image.value, one_image.low, one_image.high) == (50.0, None, None)


@pytest.mark.parametrize("of_seed, n_seeds", [(0.1, 5), (0.1, 3), (0.0, 5)])
def test_intervals_of_simulated_studies_cover_the_truth(of_seed, n_seeds):
    """An image is classified correctly where an ability exceeds its difficulty: parts of the method, the drawn shots,
    the image, the method on this image, and chance. All but the first are drawn anew in each of 500 studies."""
    rng = np.random.default_rng(5)
    n_images, studies, abilities = 400, 500, (0.8, 0.5)
    spread = math.sqrt(1 + of_seed**2 + 0.3**2 + 0.5**2)
    truth = 100 * (stats.norm.cdf(abilities[0] / spread) - stats.norm.cdf(abilities[1] / spread))
    found = []
    for _ in range(studies):
        image = rng.normal(0, 1, n_images)
        methods = [
            ability
            + image
            + of_seed * rng.normal(size=(n_seeds, 1))
            + 0.3 * rng.normal(size=n_images)
            + 0.5 * rng.normal(size=(n_seeds, n_images))
            > 0
            for ability in abilities
        ]
        found.append(contrast([(1.0, outcome(methods[0])), (-1.0, outcome(methods[1]))]))
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered >= 0.93
    # Not by being as wide as one likes: at most twice what the quantile makes of the values' true spread.
    true_spread = np.std([one.value for one in found])
    assert np.mean([half(one) for one in found]) < 2 * stats.t.ppf(0.975, n_seeds - 1) * true_spread


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: contrast([]), "give at least one"),
        (lambda: contrast([(1.0, outcome([[1, 0]]))], level=95), "level is 95"),
        (lambda: contrast([(1.0, outcome([[1, 0]], seeds=(0,))), (1.0, outcome([[1, 0]], seeds=(1,)))]), "the same"),
        (lambda: contrast([(1.0, outcome([[1, 0]])), (1.0, outcome([[1, 0]], source_ids=[1, 0]))]), "a: .* different"),
        (lambda: contrast([(1.0, outcome([[1, 0]])), (1.0, outcome([[1, 0]], pool="q"))]), "different images"),
        (lambda: t_quantile(0.975, 0), "degrees 0"),
        (lambda: t_quantile(0.3, 2), "share is 0.3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
