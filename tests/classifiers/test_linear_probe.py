"""The linear probe against CoOp's script (tests/data/coop_reference.py) and against scikit-learn itself."""

from contextlib import nullcontext

import numpy as np
import pytest
from coop_models import REFERENCE

pytest.importorskip("sklearn")

from sklearn.linear_model import LogisticRegression

from pipeline_lib.classifiers import linear_probe as module
from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.linear_probe import linear_probe


def examples(n_classes=3, each=8, seed=0, noise=1.0):
    """Unit vectors around a centre for each class, in no order."""
    centres = np.random.default_rng(0).normal(size=(n_classes, 6))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(n_classes), each))
    features = centres[labels] + noise * rng.normal(size=(len(labels), 6))
    return Examples(features / np.linalg.norm(features, axis=1, keepdims=True), labels)


@pytest.mark.parametrize("n_shots", [1, 2, 4, 8, 16])
def test_search_and_fit_are_the_originals(n_shots):
    """The same C, and decisions on test images to 1e-5."""
    reference = np.load(REFERENCE)
    shots = Examples(reference[f"probe_{n_shots}_shots"], reference[f"probe_{n_shots}_labels"])
    validation = reference[f"probe_{n_shots}_validation"]
    labels = np.repeat(np.arange(4), len(validation) // 4)
    head, details = linear_probe(shots, Examples(validation, labels), list("abcd"))
    assert details["C"] == pytest.approx(float(reference[f"probe_{n_shots}_c"]), rel=1e-9)
    np.testing.assert_allclose(
        head.logits(reference["probe_test"]), reference[f"probe_{n_shots}_decisions"], rtol=1e-5, atol=1e-5
    )
    accuracy = (head.logits(validation).argmax(axis=1) == labels).mean()
    assert details["validation_top1"] == pytest.approx(100 * accuracy, abs=1e-3)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_logits_are_scikit_learns_decisions(n_classes):
    """For the chosen C; two classes, of which it has one decision, are told apart by it."""
    shots, validation, test = (examples(n_classes, seed=seed) for seed in range(3))
    head, details = linear_probe(shots, validation, [f"class {number}" for number in range(n_classes)])
    model = LogisticRegression(C=details["C"], max_iter=1000).fit(shots.features, shots.labels)
    logits, decisions = head.logits(test.features), model.decision_function(test.features)
    np.testing.assert_allclose(logits[:, 1] if n_classes == 2 else logits, decisions, rtol=1e-4, atol=1e-4)
    assert n_classes != 2 or not logits[:, 0].any()
    np.testing.assert_array_equal(logits.argmax(axis=1), model.predict(test.features))
    assert (logits.argmax(axis=1) == test.labels).mean() > 1 / n_classes


class Fixed:
    """Stands in for scikit-learn's class: the accuracy for each C is given; coefficients tell C."""

    accuracy = staticmethod(lambda exponent: 0.0)
    fits: list[float] = []  # noqa: RUF012

    def __init__(self, C, max_iter):  # noqa: N803
        self.exponent, self.n_iter_ = np.log10(C), np.array([max_iter - 1])

    def fit(self, features, labels):
        self.fits.append(self.exponent)
        self.coef_, self.intercept_ = np.full((3, 6), self.exponent), np.zeros(3)

    def score(self, features, labels):
        return self.accuracy(self.exponent)


@pytest.mark.parametrize(
    "accuracy, exponent",
    [
        (lambda exponent: 0.5, 5.0),  # nothing tells: the largest C, then the smaller end each time
        (lambda exponent: 0.5 + 0.1 * (-2.1 < exponent < 2.1), 1.0),  # a plateau: its largest C of the sweep, 1e2
        (lambda exponent: -((exponent - 3.3) ** 2), 3.296875),  # a peak between two C of the sweep
        (lambda exponent: exponent, 7.0),
        (lambda exponent: -exponent, -7.0),
    ],
)
def test_ties_and_halvings(accuracy, exponent, monkeypatch):
    """Ten raised to this is C; no C is fitted twice."""
    monkeypatch.setattr(module, "LogisticRegression", Fixed)
    monkeypatch.setattr(Fixed, "accuracy", staticmethod(accuracy))
    monkeypatch.setattr(Fixed, "fits", [])
    head, details = linear_probe(examples(), examples(seed=1), list("abc"))
    assert np.log10(details["C"]) == pytest.approx(exponent, abs=1e-9)
    assert head.weight == pytest.approx(exponent)
    assert len(set(np.round(Fixed.fits, 9))) == len(Fixed.fits) == details["fits"] < 7 + 2 * 8


def test_it_is_deterministic_and_limits_threads(monkeypatch):
    first, details = linear_probe(examples(), examples(seed=1), list("abc"))
    limits = []
    monkeypatch.setattr(module, "threadpool_limits", lambda threads: limits.append(threads) or nullcontext())
    again, same = linear_probe(examples(), examples(seed=1), list("abc"), threads=3)
    np.testing.assert_array_equal(first.weight, again.weight)
    assert (details, limits) == (same, [3])


def test_features_may_be_float16():
    shots, validation = examples(), examples(seed=1)
    half = [Examples(one.features.astype(np.float16), one.labels) for one in (shots, validation)]
    full, rounded = linear_probe(shots, validation, list("abc"))[0], linear_probe(*half, list("abc"))[0]
    np.testing.assert_allclose(rounded.weight, full.weight, rtol=0.05, atol=0.05 * np.abs(full.weight).max())


def test_what_did_not_converge_is_recorded(monkeypatch, recwarn):
    assert linear_probe(examples(), examples(seed=1), list("abc"))[1]["converged"] is True
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 2)
    assert linear_probe(examples(), examples(seed=1), list("abc"))[1]["converged"] is False
    assert not recwarn.list


@pytest.mark.parametrize(
    "shots, validation, names, message",
    [
        (examples(2), examples(3), "abc", r"classes \[0, 1\] of 3"),
        (examples(3), examples(3), "ab", r"classes \[0, 1, 2\] of 2"),
        (examples(1), examples(1), "a", r"two or more classes"),
        (examples(), Examples(np.zeros((0, 6)), np.zeros(0, int)), "abc", r"validation features have shape \(0, 6\)"),
        (examples(), Examples(np.ones((3, 7)), np.arange(3)), "abc", r"shape \(3, 7\), shots \(24, 6\)"),
    ],
)
def test_bad_input_is_named(shots, validation, names, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(shots, validation, list(names))
