"""Few-shot recognition as Snakemake runs it, on drawn shapes and tiny models; the accuracies mean nothing here."""

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_project import SHAPES, changed, draw_shapes, own_dataset, small_params
from workflow_project import STORE, Project

from pipeline_lib.few_shot_tables import COLUMNS
from pipeline_lib.records import FewShotCells, Shots

pytest.importorskip("snakemake")
NAMES = ("figure1", "table5", "table6", "table7", "findings")
TARGETS = tuple(f"results/{name}.csv" for name in NAMES)
SEEDS, SHOTS = 2, 2  # of small_params: how many of each


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, str]) -> Project:
    """Figure 1 and all tables, made from nothing."""
    folder = tmp_path_factory.mktemp("few_shot")
    draw_shapes(folder / "test", 4)
    draw_shapes(folder / "train", 5, seed=1)
    own = {"shapes": {**own_dataset(Path("test")), "train_folder": "train"}}
    params = changed(small_params(tiny_models, Path("test"), STORE), own_datasets=own, few_shot__datasets=["shapes"])
    project = Project(folder, params)
    run = project.run(*TARGETS)
    assert run.jobs == {
        "prompts": 1,
        "images": 1 + SHOTS,  # guided ones: a job for each number of shots, of all seeds
        "shots": 1,
        "real_images": 2,  # test, and what was drawn of train
        "heads": 1,
        "embeddings": 3 + 3,  # of 24 guided shards, ten a job
        "scores": 1,
        "manifests": 1 + 1 + SEEDS,  # of Table 1's method, of B, of RF
        "classifiers": 1,  # of synthetic images alone, for Table 6
        "few_shot": 8 + 1 + 2,  # Figure 1, Table 5, Table 7
        "predictions": 1 + 11,
        "batch_norm": 2,
        "few_shot_metrics": 11 + 3,
        "tables": 5,
        "samples": 2,
    }
    project.first_results = project.results()
    return project


def draws(project: Project) -> dict[str, Shots]:
    """What each seed draws, by the file's path in the store."""
    files = (path for path in (project.store / "shots/shapes").glob("*.json") if ".record" not in path.name)
    return {path.relative_to(project.store).as_posix(): Shots.model_validate_json(path.read_bytes()) for path in files}


def rows(project: Project, name: str) -> list[dict[str, str]]:
    with (project.folder / f"results/{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_there(project: Project, name: str):
    """No cell of these tables is one that could not be computed."""
    table = rows(project, name)
    assert list(table[0]) == COLUMNS[name]
    value = "estimate" if name == "findings" else "top1"
    assert all(row[value] for row in table)
    assert f"results/{name}.md".removeprefix("results/") in project.results()


def test_figure_1_is_drawn_in_both_formats(project: Project):
    results = project.results()
    assert results["figure1.png"].startswith(b"\x89PNG") and b"<svg" in results["figure1.svg"][:2000]
    assert b"CT w. Syn" in results["figure1.svg"]  # text is text


def test_a_second_run_does_nothing(project: Project):
    before = project.files()
    assert project.run(*TARGETS).jobs == Counter()
    assert project.files() == before


def test_shots_are_training_images_and_nested_draws(project: Project):
    """What is drawn is of the train folder, which other images lie in than in the test folder."""
    trained = {path.relative_to(project.folder / "train").as_posix() for path in project.folder.glob("train/*/*.png")}
    assert len(draws(project)) == SEEDS
    for drawn in draws(project).values():
        assert drawn.split == "train"
        for name in SHAPES:
            shots, validation = drawn.shots[name], drawn.validation[name]
            assert {image.path for image in (*shots, *validation)} <= trained
            assert len(shots) == 4 and len(validation) == 1  # all five, of which 1 and 2 are the first ones
            assert not {image.image_id for image in shots} & {image.image_id for image in validation}


def test_guided_images_name_a_shot_of_their_class_and_seed(project: Project):
    guided = [record for record in project.records().values() if "real_guidance" in record.spec]
    assert len(guided) == len(SHAPES) * SEEDS * SHOTS * 2  # 4 images in shards of 3
    for record in guided:
        guidance = record.spec["real_guidance"]
        allowed = draws(project)[guidance["shots"]].shots[record.spec["class_name"]][: guidance["n_shots"]]
        references = pq.read_table(project.store / record.path, columns=["reference_id"])["reference_id"].to_pylist()
        assert set(references) <= {image.image_id for image in allowed}


def test_runs_say_what_they_learned_from(project: Project):
    cells = {}
    for path in (project.store / "few_shot_metrics").glob("*/*.json"):
        if ".record" in path.name:
            continue
        found = FewShotCells.model_validate_json(path.read_bytes())
        cells[found.method] = found
    for method in ("ct_syn", "ct_init", "tip_adapter"):
        for cell in cells[method].cells:
            assert [run["n_real"] for run in cell.runs] == [cell.shots * len(SHAPES)] * len(cell.runs)
            assert [run["n_validation"] for run in cell.runs] == [len(SHAPES)] * len(cell.runs)
    assert all(run["n_synthetic"] <= 12 for cell in cells["ct_syn"].cells for run in cell.runs)
    assert "n_synthetic" not in cells["ct_init"].cells[0].runs[0]
    assert {"alpha", "beta"} <= cells["tip_adapter"].cells[0].runs[0].keys()


def test_a_method_that_does_not_fit_leaves_empty_cells_and_the_reason(project: Project):
    """CoOp's context is longer than the text encoder: of Figure 1 all but its cells is as it was."""
    params = changed(project.params, few_shot__coop__context_tokens=500, results="results/long")
    run = project.run("results/long/figure1.csv", params=params)
    # (The other results folder has contact sheets of its own, of images that are there.)
    assert run.jobs == {"few_shot": 1, "predictions": 1, "few_shot_metrics": 1, "tables": 1, "samples": 2}
    before, after = rows(project, "figure1"), rows(project, "long/figure1")
    assert [row for row in before if row["method"] != "coop"] == [row for row in after if row["method"] != "coop"]
    empty = [row for row in after if row["method"] == "coop"]
    assert len(empty) == 2 * SHOTS
    for row in empty:
        assert row["top1"] == row["gain"] == "" and "context_tokens: 500 tokens and the class name" in row["note"]
    assert "CoOp, shapes: few_shot.coop.context_tokens: 500 tokens" in project.results()["long/figure1.md"].decode()
    assert b"Not computed: CoOp on shapes" in project.results()["long/figure1.svg"]


def test_show_leads_from_the_figure_to_the_shots(project: Project):
    shown = project.pipeline_lib("show", "results/figure1.csv", "--store", STORE)
    assert shown.returncode == 0
    for word in ("few_shot/shapes.ct_syn.clip/", "shots/shapes/", "real_guidance", '"alpha"'):
        assert word in shown.stdout


def test_a_study_without_training_images_says_what_is_missing(project: Project):
    without = changed(project.params, few_shot__datasets=[])
    refused = project.snakemake("results/figure1.csv", params=without)
    assert refused.returncode != 0
    assert "few_shot.datasets" in refused.stderr and "Traceback (most" not in refused.stderr
    own = {"shapes": own_dataset(Path("test"))}
    refused = project.snakemake("results/figure1.csv", params=changed(project.params, own_datasets=own))
    assert refused.returncode != 0
    assert "train_folder" in refused.stderr and "Traceback (most" not in refused.stderr
    assert json.loads(project.results()["figure1.json"])
