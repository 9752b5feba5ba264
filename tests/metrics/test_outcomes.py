"""Outcomes from cells and predictions: what belongs together is found, what does not is refused."""

import numpy as np
import pytest
from few_shot_cells import FakeStudy

from pipeline_lib.metrics.outcomes import Outcome, Outcomes, outcomes_of, zero_shot_outcome

ONE_SHOT = np.array([[True, False, False, False], [False, True, False, False]])
TWO_SHOTS = np.array([[True, True, False, True], [True, True, True, False]])


@pytest.fixture
def study() -> FakeStudy:
    study = FakeStudy()
    study.add(
        "a",
        "ct_init",
        {1: ONE_SHOT, 2: TWO_SHOTS},
        seeds=[3, 8],
        zero_shot=np.array([False, False, False, True]),
        pool="garments",
        source_ids=np.array([7, 5, 9, 1]),
    )
    return study


def test_predictions_lie_by_shots_then_by_seed(study: FakeStudy):
    (cells,) = study.cells
    found = outcomes_of(cells, study.tables[cells.predictions])
    assert list(found) == [1, 2]
    np.testing.assert_array_equal(found[1].correct, ONE_SHOT)
    np.testing.assert_array_equal(found[2].correct, TWO_SHOTS)
    assert (found[2].dataset, found[2].pool, found[2].seeds) == ("a", "garments", (3, 8))
    np.testing.assert_array_equal(found[2].source_ids, [7, 5, 9, 1])


def test_zero_shot_has_one_row_and_no_seeds(study: FakeStudy):
    (cells,) = study.cells
    found = zero_shot_outcome(cells, study.tables[cells.predictions])
    assert found.seeds == ()
    np.testing.assert_array_equal(found.correct, [[False, False, False, True]])


def test_predictions_that_do_not_give_the_records_accuracies_are_refused(study: FakeStudy):
    """As they would with shots and seeds in the other order."""
    (cells,) = study.cells
    swapped = cells.model_copy(update={"cells": cells.cells[::-1]})
    with pytest.raises(ValueError, match=r"ct_init on a at 2 shots the accuracies \[25.0, 25.0\]"):
        outcomes_of(swapped, study.tables[cells.predictions])
    rounded = cells.cells[0].model_copy(update={"top1_per_seed": [25.0049, 24.9951]})
    outcomes_of(cells.model_copy(update={"cells": [rounded, cells.cells[1]]}), study.tables[cells.predictions])
    with pytest.raises(ValueError, match=r"4 predictions of each image.* 1 numbers of shots and 2 seeds"):
        outcomes_of(cells.model_copy(update={"cells": cells.cells[:1]}), study.tables[cells.predictions])


def test_each_table_is_read_once_and_zero_shot_is_in_it(study: FakeStudy):
    outcomes = Outcomes(study.cells, study.read)
    for _ in range(2):
        (weight, outcome), *rest = outcomes.mean("ct_init", ["a"], [1, 2])
        assert weight == 0.5 and len(rest) == 1
        np.testing.assert_array_equal(outcome.correct, ONE_SHOT)
    ((weight, outcome),) = outcomes.mean("zero_shot", ["a"], [0])
    assert weight == 1.0 and outcome.seeds == ()
    assert study.reads == ["predictions/a.ct_init"] * 2
    assert outcomes.shots("a", "ct_init") == [1, 2]


def test_a_gain_subtracts_the_other_method(study: FakeStudy):
    study.add("a", "ct_syn", {1: TWO_SHOTS, 2: TWO_SHOTS}, seeds=[3, 8], source_ids=np.array([7, 5, 9, 1]))
    terms = Outcomes(study.cells, study.read).gain("ct_syn", "ct_init", ["a"], [1, 2])
    assert [weight for weight, _ in terms] == [0.5, 0.5, -0.5, -0.5]
    np.testing.assert_array_equal(terms[2][1].correct, ONE_SHOT)


def test_what_is_not_there_is_named(study: FakeStudy):
    outcomes = Outcomes(study.cells, study.read)
    with pytest.raises(ValueError, match="no cells of coop on a"):
        outcomes.mean("coop", ["a"], [1])
    with pytest.raises(ValueError, match=r"ct_init on a has no cell at 4 shots, only at \[1, 2\]"):
        outcomes.mean("ct_init", ["a"], [4])
    study.add("b", "ct_init", {1: ONE_SHOT})
    with pytest.raises(ValueError, match=r"\['a', 'b'\]; this table is of one"):
        _ = Outcomes(study.cells, study.read).dataset
    other = study.cells[0].model_copy(update={"split": "validation"})
    with pytest.raises(ValueError, match=r"\('clip', 'test'\), \('clip', 'validation'\)"):
        Outcomes([*study.cells, other], study.read)


@pytest.mark.parametrize(
    "source_ids, seeds, correct",
    [([1, 2], (0,), [[True]]), ([1, 2], (0, 1), [[True, True]]), ([1], (), [[True], [True]]), ([], (), [[]])],
    ids=["images", "seeds", "rows without seeds", "nothing"],
)
def test_shapes_that_disagree_are_refused(source_ids, seeds, correct):
    with pytest.raises(ValueError, match="N at least 1"):
        Outcome("a", "p", np.array(source_ids, int), seeds, np.array(correct, bool).reshape(len(correct), -1))
