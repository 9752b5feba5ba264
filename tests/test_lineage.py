"""What a result rests on: from the plan alone, and the same as the records say after a run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc_project import all_tables, finish, made_from
from small_project import planned
from typer.testing import CliRunner, Result

from pipeline_lib.cli import app
from pipeline_lib.errors import UserError
from pipeline_lib.lineage import fewest_paths, of_stages, sources

Params = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every table and figure of a small project."""
    folder = tmp_path_factory.mktemp("finished")
    finish(folder, all_tables(folder))
    return folder


@pytest.fixture
def params(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The project's parameters; the working folder is a copy of it without its store, as in a clone."""
    shutil.copytree(finished, tmp_path / "clone", ignore=shutil.ignore_patterns("store"))
    monkeypatch.chdir(tmp_path / "clone")
    params: Params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    return params


def files(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["files", *arguments])


# --- sources ----------------------------------------------------------------------------------------------------------


def test_every_result_rests_on_what_its_records_name(finished: Path, params: Params):
    """Units and jobs as recorded; beyond them nothing but the sets that made them, and what these need."""
    plan = planned(params)
    for name, result in plan.results().items():
        found = sources(result, plan)
        recorded = made_from(finished, name)
        assert recorded <= found, name
        rest = found - recorded
        needed = {path for path in rest if "/sets/" not in path}
        sets = {job.path: {unit.path for unit in job.members} for job in plan.jobs.values() if job.members}
        assert needed <= set().union(*(sets[path] for path in rest - needed)), name


def test_with_what_a_result_rests_on_no_job_before_it_is_missing(params: Params):
    """Every job whose files are not all among the sources is one that Snakemake does not ask for."""
    plan = planned(params)
    by_path = {job.path: job for job in plan.jobs.values()}
    for result in plan.results().values():
        found = sources(result, plan)
        todo, asked = [result], set[str]()
        while todo:
            for path in plan.inputs(todo.pop().short_key):
                name = path.removeprefix("store/")
                assert name in found
                if name not in asked:
                    asked.add(name)
                    todo.append(by_path[name])


def test_a_table_does_not_rest_on_what_only_others_need(params: Params):
    """Table 1 needs no image that starts from a shot, and none of basic prompts; Figure 1 needs the former."""
    plan = planned(params)
    kinds = {
        name: {path.split("/")[1] for path in sources(plan.tables[name], plan) if path.startswith("images/")}
        for name in ("table1", "table2", "figure1")
    }
    assert not any("basic" in kind or "real_guidance" in kind for kind in kinds["table1"])
    assert any("basic" in kind for kind in kinds["table2"])
    assert any("real_guidance" in kind for kind in kinds["figure1"])


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_folder_stands_for_all_in_it_where_nothing_else_is_planned_there():
    """Never the whole store; a file comes with its record."""
    planned_paths = ["a/x/1", "a/x/2", "a/y/3", "b/z/4", "b/z/5"]
    assert fewest_paths(["a/x/1", "a/x/2"], planned_paths) == ["a/x"]
    assert fewest_paths(["a/x/1"], planned_paths) == ["a/x/1", "a/x/1.record.json"]
    assert fewest_paths(["a/x/1", "a/x/2", "a/y/3"], planned_paths) == ["a"]
    assert fewest_paths(planned_paths, planned_paths) == ["a", "b"]
    assert fewest_paths([], planned_paths) == []


def test_the_paths_hold_what_is_wanted_and_nothing_else(finished: Path, params: Params):
    """For every result, on the files of a finished store."""
    plan = planned(params)
    for name, result in plan.results().items():
        wanted = sources(result, plan)
        held = set()
        for path in fewest_paths(wanted, plan.reached()):
            place = finished / "store" / path
            held |= set(place.rglob("*")) if place.is_dir() else {place}
        expected = {finished / "store" / f"{path}{suffix}" for path in wanted for suffix in ("", ".record.json")}
        assert {path for path in held if not path.is_dir()} == expected, name


# --- the command ------------------------------------------------------------------------------------------------------


def test_files_of_one_stage_in_a_clone(params: Params):
    """The store is not there; paths are relative to the working folder; several stages may be named."""
    plan = planned(params)
    one = files("results/table1.csv", "--stage", "images")
    assert one.exit_code == 0, one.output
    wanted = of_stages(sources(plan.tables["table1"], plan), ["images"])
    assert one.stdout.splitlines() == [f"store/{path}" for path in fewest_paths(wanted, plan.reached())]
    assert {line.split("/")[1] for line in one.stdout.splitlines()} == {"images"}
    two = files("results/table1.csv", "--stage", "images", "--stage", "prompts").stdout.splitlines()
    assert {line.split("/")[1] for line in two} == {"images", "prompts"}
    assert not Path("store/images").exists()


@pytest.mark.parametrize("name", ["./results/figure1.svg", "results/samples/shapes.basic.png"])
def test_files_of_a_picture(params: Params, name: str):
    """What comes with a table or figure stands for it; contact sheets are results too."""
    done = files(name)
    assert done.exit_code == 0, done.output
    assert "store/images" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/table9.csv"], "results/table9.csv is no result of this configuration; it has results/table1.csv"),
        (["store/images"], "store/images is no result"),
        (["results/table1.csv", "--stage", "imagse"], "'imagse' makes nothing that this rests on; give one of"),
        (["results/table1.csv", "--stage", "few_shot"], "'few_shot' makes nothing that this rests on; give one of"),
    ],
)
def test_what_cannot_be_listed_is_said_and_nothing_is_printed(params: Params, arguments: list[str], message: str):
    """So that nothing is pulled for it."""
    done = files(*arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert done.stdout == ""


def test_a_result_of_another_configuration_is_refused(params: Params):
    """The present one would make it from other files. With its own study it is listed."""
    study = Path("study.yaml")
    study.write_text(f"seed: {params['seed']}\n")
    Path("params.yaml").write_text(yaml.safe_dump(params | {"seed": 7}, allow_unicode=True), encoding="utf-8")
    done = files("results/table1.csv")
    assert "was made by another configuration" in str(done.exception)
    assert files("results/table1.csv", "--overlay", str(study)).stdout.startswith("store/")


def test_without_a_model_nothing_is_listed(params: Params):
    """Its digest is part of every path."""
    models = params["models"] | {"generator": "./none"}
    Path("params.yaml").write_text(yaml.safe_dump(params | {"models": models}, allow_unicode=True), encoding="utf-8")
    done = files("results/table1.csv")
    assert isinstance(done.exception, UserError)
    assert "models.generator" in str(done.exception)
