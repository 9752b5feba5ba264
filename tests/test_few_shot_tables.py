"""Figure 1's rows and Tables 5 to 7: numbers recomputed by hand, what stands beside them, and what is left empty."""

import csv
import io

import numpy as np
import pytest
from few_shot_cells import FakeStudy

from pipeline_lib.few_shot_tables import (
    COLUMNS,
    TABLES,
    Encodes,
    as_csv,
    as_markdown,
    as_metrics,
    figure1,
    learned_from,
    table5,
    table6,
    table7,
)
from pipeline_lib.metrics.few_shot import contrast
from pipeline_lib.metrics.outcomes import Outcomes

SHOTS = [1, 2, 4, 8, 16]


def share(n_right: int, n_seeds: int = 3, n: int = 100) -> np.ndarray:
    """n_right of n images right at the first seed, one more at each next one."""
    return np.arange(n) < n_right + np.arange(n_seeds)[:, None]


def figure_study(datasets: tuple[str, ...] = ("a", "b"), shots: tuple[int, ...] = (1, 4)) -> FakeStudy:
    """Zero-shot 20%; with n shots CT w. init 30 + n %, CT w. Syn 40 + n %, CoOp 35 + n %; b is 10% better. Data sets
    show the same 100 images."""
    study = FakeStudy()
    for number, dataset in enumerate(datasets):
        zero_shot = np.arange(100) < 20 + 10 * number
        for method, base in (("coop", 34), ("ct_syn", 39), ("ct_init", 29)):
            correct = {n: share(base + n + 10 * number) for n in shots}
            study.add(dataset, method, correct, zero_shot=zero_shot, pool="p")
    return study


def ablation_study(**common: str) -> FakeStudy:
    """Tables 5 to 7 on EuroSAT with the paper's shots."""
    study = FakeStudy(**common)
    runs = [{"n_synthetic": n} for n in (100, 120, 131)]
    study.add("eurosat", "ct_syn", {n: share(50 + n) for n in SHOTS}, runs=[{"n_synthetic": 200}] * 3)
    study.add("eurosat", "ct_syn_b", {16: share(60)})
    study.add("eurosat", "ct_syn_rf", {16: share(62)}, runs=runs)
    study.add("eurosat", "syn_then_real", {n: share(40 + n) for n in SHOTS})
    study.add("eurosat", "real_then_syn", {n: share(52 + n) for n in SHOTS})
    study.add("eurosat", "ct_init", {n: share(45 + n) for n in SHOTS})
    study.add("eurosat", "bn_real_trained", {16: share(30)})
    study.add("eurosat", "bn_syn_trained", {0: share(25, 2)}, seeds=[0, 1])
    study.add("eurosat", "bn_syn_frozen", {0: share(45, 2)}, seeds=[0, 1])
    return study


def of_table(study: FakeStudy, table: str) -> FakeStudy:
    methods = {
        "table5": ("ct_syn", "ct_syn_b", "ct_syn_rf"),
        "table6": ("ct_init", "bn_real_trained", "bn_syn_trained", "bn_syn_frozen"),
        "table7": ("ct_syn", "syn_then_real", "real_then_syn"),
    }[table]
    study.cells = [one for one in study.cells if one.method in methods]
    return study


def test_figure_1_has_each_method_at_each_number_of_shots_then_the_average():
    study = figure_study()
    rows = figure1(study.cells, study.read)
    points = [("zero_shot", 0), *((method, n) for method in ("ct_init", "ct_syn", "coop") for n in (1, 4))]
    assert [(row["dataset"], row["method"], row["shots"]) for row in rows] == [
        (dataset, *point) for dataset in ("a", "b", "average") for point in points
    ]
    top1 = {(row["dataset"], row["method"], row["shots"]): row["top1"] for row in rows}
    assert top1["a", "zero_shot", 0] == pytest.approx(20) and top1["average", "zero_shot", 0] == pytest.approx(25)
    assert top1["a", "ct_init", 4] == pytest.approx(34) and top1["b", "ct_init", 4] == pytest.approx(44)
    assert top1["average", "ct_syn", 1] == pytest.approx(46)


def test_gains_are_over_ct_init_with_the_same_shots():
    study = figure_study()
    rows = figure1(study.cells, study.read)
    outcomes = Outcomes(study.cells, study.read)
    for row in rows:
        if row["method"] in ("zero_shot", "ct_init"):
            assert row["gain"] is row["gain_low"] is row["gain_high"] is None
        else:
            assert row["gain"] == pytest.approx(10 if row["method"] == "ct_syn" else 5)
            names = ["a", "b"] if row["dataset"] == "average" else [row["dataset"]]
            expected = contrast(outcomes.gain(row["method"], "ct_init", names, [row["shots"]]))
            assert (row["gain_low"], row["gain_high"]) == (expected.low, expected.high)
            assert row["gain_low"] < row["gain"] < row["gain_high"]
        assert row["low"] < row["top1"] < row["high"]
        assert row["n_test"] == 100  # of the average too: both data sets show the same images
        assert row["seeds"] == (None if row["method"] == "zero_shot" else 3)


def test_data_sets_that_differ_in_methods_or_shots_are_refused():
    study = figure_study()
    with pytest.raises(ValueError, match="no cells of coop on b"):
        figure1([one for one in study.cells if (one.dataset, one.method) != ("b", "coop")], study.read)
    other = figure_study(("a", "b"), (1, 2))
    mixed = [one for one in study.cells if one.dataset == "a"] + [one for one in other.cells if one.dataset == "b"]
    tables = {**study.tables, **{path: table for path, table in other.tables.items() if "/b." in path}}
    with pytest.raises(ValueError, match=r"ct_init on b has no cell at 4 shots, only at \[1, 2\]"):
        figure1(mixed, tables.__getitem__)


def test_a_method_that_could_not_be_run_leaves_empty_rows_and_the_reason():
    """On one of two data sets: there and on average its numbers are missing, and all others are as they were."""
    study = figure_study()
    before = {(row["dataset"], row["method"], row["shots"]): row for row in figure1(study.cells, study.read)}
    study.cells = [one for one in study.cells if (one.dataset, one.method) != ("b", "coop")]
    reason = "few_shot.coop.context_tokens: the class name 'a|b, c' is too long"
    study.add("b", "coop", {}, seeds=[0, 1, 2], n_test=100, not_computed=reason)
    rows = figure1(study.cells, study.read)
    for row in rows:
        then = before.pop((row["dataset"], row["method"], row["shots"]))
        if row["method"] == "coop" and row["dataset"] != "a":
            expected = dict.fromkeys(then) | {name: row[name] for name in ("dataset", "method", "shots")}
            why = reason if row["dataset"] == "b" else "not computed on b"
            assert row == expected | {"n_test": 100, "note": why}
        else:
            assert row == then and row["note"] == ""
    assert not before
    written = [row for row in csv.DictReader(io.StringIO(as_csv("figure1", rows))) if row["note"]]
    assert [(row["dataset"], row["shots"], row["top1"], row["gain"]) for row in written] == [
        (dataset, n, "", "") for dataset in ("b", "average") for n in ("1", "4")
    ]
    lines = as_markdown("figure1", rows, "small", study.cells).splitlines()
    assert "| b | 100 | CoOp |  |  |  |" in lines and "| average | 100 | CoOp |  |  |  |" in lines
    assert f"CoOp, b: {reason}." in lines and "CoOp, average: not computed on b." in lines
    assert learned_from(study.cells[-1]) == 0


def test_a_method_that_could_not_be_run_on_the_only_data_set_says_why_on_average_too():
    study = figure_study(("a",))
    study.cells = [one for one in study.cells if one.method != "coop"]
    study.add("a", "coop", {}, seeds=[0, 1, 2], n_test=100, not_computed="foreign")
    notes = {(row["dataset"], row["method"]): row["note"] for row in figure1(study.cells, study.read)}
    assert {pair: note for pair, note in notes.items() if note} == dict.fromkeys(
        [("a", "coop"), ("average", "coop")], "foreign"
    )


def test_figure_1_for_people_has_a_column_for_each_number_of_shots():
    study = figure_study()
    rows = figure1(study.cells, study.read)
    lines = as_markdown("figure1", rows, "small", study.cells, encodes=Encodes(500, 1_000, 3_000, 9_000)).splitlines()
    assert "| dataset | n_test | method | 0 shots | 1 shot | 4 shots |" in lines
    assert "| a | 100 | Zero-shot CLIP | 20.00 |  |  |" in lines
    assert "| b | 100 | CT w. Syn |  | 51.00 | 54.00 |" in lines
    (syn,) = [row for row in rows if (row["dataset"], row["method"], row["shots"]) == ("average", "ct_syn", 4)]
    gain = f"+10.00 [{syn['gain_low']:.2f}, {syn['gain_high']:.2f}] |"
    assert any(line.startswith("| average | 100 | *CT w. Syn over CT w. init* |  | +10") for line in lines)
    assert any(line.endswith(gain) for line in lines)
    made = "Encodes made: 1,500, 500 of them to learn from; "
    assert f"{made}independent runs would make 12,000 (8.0 times as many), 3,000 of them to learn from." in lines
    assert any("Study `small`, encoder `clip`" in line and "test images, mean of 3 seeds" in line for line in lines)
    assert "Encodes" not in as_markdown("figure1", rows, "small", study.cells)


@pytest.mark.parametrize(
    ("method", "n"),
    [
        *(("ct_init", 7), ("coop", 7), ("ct_syn", 47), ("ct_syn_b", 47), ("ct_syn_rf", 52)),
        *(("ct_init_chosen", 12), ("tip_adapter", 12), ("tip_adapter_f", 12), ("linear_probe", 12)),
    ],
)
def test_a_run_learns_from_its_validation_images_only_where_it_chooses_on_them(method, n):
    """2 and 5 shots, 1 and 4 validation images, 15 and 25 synthetic ones: all runs are given validation images."""
    runs = [{"n_real": 2, "n_validation": 1}, {"n_real": 5, "n_validation": 4}]
    if method.startswith("ct_syn"):
        runs = [run | {"n_synthetic": made} for run, made in zip(runs, (15, 25), strict=True)]
    assert learned_from(FakeStudy().add("a", method, {1: share(50, 2)}, runs=runs)) == n


def test_table_5():
    study = of_table(ablation_study(), "table5")
    b, rf, rg = rows = table5(study.cells, study.read)
    assert [(row["dataset"], row["shots"], row["strategy"]) for row in rows] == [
        ("eurosat", 16, name) for name in ("B", "RF", "RG")
    ]
    assert [row["top1"] for row in rows] == pytest.approx([61, 63, 67])
    assert b["difference"] is None and (rf["difference"], rg["difference"]) == pytest.approx((2, 6))
    assert rg["difference_low"] < 6 < rg["difference_high"]
    assert [row["synthetic_images"] for row in rows] == [None, 117, 200]
    assert [row["paper_top1"] for row in rows] == [87.10, 87.33, 88.47]


def test_table_6():
    study = of_table(ablation_study(), "table6")
    rows = table6(study.cells, study.read)
    assert [(row["train_data"], row["batch_norm"], row["shots"]) for row in rows] == [
        ("real", "trained", 16),
        ("real", "frozen", 16),
        ("synthetic", "trained", 0),
        ("synthetic", "frozen", 0),
    ]
    assert [row["top1"] for row in rows] == pytest.approx([31, 62, 25.5, 45.5])
    assert rows[0]["difference"] is rows[2]["difference"] is None
    assert [rows[i]["difference"] for i in (1, 3)] == pytest.approx([31, 20])
    assert rows[1]["difference_low"] < 31 < rows[1]["difference_high"]
    assert [row["paper_top1"] for row in rows] == [75.31, 85.63, 44.73, 55.37]
    assert [row["note"] for row in rows] == [""] * 4
    text = as_markdown("table6", rows, "s", study.cells)
    assert "mean of 3 seeds that each draw other shots; of synthetic images alone, of 2 seeds of tuning" in text
    assert "what the paper prints" in text


def test_an_encoder_without_batch_norm_leaves_empty_rows_and_the_reason():
    study = of_table(ablation_study(), "table6")
    study.cells = [one for one in study.cells if not one.method.endswith("trained")]
    study.add("eurosat", "bn_real_trained", {}, seeds=[0, 1, 2], not_computed="no layers")
    study.add("eurosat", "bn_syn_trained", {}, seeds=[0, 1], not_computed="no layers")
    rows = table6(study.cells, study.read)
    for row in (rows[0], rows[2]):
        assert row["top1"] is row["low"] is row["difference"] is None and row["note"] == "no layers"
    for row, top1 in ((rows[1], 62), (rows[3], 45.5)):
        assert row["top1"] == pytest.approx(top1) and row["difference"] is row["difference_low"] is None
        assert row["note"] == ""
    read = list(csv.DictReader(io.StringIO(as_csv("table6", rows))))
    assert (read[0]["top1"], read[0]["note"]) == ("", "no layers")
    assert as_metrics("table6", rows) == {"table6": {"real_frozen": 62.0, "synthetic_frozen": 45.5}}
    assert "mean of 3 seeds" in as_markdown("table6", rows, "s", study.cells)


def test_table_7():
    study = of_table(ablation_study(), "table7")
    rows = table7(study.cells, study.read)
    trainings = ("syn_then_real", "real_then_syn", "mix")
    assert [(row["shots"], row["training"]) for row in rows] == [(n, name) for n in SHOTS for name in trainings]
    for n, row in zip(np.repeat(SHOTS, 3), rows, strict=True):
        top1 = {"syn_then_real": 41, "real_then_syn": 53, "mix": 51}[row["training"]] + n
        assert row["top1"] == pytest.approx(top1)
        if row["training"] == "mix":
            assert row["difference"] is None
        else:
            assert row["difference"] == pytest.approx(-10 if row["training"] == "syn_then_real" else 2)
            assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert [row["paper_top1"] for row in rows[:3]] == [63.01, 63.32, 64.36]
    assert [row["paper_top1"] for row in rows[-3:]] == [87.10, 87.44, 88.47]


@pytest.mark.parametrize("table", ["table5", "table6", "table7"])
@pytest.mark.parametrize(
    "common",
    [{"encoder": "open_clip:ViT-B-16:openai"}, {"encoder": "sha256:0"}, {"split": "validation"}],
    ids=["architecture", "weights", "split"],
)
def test_the_papers_values_stand_only_where_encoder_and_split_are_the_papers(table, common):
    study = of_table(ablation_study(**common), table)
    rows = TABLES[table](study.cells, study.read)
    assert all(row["paper_top1"] is None for row in rows)
    assert "paper prints" not in as_markdown(table, rows, "s", study.cells)


def test_the_papers_values_stand_only_beside_its_shots_and_data_set():
    study = FakeStudy()
    for method in ("ct_syn", "ct_syn_b", "ct_syn_rf"):
        study.add("eurosat", method, {8: share(50)})
    assert all(row["paper_top1"] is None for row in table5(study.cells, study.read))
    other = FakeStudy()
    for method in ("ct_syn", "ct_syn_b", "ct_syn_rf"):
        other.add("dtd", method, {16: share(50)})
    assert all(row["paper_top1"] is None for row in table5(other.cells, other.read))


def test_a_table_of_one_data_set_refuses_several():
    study = of_table(ablation_study(), "table5")
    study.add("dtd", "ct_syn", {16: share(50)})
    with pytest.raises(ValueError, match=r"\['eurosat', 'dtd'\]; this table is of one"):
        table5(study.cells, study.read)


@pytest.mark.parametrize("table", ["figure1", "table5", "table6", "table7"])
def test_csv_and_markdown_have_the_tables_columns(table):
    study = figure_study() if table == "figure1" else of_table(ablation_study(), table)
    rows = TABLES[table](study.cells, study.read)
    read = list(csv.DictReader(io.StringIO(as_csv(table, rows))))
    assert len(read) == len(rows) and list(read[0]) == COLUMNS[table] == list(rows[0])
    assert read[-1]["top1"] == f"{rows[-1]['top1']:.2f}"
    empty = read[2 if table == "table7" else 0]  # mix, or the first row: what others are compared with
    assert empty["difference" if table != "figure1" else "gain"] == ""
    text = as_markdown(table, rows, "s", study.cells)
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in grid}) == 1
    assert len(grid) == 2 + (len(rows) if table != "figure1" else 3 * 5)


def test_metrics_of_figure_1_are_the_averages_without_and_with_synthetic_images():
    study = figure_study()
    metrics = as_metrics("figure1", figure1(study.cells, study.read))
    assert metrics == {
        "figure1": {"zero_shot_0": 25.0, "ct_init_1": 36.0, "ct_init_4": 39.0, "ct_syn_1": 46.0, "ct_syn_4": 49.0}
    }
    study = of_table(ablation_study(), "table7")
    assert as_metrics("table7", table7(study.cells, study.read))["table7"]["mix_16"] == 67.0
