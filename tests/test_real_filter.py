"""Real filtering on vectors whose cosines are known, against a loop in float64, and what it does not depend on."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from pipeline_lib import real_filter as module
from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.real_filter import real_filter

NONE = Examples(np.empty((0, 2), np.float32), np.empty(0, int))


def at(*degrees):
    """Unit vectors in the plane: the cosine of two is that of the angle between them."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def cosine(degrees):
    return math.cos(math.radians(degrees))


def make(n=300, n_classes=5, d=16, shots=4, seed=0):
    rng = np.random.default_rng(seed)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    centres = rng.normal(size=(n_classes, d))

    def draw(labels):
        return unit(centres[labels] + 1.5 * rng.normal(size=(len(labels), d)))

    labels, real, held_out = rng.integers(0, n_classes, n), *(np.repeat(np.arange(n_classes), k) for k in (shots, 2))
    return draw(labels), labels, Examples(draw(real), real), Examples(draw(held_out), held_out)


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_angles_in_closed_form():
    """Class 0 has shots at 0 and 50 degrees, class 1 at 90, class 2 at 200; one validation image of class 0 at 60."""
    shots = Examples(at(0, 90, 50, 200), np.array([0, 1, 0, 2]))
    validation = Examples(at(60), np.array([0]))
    # Angles of the real images to the nearest shot of another class: 90 (to 90), 40, 40 (to 90), 110 (to 90), 30.
    features = at(65, 65, 50, 60, 91, 140, 200)
    class_index = np.array([0, 1, 0, 2, 0, 2, 1])
    expected = [25, 15, 40, 10, 1, 50, 0]
    nearest = [1, 2, 1, 2, 1, 1, 3]
    for quantile, degrees in ((1.0, 30), (0.75, 40), (0.5, 40), (0.25, 90)):
        result = real_filter(features, class_index, shots, validation, quantile)
        assert result.threshold == pytest.approx(cosine(degrees), abs=1e-6)
        np.testing.assert_allclose(result.other_similarity, [cosine(angle) for angle in expected], atol=1e-6)
        np.testing.assert_array_equal(result.nearest, nearest)
    highest = real_filter(features, class_index, shots, validation, 1.0)
    np.testing.assert_array_equal(highest.too_close, [True, True, False, True, True, False, True])
    assert highest.too_close.dtype == np.bool_ and highest.other_similarity.dtype == np.float32
    assert highest.nearest.dtype == np.int32


def test_threshold_between_two_real_images_is_interpolated():
    """Four shots, no validation images: cosines of 110, 90, 40 and 40 degrees are the quantiles 0, 1/3, 2/3 and 1."""
    shots = Examples(at(0, 90, 50, 200), np.array([0, 1, 0, 2]))
    for quantile, expected in (
        (0.9, cosine(40)),
        (0.5, (cosine(90) + cosine(40)) / 2),
        (0.1, 0.7 * cosine(110) + 0.3 * cosine(90)),
    ):
        threshold = real_filter(at(0), np.array([0]), shots, NONE, quantile).threshold
        assert threshold == pytest.approx(expected, abs=1e-6)


def test_the_threshold_itself_is_not_too_close():
    """Vectors whose cosines are exact: 1/2 to the other class, and half a bit more."""
    shots = Examples(np.array([[1, 1, 1, 1], [1, 0, 0, 0]], np.float32), np.array([0, 1]))
    features = np.array([[1, 0, 0, 0], [1, 0, 0, 1e-3], [1, 1, 1, 1]], np.float32)
    result = real_filter(features, np.array([1, 1, 0]), shots, Examples(shots.features[:0], np.empty(0, int)), 1.0)
    assert result.threshold == 0.5
    np.testing.assert_array_equal(result.too_close, [False, True, False])


@pytest.mark.parametrize("quantile", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("block", [2**24, 64, 1])
def test_agrees_with_a_plain_loop(quantile, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_VALUES", block)
    features, class_index, shots, validation = make()

    def nearest_other(vector, label):
        cosines = [
            float(vector.astype(float) @ shot.astype(float)) if other != label else -math.inf
            for shot, other in zip(shots.features, shots.labels, strict=True)
        ]
        return max(cosines), int(np.argmax(cosines))

    of_real = [
        nearest_other(vector, label)[0]
        for real in (shots, validation)
        for vector, label in zip(real.features, real.labels, strict=True)
    ]
    threshold = np.quantile(of_real, quantile)
    result = real_filter(features, class_index, shots, validation, quantile)
    assert result.threshold == pytest.approx(threshold, abs=1e-6)
    expected = [nearest_other(vector, label) for vector, label in zip(features, class_index, strict=True)]
    np.testing.assert_allclose(result.other_similarity, [similarity for similarity, _ in expected], atol=1e-6)
    np.testing.assert_array_equal(result.nearest, [position for _, position in expected])
    np.testing.assert_array_equal(result.too_close, [similarity > threshold for similarity, _ in expected])
    assert 0 < result.too_close.sum() < len(features)


def test_a_share_of_real_images_would_be_too_close_themselves():
    """What the quantile means: real images, filtered as if they were synthetic."""
    _, _, shots, validation = make(shots=40)
    real = Examples(
        np.concatenate([shots.features, validation.features]), np.concatenate([shots.labels, validation.labels])
    )
    for quantile in (0.5, 0.9, 0.99):
        share = real_filter(real.features, real.labels, shots, validation, quantile).too_close.mean()
        assert share == pytest.approx(1 - quantile, abs=1 / len(real))


# --- invariances ------------------------------------------------------------------------------------------------------


def test_order_of_the_shots_does_not_matter():
    features, class_index, shots, validation = make()
    order = np.random.default_rng(3).permutation(len(shots))
    first = real_filter(features, class_index, shots, validation, 0.9)
    shuffled = Examples(shots.features[order], shots.labels[order])
    second = real_filter(features, class_index, shuffled, validation, 0.9)
    np.testing.assert_array_equal(first.too_close, second.too_close)
    np.testing.assert_array_equal(first.nearest, order[second.nearest])
    assert first.threshold == pytest.approx(second.threshold, abs=1e-6)


def test_lengths_of_features_do_not_matter():
    features, class_index, shots, validation = make()
    rng = np.random.default_rng(3)
    scaled = [vectors * rng.uniform(0.1, 10, (len(vectors), 1)) for vectors in (features, shots.features)]
    first = real_filter(features, class_index, shots, validation, 0.9)
    second = real_filter(scaled[0], class_index, Examples(scaled[1], shots.labels), validation, 0.9)
    np.testing.assert_array_equal(first.too_close, second.too_close)
    np.testing.assert_allclose(first.other_similarity, second.other_similarity, atol=1e-6)


def test_turning_all_features_does_not_matter():
    features, class_index, shots, validation = make()
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))
    first = real_filter(features, class_index, shots, validation, 0.9)
    turned = [Examples(real.features @ turn, real.labels) for real in (shots, validation)]
    second = real_filter(features @ turn, class_index, *turned, 0.9)
    np.testing.assert_array_equal(first.too_close, second.too_close)


def test_numbering_of_the_classes_does_not_matter():
    features, class_index, shots, validation = make()
    number = np.array([3, 0, 4, 1, 2])
    first = real_filter(features, class_index, shots, validation, 0.9)
    renumbered = [Examples(real.features, number[real.labels]) for real in (shots, validation)]
    second = real_filter(features, number[class_index], *renumbered, 0.9)
    np.testing.assert_array_equal(first.too_close, second.too_close)


def test_half_precision_is_near():
    features, class_index, shots, validation = make()
    half = [Examples(real.features.astype(np.float16), real.labels) for real in (shots, validation)]
    first = real_filter(features, class_index, shots, validation, 0.9)
    second = real_filter(features.astype(np.float16), class_index, *half, 0.9)
    np.testing.assert_allclose(first.other_similarity, second.other_similarity, atol=2e-3)
    clear = np.abs(first.other_similarity - first.threshold) > 2e-3
    np.testing.assert_array_equal(first.too_close[clear], second.too_close[clear])


def test_a_lower_quantile_drops_no_fewer():
    features, class_index, shots, validation = make()
    dropped = [
        real_filter(features, class_index, shots, validation, quantile).too_close for quantile in (1.0, 0.9, 0.5, 0.1)
    ]
    assert all((fewer <= more).all() for fewer, more in itertools.pairwise(dropped))


# --- scale and bad input ----------------------------------------------------------------------------------------------


def test_many_images_are_compared_in_blocks(monkeypatch):
    """20,000 images x 1,000 shots would be 80 MB of cosines, and 20 MB as float32 features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 256)).astype(np.float16)
    shots = Examples(rng.normal(size=(1_000, 256)).astype(np.float16), np.arange(1_000) % 100)
    none = Examples(shots.features[:0], np.empty(0, int))
    monkeypatch.setattr(module, "_BLOCK_VALUES", 2**18)
    tracemalloc.start()
    real_filter(features, rng.integers(0, 100, 20_000), shots, none, 0.9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


def test_no_images_and_images_without_features():
    _, _, shots, validation = make()
    empty = real_filter(np.empty((0, 16), np.float16), np.empty(0, int), shots, validation, 0.9)
    assert len(empty.too_close) == len(empty.nearest) == 0
    features = np.ones((4, 16), np.float32)
    features[1], features[2, 3], features[3, 0] = 0, np.nan, np.inf
    result = real_filter(features, np.zeros(4, int), shots, validation, 0.01)
    np.testing.assert_array_equal(np.isnan(result.other_similarity), [False, True, True, True])
    np.testing.assert_array_equal(result.nearest < 0, [False, True, True, True])
    assert not result.too_close[1:].any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"quantile": 0.0}, r"quantile is 0\.0; allowed is"),
        ({"quantile": 1.5}, r"quantile is 1\.5"),
        ({"quantile": math.nan}, "quantile is nan"),
        ({"features": np.ones((300, 17))}, r"shape \(300, 17\).* allowed are \[N, 16\]"),
        ({"class_index": np.zeros(299, int)}, r"class_index \(299,\)"),
        ({"shots": Examples(np.ones((3, 16), np.float32), np.zeros(3, int))}, "3 shots are of 1 classes"),
        ({"shots": Examples(np.ones((0, 16), np.float32), np.zeros(0, int))}, "0 shots are of 0 classes"),
        ({"validation": Examples(np.zeros((2, 16), np.float32), np.zeros(2, int))}, "2 of 22 real images are zero"),
        ({"validation": Examples(np.full((2, 16), np.nan), np.zeros(2, int))}, "2 of 22 real images"),
    ],
)
def test_bad_input_is_named(change, message):
    features, class_index, shots, validation = make()
    arguments = {"features": features, "class_index": class_index, "shots": shots, "validation": validation}
    with pytest.raises(ValueError, match=message):
        real_filter(**{**arguments, "quantile": 0.9, **change})
