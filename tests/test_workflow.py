"""The whole workflow, as Snakemake runs it, on drawn shapes and tiny models: one project, changed step by step.

Each test leaves the configuration as it found it; the accuracies mean nothing here.
"""

import csv
import shutil
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_project import REPOSITORY, SHAPES, changed, draw_shapes, fake_models, own_dataset, planned, small_params
from workflow_project import STORE, Project

from pipeline_lib.records import Record
from pipeline_lib.tables import COLUMNS

pytest.importorskip("snakemake")
TABLE1 = "results/table1.csv"
TABLES = (TABLE1, "results/table2.csv")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, str]) -> Project:
    """Both tables, made from nothing."""
    folder = tmp_path_factory.mktemp("project")
    draw_shapes(folder / "shapes", 5, folders=(*SHAPES.values(), "yellow"))
    project = Project(folder, small_params(tiny_models, Path("shapes"), STORE))
    run = project.run(*TABLES)
    assert run.jobs == {
        "prompts": 2,
        "images": 2,
        "real_images": 1,
        "heads": 1,
        "embeddings": 3,
        "scores": 2,
        "manifests": 3,
        "classifiers": 6,
        "predictions": 6,
        "metrics": 6,
        "tables": 2,
        "samples": 2,
    }
    assert "Time of the jobs" in run.printed
    project.first_results = project.results()
    return project


def drawn(before: dict[str, Record], after: dict[str, Record]) -> int:
    """How many images the shards that are new in `after` cost."""
    return sum(
        record.details["n_drawn"]
        for path, record in after.items()
        if path not in before and record.spec["stage"] == "images" and "set" not in record.spec
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def new_units(before: dict[str, Record], after: dict[str, Record], stage: str) -> list[str]:
    return [
        path
        for path, record in after.items()
        if path not in before and record.spec["stage"] == stage and "set" not in record.spec
    ]


def read_csv(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(content.decode().splitlines()))


# --- from nothing -----------------------------------------------------------------------------------------------------


def test_table1_from_nothing(project: Project):
    """The agreed columns, a row per data set, the average last, the paper's columns empty for one's own data set."""
    content = project.first_results["table1.csv"]
    assert content.decode().splitlines()[0].split(",") == COLUMNS["table1"]
    shapes, average = read_csv(content)
    assert (shapes["dataset"], average["dataset"]) == ("shapes", "average")
    assert (shapes["n_classes"], shapes["n_test"], shapes["images_per_class"], shapes["seeds"]) == ("3", "15", "4", "2")
    assert 0 <= float(shapes["clip"]) <= 100
    assert float(shapes["gain_low"]) <= float(shapes["gain"]) <= float(shapes["gain_high"])
    assert float(shapes["clip_syn"]) - float(shapes["clip"]) == pytest.approx(float(shapes["gain"]), abs=0.011)
    for row in (shapes, average):
        assert row["paper_clip"] == row["paper_clip_syn"] == ""


def test_table2_from_nothing(project: Project):
    """Zero-shot and six methods per data set, then their averages."""
    rows = read_csv(project.first_results["table2.csv"])
    assert list(rows[0]) == COLUMNS["table2"]
    assert [row["dataset"] for row in rows] == ["shapes"] * 7 + ["average"] * 7
    assert [(row["prompts"], row["filter"], row["loss"]) for row in rows[:7]] == [
        ("zero_shot", "", ""),
        ("basic", "none", "ce"),
        ("basic", "none", "sce"),
        ("language_enhancement", "none", "ce"),
        ("language_enhancement", "none", "sce"),
        ("language_enhancement", "clip_filter", "ce"),
        ("language_enhancement", "clip_filter", "sce"),
    ]
    assert rows[6]["top1"] == read_csv(project.first_results["table1.csv"])[0]["clip_syn"]


def test_tables_come_with_markdown_and_pictures(project: Project):
    """Markdown for people, and contact sheets that are PNG pictures."""
    for table in ("table1", "table2"):
        text = project.first_results[f"{table}.md"].decode()
        assert text.startswith("# Table")
        assert "| shapes |" in text
        assert "| average |" in text
    for strategy in ("basic", "language_enhancement"):
        with Image.open(project.folder / "results" / "samples" / f"shapes.{strategy}.png") as sheet:
            sheet.load()
            assert sheet.format == "PNG"
            assert sheet.width > 200


def test_nothing_is_done_twice(project: Project):
    """A second run has nothing to do and touches nothing."""
    before = project.files()
    run = project.run(*TABLES)
    assert "Nothing to be done" in run.printed
    assert not run.jobs
    assert project.files() == before


def test_a_new_batch_size_makes_nothing_again(project: Project):
    """How the work is done is not part of what is made."""
    before = project.files()
    run = project.run(*TABLES, params=changed(project.params, images__batch_size=2, embeddings__batch_size=3))
    assert not run.jobs
    assert {name for name, time_ns in project.files().items() if before.get(name) != time_ns} <= {
        name for name in before if name.startswith(f"{STORE}/specs/")
    }


def test_show_leads_from_a_table_to_prompts_seeds_and_models(project: Project):
    """`show` prints every step back to the words, the seeds and the digests of the weights."""
    done = project.pipeline_lib("show", TABLE1, "--store", STORE)
    assert done.returncode == 0, done.stderr
    stages = [
        "metrics",
        "predictions",
        "classifiers",
        "manifests",
        "scores",
        "heads",
        "embeddings",
        "images",
        "prompts",
    ]
    positions = [done.stdout.index(f" {stage}/") for stage in stages]
    assert positions[:4] == sorted(positions[:4])
    generator = next(
        r.spec["generator"] for r in project.records().values() if "generator" in r.spec and "start" in r.spec
    )
    for words in (generator, "sha256:", '"red/square"', "seed: 0", "steps: 2", "threshold", "a photo of a {}"):
        assert words in done.stdout


def test_verify_finds_nothing_wrong(project: Project):
    """A finished store is intact."""
    done = project.pipeline_lib("verify", "--store", STORE)
    assert done.returncode == 0, done.stdout
    assert " 0 damaged" in done.stdout


# --- only the difference ----------------------------------------------------------------------------------------------


def test_more_images_cost_the_difference_and_changing_back_costs_nothing(project: Project):
    """One more image per class: three are drawn, three shards embedded; back again: the first table, from its cells."""
    before, files = project.records(), project.files()
    run = project.run(TABLE1, params=changed(project.params, images__per_class=5))
    after = project.records()
    assert drawn(before, after) == 3
    assert len(new_units(before, after, "embeddings")) == 3
    assert not {"prompts", "real_images", "heads"}.intersection(run.jobs)
    assert read_csv(project.results()["table1.csv"])[0]["images_per_class"] == "5"
    untouched = project.files()
    assert {name: untouched[name] for name in files if name.startswith((f"{STORE}/images", f"{STORE}/embeddings"))} == {
        name: files[name] for name in files if name.startswith((f"{STORE}/images", f"{STORE}/embeddings"))
    }
    back = project.run(*TABLES)
    assert set(back.jobs) <= {"tables", "samples"}
    assert project.first_results.items() <= project.results().items()


def test_a_class_and_a_dataset_more_cost_their_own_images(project: Project):
    """A fourth class, and a data set with one new class and one known: eight images are drawn, no other is touched."""
    names = {**SHAPES, "yellow": "yellow"}
    others = {"grüne Fläche": "green", "violet": "yellow"}
    own = {"shapes": own_dataset(Path("shapes"), names), "others": own_dataset(Path("shapes"), others)}
    before = project.records()
    project.run(TABLE1, params=changed(project.params, own_datasets=own, datasets=["shapes", "others"]))
    after = project.records()
    assert drawn(before, after) == 2 * 4
    assert {path.split("/")[1] for path in new_units(before, after, "prompts")} == {
        "yellow.language_enhancement",
        "violet.language_enhancement",
    }
    synthetic = [path for path in new_units(before, after, "embeddings") if path.startswith("embeddings/images/")]
    assert len(synthetic) == 2 * 2
    assert {path: record.created for path, record in before.items()} == {path: after[path].created for path in before}
    rows = read_csv(project.results()["table1.csv"])
    assert [(row["dataset"], row["n_classes"]) for row in rows] == [("shapes", "4"), ("others", "2"), ("average", "")]


def test_another_threshold_draws_encodes_and_scores_nothing(project: Project):
    """The cut is made again from the scores; changed back, the old cells are there."""
    before = project.records()
    run = project.run(TABLE1, params=changed(project.params, clip_filter__threshold=0.9))
    # The table may be made anew after another test's; its pictures too.
    assert {stage: n for stage, n in run.jobs.items() if stage != "samples"} == {
        "manifests": 1,
        "classifiers": 1,
        "predictions": 1,
        "metrics": 1,
        "tables": 1,
    }
    assert drawn(before, project.records()) == 0
    back = project.run(*TABLES)
    assert set(back.jobs) <= {"tables", "samples"}
    assert project.first_results.items() <= project.results().items()


def test_a_damaged_shard_is_found_and_made_again_with_what_rests_on_it(project: Project):
    """One flipped byte: `verify` names the shard and what rests on it, the next run makes these and nothing else."""
    project.run(*TABLES)
    before, files = project.records(), project.files()
    shard = next(path for path, record in before.items() if path.startswith("images/red_square.basic/"))
    flip(project.store / shard)
    found = project.pipeline_lib("verify", "--store", STORE)
    assert found.returncode == 1
    assert f"damaged: {STORE}/{shard}" in found.stdout
    dependants = {line.split(": ", 1)[1] for line in found.stdout.splitlines() if line.startswith("made from damaged")}
    assert "results/table2.csv" in dependants
    assert not [name for name in dependants if "language_enhancement" in name]
    assert project.pipeline_lib("verify", "--store", STORE, "--remove").returncode == 0
    run = project.run(*TABLES)
    assert run.jobs == {
        "images": 1,
        "embeddings": 1,
        "scores": 1,
        "manifests": 1,
        "classifiers": 2,
        "predictions": 2,
        "metrics": 2,
        "tables": 1,
        "samples": 1,
    }
    after = project.records()
    remade = {name for name in before if before[name] != after[name]}
    assert remade - {shard} == {name for name in dependants if not name.startswith("results/")}
    assert {name: record.sha256 for name, record in after.items()} == {n: r.sha256 for n, r in before.items()}
    assert project.first_results.items() <= project.results().items()
    now = project.files()
    others = [
        name for name in files if name.startswith(f"{STORE}/images/") and shard not in name and "/sets/" not in name
    ]
    assert {name: now[name] for name in others} == {name: files[name] for name in others}


def test_nothing_is_made_from_damage_that_nobody_looked_for(project: Project):
    """A flipped bit in the scores, no `verify`, and a setting that reads them: the run ends with the one command."""
    project.run(*TABLES)
    before, results = project.records(), project.results()
    plan = planned(changed(project.params, own_datasets__shapes__folder=str(project.folder / "shapes")))
    (scores,) = (job.path for job in plan.stage("scores") if ".language_enhancement." in job.path)
    whole = (project.store / scores).read_bytes()
    flip(project.store / scores)
    done = project.snakemake(TABLE1, params=changed(project.params, clip_filter__threshold=0.7))
    (project.store / scores).write_bytes(whole)
    assert done.returncode == 1
    assert f"damaged: {STORE}/{scores} does not have the SHA-256 of its record" in done.stderr
    assert f"python -m pipeline_lib verify --store '{STORE}' --remove" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.records() == before
    assert project.results() == results


def test_damage_to_what_is_only_kept_beside_harms_no_run(project: Project):
    """Timings, digests, spec files, locks, notes, Snakemake's own: a run goes on. A result with a wrong number in it is
    made again, and nothing else is."""
    project.run(*TABLES)
    before = project.records()
    kept = [project.store / "timings.jsonl", project.store / "digests.json"]
    for folder in (project.store / "specs", project.store / ".locks", project.store / ".outdated"):
        kept += [path for path in folder.rglob("*") if path.is_file()]
    kept += [path for path in (project.folder / ".snakemake" / "metadata").rglob("*") if path.is_file()]
    for path in kept:
        content = path.read_bytes() if path.exists() else b""
        path.write_bytes(content[: len(content) // 2] + b"\xff" + content[len(content) // 2 :])
    table = project.folder / TABLE1
    table.write_bytes(table.read_bytes().replace(b"shapes", b"shapez"))
    done = project.snakemake(*TABLES)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert project.first_results.items() <= project.results().items()
    assert project.records() == before


# --- nothing is written -----------------------------------------------------------------------------------------------


@pytest.fixture
def untouched(tmp_path: Path) -> Project:
    """A project that can be planned, in which nothing was made."""
    images = draw_shapes(tmp_path / "shapes", 2)
    return Project(tmp_path, small_params(fake_models(tmp_path / "models"), images, STORE))


def test_bad_configuration_stops_before_anything_is_written(untouched: Project):
    """Exit status 1, the key, the value and what is allowed, no traceback, no file."""
    before = untouched.files()
    params = changed(untouched.params, images__per_class=0, tuning__loss="mse", tuning__learning_rate="1e-3")
    done = untouched.snakemake(TABLE1, params=params)
    assert done.returncode == 1
    for words in ("images.per_class: 0", "tuning.loss: 'mse'", "'ce' or 'sce'", "write it as 0.001", "nothing was run"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert untouched.files() == before


def test_a_missing_model_stops_before_anything_is_written(untouched: Project):
    """The folder of a model that is not there is named."""
    before = untouched.files()
    done = untouched.snakemake(TABLE1, params=changed(untouched.params, models__generator="./no_such_model"))
    assert done.returncode == 1
    assert "models.generator: the folder './no_such_model' does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert untouched.files() == before


def test_a_dry_run_writes_nothing(untouched: Project):
    """It lists the jobs of the table."""
    before = untouched.files()
    done = untouched.snakemake("--dry-run", TABLE1)
    assert done.returncode == 0, done.stderr
    assert "classifiers" in done.stdout + done.stderr
    assert untouched.files() == before
    assert not untouched.store.exists()


def test_planning_the_shipped_study_takes_seconds(tmp_path: Path):
    """Table 1 of params.yaml, six data sets, is planned in a few seconds (60 allowed, for a machine that is busy)."""
    overlay = {"models": fake_models(tmp_path), "store": "store"}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    project = Project(tmp_path, yaml.safe_load((REPOSITORY / "params.yaml").read_text()))
    started = time.perf_counter()
    done = project.snakemake("--configfile", "overlay.yaml", "--dry-run", "--", TABLE1)
    assert time.perf_counter() - started < 60
    assert done.returncode == 0, done.stderr
