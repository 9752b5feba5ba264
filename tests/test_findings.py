"""Findings: of planted accuracies each statement gets the estimate and the verdict that it must."""

import csv
import io

import numpy as np
import pytest
from few_shot_cells import FakeStudy

from pipeline_lib.few_shot_tables import as_csv, as_markdown, as_metrics
from pipeline_lib.findings import findings, verdict
from pipeline_lib.metrics.few_shot import Contrast

N_IMAGES, N_SEEDS = 2_000, 5
# Accuracies in percent at 1 and at 4 shots.
PLANTED = {
    "ct_init": (50, 70),
    "ct_syn": (65, 75),
    "tip_adapter": (52, 70),
    "tip_adapter_f": (52, 72),
    "coop": (68, 80),
    "linear_probe": (30, 60),
    "ct_syn_b": (None, 75),
    "ct_syn_rf": (None, 68),
    "syn_then_real": (60, 70),
    "real_then_syn": (65, 75),
}
BATCH_NORM = {"bn_real_trained": (4, 60), "bn_syn_trained": (0, 66), "bn_syn_frozen": (0, 60)}


def planted(percent: float, number: int, n_seeds: int = N_SEEDS) -> np.ndarray:
    """`percent` of the images right, others at each seed: exactly that accuracy at every seed."""
    correct = np.zeros((n_seeds, N_IMAGES), bool)
    for seed, row in enumerate(correct):
        order = np.random.default_rng([number, seed]).permutation(N_IMAGES)
        row[order[: round(percent / 100 * N_IMAGES)]] = True
    return correct


@pytest.fixture(scope="module")
def study() -> FakeStudy:
    """Data sets a and b, of which b has 4 points more everywhere, and the ablations on a."""
    study = FakeStudy()
    for number, (method, (few, most)) in enumerate(PLANTED.items()):
        for more, dataset in ((0, "a"), (4, "b")):
            if dataset == "a" or number < 6:
                accuracies = {n: value for n, value in ((1, few), (4, most)) if value is not None}
                correct = {n: planted(value + more, 100 * number + n + more) for n, value in accuracies.items()}
                study.add(dataset, method, correct)
    for number, (method, (shots, percent)) in enumerate(BATCH_NORM.items()):
        study.add("a", method, {shots: planted(percent, 5_000 + number, 5 if shots else 3)})
    return study


def test_each_statement_has_its_estimate_and_verdict(study: FakeStudy):
    rows = findings(study.cells, study.read, "a")
    assert [
        (row["statement"], round(row["estimate"], 6), row["verdict"], row["datasets"], row["seeds"]) for row in rows
    ] == [
        ("Synthetic data helps", 10, "holds", 2, 5),
        ("Synthetic data helps at 1 shot", 15, "holds", 2, 5),
        ("Synthetic data helps at 4 shots", 5, "holds", 2, 5),
        ("The help shrinks with more shots", 10, "holds", 2, 5),
        ("CT w. Syn is better than Tip-Adapter-F", 8, "holds", 2, 5),
        ("CT w. Syn is better than CoOp", -4, "does not hold", 2, 5),
        ("Mix training is better than synthetic then real", 5, "holds", 1, 5),
        ("Mix training is better than real then synthetic", 0, "open", 1, 5),
        ("RG is better than RF", 7, "holds", 1, 5),
        ("RF is better than B", -7, "does not hold", 1, 5),
        ("RG is better than B", 0, "open", 1, 5),
        ("Frozen batch norm is better than trained on real images", 10, "holds", 1, 5),
        ("Frozen batch norm is better than trained on synthetic images", -6, "does not hold", 1, 3),
    ]
    assert all(row["low"] < row["estimate"] < row["high"] for row in rows)
    contrasts = {row["statement"]: row["contrast"] for row in rows}
    assert contrasts["Synthetic data helps"] == "CT w. Syn minus CT w. init, mean over shots and data sets"
    assert contrasts["The help shrinks with more shots"].endswith("1 shot minus 4 shots, mean over data sets")
    assert contrasts["RG is better than RF"] == "RG minus RF, 4 shots, a"


def test_an_encoder_without_batch_norm_leaves_its_statements_uncomputed(study: FakeStudy):
    without = FakeStudy()
    without.cells = [one for one in study.cells if one.method not in ("bn_real_trained", "bn_syn_trained")]
    without.tables = dict(study.tables)
    without.add("a", "bn_real_trained", {}, seeds=[0, 1, 2, 3, 4], not_computed="no layers")
    without.add("a", "bn_syn_trained", {}, seeds=[0, 1, 2], not_computed="no layers")
    *others, real, synthetic = findings(without.cells, without.read, "a")
    for row in (real, synthetic):
        assert row["estimate"] is row["low"] is row["datasets"] is row["seeds"] is None
        assert row["verdict"] == "not computed: no layers"
    assert len(others) == 11 and all(row["estimate"] is not None for row in others)
    assert len(as_metrics("findings", [*others, real])["findings"]) == 11
    (line,) = [one for one in as_csv("findings", [real]).splitlines() if "not computed" in one]
    assert line.endswith(",,,,not computed: no layers,,")


def test_a_method_that_could_not_be_run_on_a_data_set_leaves_its_statement_uncomputed(study: FakeStudy):
    """On b alone: the mean over the data sets is of both, so there is none."""
    without = FakeStudy()
    without.cells = [one for one in study.cells if (one.dataset, one.method) != ("b", "coop")]
    without.tables = dict(study.tables)
    without.add("b", "coop", {}, seeds=[0, 1, 2, 3, 4], not_computed="'a|b' is too long")
    rows = findings(without.cells, without.read, "a")
    (empty,) = [row for row in rows if row["estimate"] is None]
    assert empty["statement"] == "CT w. Syn is better than CoOp" and empty["low"] is empty["seeds"] is None
    assert empty["verdict"] == "not computed: 'a|b' is too long"
    assert [row for row in findings(study.cells, study.read, "a") if row["statement"] != empty["statement"]] == [
        row for row in rows if row is not empty
    ]
    (line,) = [one for one in as_markdown("findings", rows, "s", without.cells).splitlines() if "too long" in one]
    assert r"not computed: 'a\|b' is too long" in line


def test_cells_that_are_forgotten_are_named(study: FakeStudy):
    with pytest.raises(ValueError, match="no cells of ct_syn_rf on a"):
        findings([one for one in study.cells if one.method != "ct_syn_rf"], study.read, "a")


def test_with_one_number_of_shots_nothing_can_shrink(study: FakeStudy):
    one = FakeStudy()
    for number, method in enumerate(PLANTED):
        one.add("a", method, {4: planted(60 + number, number)})
    for method, (shots, percent) in BATCH_NORM.items():
        one.add("a", method, {shots: planted(percent, 9)})
    statements = [row["statement"] for row in findings(one.cells, one.read, "a")]
    assert statements[:2] == ["Synthetic data helps", "CT w. Syn is better than Tip-Adapter-F"]
    assert len(statements) == 10


def test_text(study: FakeStudy):
    rows = findings(study.cells, study.read, "a")
    text = as_markdown("findings", rows, "small", study.cells)
    assert "is open where 0 is in it" in text and "Study `small`" in text
    (line,) = [one for one in text.splitlines() if one.startswith("| Synthetic data helps |")]
    assert "| 10.00 |" in line and line.endswith("| holds | 2 | 5 |")
    read = list(csv.DictReader(io.StringIO(as_csv("findings", rows))))
    assert len(read) == 13 and read[5]["verdict"] == "does not hold" and read[5]["estimate"] == "-4.00"


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.1, 0.3, "holds"),
        (-0.3, -0.1, "does not hold"),
        (-0.1, 0.3, "open"),
        (0.0, 0.3, "open"),
        (-0.3, 0.0, "open"),
        (1e-15, 1e-15, "open"),  # the same predictions twice: weights of 1/3 leave a rest
        (-1e-15, -1e-15, "open"),
        (None, None, "open"),
    ],
)
def test_verdicts(low, high, expected):
    assert verdict(Contrast(0.0, low, high, 0.95, 5, 100)) == expected
