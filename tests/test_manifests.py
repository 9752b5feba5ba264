"""The CLIP filter against a plain loop over images, and its promises about what changes with what."""

import time

import numpy as np
import pytest

from pipeline_lib.manifests import Reason, counts_per_class, resolve_threshold, select
from pipeline_lib.real_filter import RealFilter


def make(n=600, n_classes=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_classes, n), rng.random(n).astype(np.float32), rng.random(n) > 0.1, n_classes


def cut(data, threshold=0.5, per_class=None, min_per_class=0, seed=0):
    return select(*data, threshold, per_class, min_per_class, seed)


@pytest.mark.parametrize("threshold, per_class, minimum", [(0.5, None, 0), (0.5, 30, 10), (0.9, 30, 30), (0.99, 5, 5)])
def test_agrees_with_a_plain_loop(threshold, per_class, minimum):
    data = class_index, p, valid, n_classes = make()
    result = cut(data, threshold, per_class, minimum)
    for c in range(n_classes):
        rows = [i for i in range(len(p)) if class_index[i] == c]
        passed = [i for i in rows if valid[i] and p[i] > threshold]
        others = sorted((i for i in rows if valid[i] and p[i] <= threshold), key=lambda i: -p[i])
        filled = others[: max(0, minimum - len(passed))]
        kept = [i for i in passed if result.reason[i] == Reason.KEPT]
        assert len(kept) == min(len(passed), per_class or len(passed))
        for i in rows:
            if not valid[i]:
                expected = Reason.INVALID
            elif i in filled:
                expected = Reason.FALLBACK
            elif i in others:
                expected = Reason.BELOW_THRESHOLD
            else:
                expected = Reason.KEPT if i in kept else Reason.OVER_CAP
            assert result.reason[i] == expected
    np.testing.assert_array_equal(result.kept, np.isin(result.reason, [Reason.KEPT, Reason.FALLBACK]))
    assert result.kept.dtype == np.bool_ and result.reason.dtype == np.int8


def test_the_threshold_itself_does_not_pass():
    """Paper: keep where the probability exceeds 1/N; an encoder that knows nothing gives 1/N and keeps nothing."""
    n_classes = 10
    p = np.full(n_classes, 1 / n_classes, np.float32)
    p[3] = np.nextafter(np.float32(0.1), np.float32(1))
    result = cut((np.arange(n_classes), p, np.ones(n_classes, bool), n_classes), resolve_threshold("1/N", n_classes))
    np.testing.assert_array_equal(np.flatnonzero(result.kept), [3])


def test_released_code_is_a_cap_and_minimum_of_800():
    rng = np.random.default_rng(1)
    class_index = np.repeat([0, 1], 2_000)
    p = np.where(rng.random(4_000) < np.where(class_index == 0, 0.6, 0.2), 0.9, 0.1 * rng.random(4_000))
    result = cut((class_index, p, np.ones(4_000, bool), 2), 0.5, 800, 800)
    counts = counts_per_class(class_index, result.reason, 2)
    assert counts[0, Reason.KEPT] == 800 and counts[0, Reason.FALLBACK] == 0
    assert counts[1, Reason.KEPT] == (p[2_000:] > 0.5).sum()
    assert counts[1, Reason.KEPT] + counts[1, Reason.FALLBACK] == 800
    top = np.argsort(-p[2_000:], kind="stable")[:800] + 2_000  # "the top 800 if fewer passed"
    np.testing.assert_array_equal(np.flatnonzero(result.kept[2_000:]) + 2_000, np.sort(top))


def test_without_threshold_all_valid_images_are_kept_up_to_the_cap():
    class_index, p, valid, n_classes = make()
    result = select(class_index, None, valid, n_classes, None, None, 50, 0)
    np.testing.assert_array_equal(result.reason, np.where(valid, Reason.NO_FILTER, Reason.INVALID))
    np.testing.assert_array_equal(result.kept, valid)
    capped = select(class_index, p, valid, n_classes, None, 20, 0, 0)
    counts = counts_per_class(class_index, capped.reason, n_classes)
    assert (counts[:, Reason.NO_FILTER] == 20).all()
    assert (counts[:, [Reason.KEPT, Reason.FALLBACK, Reason.BELOW_THRESHOLD]] == 0).all()
    assert (capped.kept == (capped.reason == Reason.NO_FILTER)).all()


def test_images_without_a_finite_score_are_invalid_with_and_without_filter():
    p = np.array([0.9, np.nan, np.inf, 0.1], np.float32)
    for threshold in (0.5, None):
        result = cut((np.zeros(4, int), p, np.ones(4, bool), 1), threshold, None, 4 if threshold else 0)
        np.testing.assert_array_equal(result.reason == Reason.INVALID, [False, True, True, False])


def test_fallback_takes_the_most_confident_valid_images_earlier_ones_first_among_equals():
    p = np.array([0.2, 0.4, 0.4, 0.45, 0.4, 0.9])
    valid = np.array([True, True, True, False, True, True])
    result = cut((np.zeros(6, int), p, valid, 1), 0.5, None, 3)
    assert [Reason(r).name.lower() for r in result.reason] == [
        "below_threshold",
        "fallback",
        "fallback",
        "invalid",
        "below_threshold",
        "kept",
    ]


def test_fewer_valid_images_than_the_minimum_keep_what_there_is():
    result = cut((np.zeros(3, int), np.full(3, 0.1), np.array([True, False, True]), 2), 0.5, None, 10)
    assert [*result.reason] == [Reason.FALLBACK, Reason.INVALID, Reason.FALLBACK]


def test_draw_depends_on_the_seed_and_is_uniform():
    n, drawn = 10, np.zeros(10)
    data = (np.zeros(n, int), np.ones(n), np.ones(n, bool), 1)
    for seed in range(2_000):
        drawn += cut(data, 0.5, 3, 0, seed).kept
    # Each image is in 3 of 10 draws: 600 of 2000, standard deviation 20.5; five of them is far out.
    assert np.abs(drawn - 600).max() < 5 * 20.5
    np.testing.assert_array_equal(cut(data, 0.5, 3, 0, 7).kept, cut(data, 0.5, 3, 0, 7).kept)


def test_draws_of_different_classes_are_not_the_same_positions():
    class_index = np.repeat(np.arange(20), 30)
    kept = cut((class_index, np.ones(600), np.ones(600, bool), 20), 0.5, 5).kept.reshape(20, 30)
    assert len({row.tobytes() for row in kept}) == 20


def test_draw_of_a_class_does_not_depend_on_other_classes():
    class_index, p, valid, n_classes = make()
    whole = cut((class_index, p, valid, n_classes), 0.5, 20, 5)
    for c in range(n_classes):
        rows = class_index == c
        alone = cut((class_index[rows], p[rows], valid[rows], n_classes + 3), 0.5, 20, 5)
        np.testing.assert_array_equal(alone.reason, whole.reason[rows])
    # nor on how the classes are interleaved
    order = np.argsort(class_index, kind="stable")
    grouped = cut((class_index[order], p[order], valid[order], n_classes), 0.5, 20, 5)
    np.testing.assert_array_equal(grouped.reason, whole.reason[order])


def test_a_smaller_cap_keeps_a_part_and_a_stricter_threshold_changes_little():
    data = make(6_000)
    larger, smaller = cut(data, 0.3, 200).kept, cut(data, 0.3, 100).kept
    assert (smaller <= larger).all() and smaller.sum() == 600
    still = cut(data, 0.31, 200).kept & larger
    lost = larger & ~still
    assert (data[1][lost] <= 0.31).all()  # what still passes is still drawn


def test_appended_images_displace_no_more_of_the_draw_than_they_take():
    class_index, p, valid, n_classes = make(6_000)
    before = cut((class_index[:5_000], p[:5_000], valid[:5_000], n_classes), 0.3, 200).kept
    after = cut((class_index, p, valid, n_classes), 0.3, 200).kept
    assert (after[:5_000] <= before).all()  # none comes in that was out ...
    assert 0 < after[5_000:].sum() == (before & ~after[:5_000]).sum()  # ... and one goes out for each new one


def filtered(n=600, share=0.3, seed=5):
    """A result of real filtering: those above a threshold are too close."""
    similarity = np.random.default_rng(seed).random(n).astype(np.float32)
    return RealFilter(similarity > 1 - share, similarity, np.zeros(n, np.int32), 1 - share)


@pytest.mark.parametrize(
    "threshold, per_class, minimum, min_left", [(0.5, None, 0, 0), (0.5, 20, 10, 8), (0.9, 9, 9, 5)]
)
def test_real_filtering_agrees_with_a_plain_loop(threshold, per_class, minimum, min_left):
    """CLIP filter with its fallback, then real filtering with its own, then the cap."""
    data = class_index, p, valid, n_classes = make()
    close = filtered(share=0.7)
    result = select(*data, threshold, per_class, minimum, 0, close, min_left)
    for c in range(n_classes):
        rows = [i for i in range(len(p)) if class_index[i] == c]
        expected = {i: Reason.KEPT if p[i] > threshold else Reason.BELOW_THRESHOLD for i in rows}
        expected |= {i: Reason.INVALID for i in rows if not valid[i]}
        below = sorted((i for i in rows if expected[i] == Reason.BELOW_THRESHOLD), key=lambda i: -p[i])
        n_passed = sum(expected[i] == Reason.KEPT for i in rows)
        expected |= dict.fromkeys(below[: max(0, minimum - n_passed)], Reason.FALLBACK)
        kept = [i for i in rows if expected[i] in (Reason.KEPT, Reason.FALLBACK)]
        dropped = sorted((i for i in kept if close.too_close[i]), key=lambda i: close.other_similarity[i])
        n_left = len(kept) - len(dropped)
        expected |= dict.fromkeys(dropped, Reason.TOO_CLOSE)
        expected |= dict.fromkeys(dropped[: max(0, min_left - n_left)], Reason.FALLBACK)
        left = [i for i in rows if expected[i] in (Reason.KEPT, Reason.FALLBACK)]
        assert min_left == 0 or len(left) >= min(min_left, len(kept))
        assert result.kept[rows].sum() == min(len(left), per_class or len(left))
        for i in rows:
            if result.reason[i] == Reason.OVER_CAP:
                assert i in left and len(left) > per_class
            else:
                assert result.reason[i] == expected[i]
    assert (result.reason == Reason.TOO_CLOSE).any()
    np.testing.assert_array_equal(result.kept, np.isin(result.reason, [Reason.KEPT, Reason.FALLBACK]))
    counts = counts_per_class(class_index, result.reason, n_classes)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(class_index, minlength=n_classes))
    assert counts[:, Reason.TOO_CLOSE].sum() == (result.reason == Reason.TOO_CLOSE).sum()


def test_farthest_from_other_classes_fill_up_earlier_ones_first_among_equals():
    similarity = np.array([0.9, 0.8, 0.8, 0.95, 0.2, 0.7], np.float32)
    close = RealFilter(similarity > 0.5, similarity, np.zeros(6, np.int32), 0.5)
    p = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.1])  # the last one did not pass the CLIP filter: it is no candidate
    result = select(np.zeros(6, int), p, np.ones(6, bool), 1, 0.5, None, 0, 0, close, 3)
    assert [Reason(r).name.lower() for r in result.reason] == [
        "too_close",
        "fallback",
        "fallback",
        "too_close",
        "kept",
        "below_threshold",
    ]


def test_real_filtering_changes_as_little_of_the_draw_as_it_can():
    """What is drawn from all images and is not too close, is drawn from those that are left too."""
    data, close = make(6_000), filtered(6_000)
    basic = cut(data, 0.3, 200).kept
    real = select(*data, 0.3, 200, 0, 0, close).kept
    assert (real[basic] == ~close.too_close[basic]).all()
    per_class = np.bincount(data[0][real], minlength=data[3])
    assert (per_class == 200).all()


def test_real_filtering_that_finds_nothing_changes_nothing():
    data = make()
    nothing = RealFilter(np.zeros(600, bool), np.zeros(600, np.float32), np.zeros(600, np.int32), 1.0)
    for arguments in ((0.5, 30, 10), (None, 20, 0)):
        expected = select(*data, *arguments, 0).reason
        np.testing.assert_array_equal(select(*data, *arguments, 0, nothing, 8).reason, expected)


def test_real_filtering_works_without_a_clip_filter():
    class_index, _, valid, n_classes = make()
    close = filtered()
    result = select(class_index, None, valid, n_classes, None, None, 0, 0, close)
    np.testing.assert_array_equal(result.kept, valid & ~close.too_close)
    expected = np.where(valid, np.where(close.too_close, Reason.TOO_CLOSE, Reason.NO_FILTER), Reason.INVALID)
    np.testing.assert_array_equal(result.reason, expected)


def test_counts_per_class():
    counts = counts_per_class(np.array([2, 0, 2, 2]), np.array([0, 3, 0, 5], np.int8), 4)
    assert counts.shape == (4, len(Reason)) and counts.dtype == np.int64
    assert counts[2, Reason.KEPT] == 2 and counts[2, Reason.NO_FILTER] == 1 and counts[0, Reason.INVALID] == 1
    assert counts.sum() == 4 and counts[1].sum() == counts[3].sum() == 0


def test_nothing_in_nothing_out():
    empty = (np.empty(0, int), np.empty(0, np.float32), np.empty(0, bool), 3)
    assert len(cut(empty, 0.5, 10, 5).kept) == 0
    assert counts_per_class(empty[0], np.empty(0, np.int8), 3).shape == (3, len(Reason))


def test_a_million_images_are_re_cut_within_a_second():
    rng = np.random.default_rng(2)
    data = (rng.integers(0, 1_000, 1_000_000), rng.random(1_000_000, np.float32), np.ones(1_000_000, bool), 1_000)
    started = time.process_time()
    cut(data, 0.5, 400, 400)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    "text, n_classes, value", [("1/N", 10, 0.1), ("1/N", 1_000, 1e-3), (0.25, 9, 0.25), (0, 9, 0.0)]
)
def test_resolve_threshold(text, n_classes, value):
    assert resolve_threshold(text, n_classes) == value
    assert resolve_threshold(None, n_classes) is None


@pytest.mark.parametrize("threshold", ["1/n", "0.5", "", 1.0, -0.1, float("nan"), True])
def test_bad_thresholds_are_named(threshold):
    with pytest.raises(ValueError, match='allowed is "1/N"'):
        resolve_threshold(threshold, 10)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_index": np.array([0, 6])}, "allowed is 0 to 5"),
        ({"class_index": np.array([0, -1])}, "from -1 to 0"),
        ({"class_index": np.array([0.0, 1.0])}, "integers"),
        ({"valid": np.array([True])}, "one bool an image"),
        ({"valid": np.array([1, 0])}, "one bool an image"),
        ({"own_probability": np.array([0.1])}, "one an image"),
        ({"own_probability": None}, "score the images first"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"per_class": 0}, "per_class is 0"),
        ({"min_per_class": 11}, r"min_per_class is 11; allowed is 0 to per_class \(10\)"),
        ({"min_per_class": -1}, "min_per_class is -1"),
        ({"min_left": 11}, r"min_left is 11; allowed is 0 to per_class \(10\)"),
        ({"min_left": -1}, "min_left is -1"),
        ({"real_filter": filtered(3)}, r"real_filter is of \(3,\) images; there are \(2,\)"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "class_index": np.array([0, 5]),
        "own_probability": np.array([0.1, 0.9]),
        "valid": np.array([True, True]),
        "n_classes": 6,
        "threshold": 0.5,
        "per_class": 10,
        "min_per_class": 2,
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        select(**{**arguments, **change})
