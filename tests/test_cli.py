"""The command line: each command does its part, and what the user can mend ends in a message, not a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_project import changed, planned

from pipeline_lib.cli import STAGE_HELP, run_stage
from pipeline_lib.errors import UserError
from pipeline_lib.graph import VERSIONS
from pipeline_lib.stages import RESULTS, STAGES


def pipeline_lib(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline_lib` as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline_lib", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"COLUMNS": "200"},
    )


@pytest.fixture
def folder(params: dict[str, Any], tmp_path: Path) -> Path:
    """A working folder with params.yaml, in which nothing was made."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params | {"store": "store"}, allow_unicode=True))
    return folder


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The command failed with one message that holds `words`, and no traceback."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_every_stage_has_a_command_a_version_and_a_function():
    """The names of the stages are the same everywhere."""
    assert set(STAGE_HELP) == set(STAGES) | set(RESULTS) == set(VERSIONS)


def test_help_names_all_commands(tmp_path: Path):
    """A person finds stages and tools in one place."""
    done = pipeline_lib("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in (*STAGE_HELP, "show", "verify", "gc", "plan", "schema"):
        assert name in done.stdout


def test_plan_prints_what_is_asked_for(folder: Path):
    """Nothing is written by it."""
    done = pipeline_lib("plan", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "24 images, 0 of them there" in done.stdout
    assert "draw   24 images, 0.0 hours of one device at 10 images/s" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


def test_overlays_reach_the_plan(folder: Path):
    """As --configfile does for Snakemake."""
    (folder / "more.yaml").write_text("images: {per_class: 10}\n")
    done = pipeline_lib("plan", "--overlay", "more.yaml", cwd=folder)
    assert "60 images, 0 of them there" in done.stdout


@pytest.mark.parametrize("command", ["plan", "gc"])
def test_bad_configuration_is_refused(folder: Path, params: dict[str, Any], command: str):
    """The message names the key and the value; a missing file is named too."""
    (folder / "bad.yaml").write_text(yaml.safe_dump(changed(params, images__per_class=-1), allow_unicode=True))
    refused(pipeline_lib(command, "--params", "bad.yaml", cwd=folder), "images.per_class: -1", "bad.yaml")
    refused(pipeline_lib(command, "--params", "none.yaml", cwd=folder), "none.yaml does not exist")


def test_show_of_nothing_is_refused(folder: Path):
    """Without a record there is nothing to show."""
    refused(pipeline_lib("show", "params.yaml", cwd=folder), "params.yaml has no record")


def test_verify_of_no_store_is_refused(folder: Path):
    """A mistyped folder is not an intact store."""
    refused(pipeline_lib("verify", "--store", "stroe", cwd=folder), "stroe", "does not exist")


def test_verify_exits_with_1_until_the_damage_is_removed(folder: Path, params: dict[str, Any]):
    """It prints the faults; with --remove it ends well, and so does the next verification."""
    plan = planned(params)
    for prompts in plan.prompts("basic"):
        STAGES["prompts"](prompts, plan.store)
    unit, store = plan.prompts("basic")[0].members[0], plan.store.root
    intact = pipeline_lib("verify", "--store", store, cwd=folder)
    assert (intact.returncode, intact.stdout) == (0, "4 artifacts checked, 0 damaged, 0 made from them\n")
    plan.store.path(unit).write_bytes(b"damage")
    found = pipeline_lib("verify", "--store", store, cwd=folder)
    assert found.returncode == 1
    assert f"damaged: {plan.store.path(unit)} has 6 bytes" in found.stdout
    assert f"made from damaged input: {plan.prompts('basic')[0].path}" in found.stdout
    assert plan.store.path(unit).exists()
    assert pipeline_lib("verify", "--store", store, "--remove", cwd=folder).returncode == 0
    assert not plan.store.path(unit).exists()
    assert pipeline_lib("verify", "--store", store, cwd=folder).returncode == 0


def test_gc_deletes_only_when_told(folder: Path, params: dict[str, Any]):
    """It lists sizes and paths; --delete removes what is listed and its records."""
    plan = planned(changed(params, seed=1))
    for prompts in plan.prompts("basic"):
        STAGES["prompts"](prompts, plan.store)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))
    other = changed(params, own_datasets__shapes__template="a sketch of a {}")
    (folder / "other.yaml").write_text(yaml.safe_dump(other, allow_unicode=True))
    kept = pipeline_lib("gc", "--delete", cwd=folder)
    assert "0 artifacts" in kept.stdout
    listed = pipeline_lib("gc", "--params", "other.yaml", cwd=folder)
    assert "4 artifacts" in listed.stdout
    unit = plan.prompts("basic")[0].members[0]
    assert unit.path in listed.stdout
    assert plan.store.is_intact(unit)
    assert pipeline_lib("gc", "--params", "other.yaml", "--delete", cwd=folder).returncode == 0
    assert not plan.store.path(unit).exists()
    assert not list(plan.store.records())


def test_schema_is_json_with_every_section(tmp_path: Path, params: dict[str, Any]):
    """Editors can check params.yaml against it."""
    done = pipeline_lib("schema", cwd=tmp_path)
    assert set(params) <= set(json.loads(done.stdout)["properties"])


# --- stages by hand ---------------------------------------------------------------------------------------------------


def test_a_stage_runs_by_hand(folder: Path, params: dict[str, Any]):
    """One line makes an artifact from its spec file; its time is noted, its log written."""
    plan = planned(params)
    prompts = plan.prompts("basic")[0]
    plan.store.write_specs([prompts])
    spec, out = plan.store.spec_path(prompts), plan.store.path(prompts)
    line = ("prompts", "--spec", spec, "--out", out, "--store", plan.store.root, "--log", "logs/prompts.log")
    done = pipeline_lib(*line, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert plan.store.is_intact(prompts)
    timings = (plan.store.root / "timings.jsonl").read_text().splitlines()
    assert [json.loads(text)["stage"] for text in timings] == ["prompts"]
    assert "3 of 3 units to make" in (folder / "logs" / "prompts.log").read_text()


@pytest.mark.parametrize("fault", ["missing", "not JSON", "other JSON", "altered", "other stage", "other place"])
def test_a_spec_that_does_not_fit_is_refused(params: dict[str, Any], tmp_path: Path, fault: str):
    """Spec, stage and destination must fit each other; nothing is written otherwise."""
    plan = planned(params)
    prompts = plan.prompts("basic")[0]
    plan.store.write_specs([prompts])
    spec, out = plan.store.spec_path(prompts), plan.store.path(prompts)
    name = "prompts"
    if fault == "missing":
        spec.unlink()
    elif fault == "not JSON":
        spec.write_text("{")
    elif fault == "other JSON":
        spec.write_text("[1]")
    elif fault == "altered":
        spec.write_text(spec.read_text().replace("red/square", "red/circle"))
    elif fault == "other stage":
        name = "images"
    else:
        out = tmp_path / "elsewhere.json"
    with pytest.raises(UserError, match=r"spec|--out"):
        run_stage(name, spec, out, plan.store.root)
    assert not out.exists()
    assert not (plan.store.root / "timings.jsonl").exists()


def test_an_error_in_a_stage_is_printed_and_logged_without_a_traceback(folder: Path, params: dict[str, Any]):
    """A damaged image in a data set: exit status 1, the file is named on the terminal and in the log."""
    plan = planned(params)
    image = Path(params["own_datasets"]["shapes"]["folder"]) / "red" / "001.png"
    image.write_bytes(image.read_bytes()[:60])
    real = plan.real_images("shapes", "test")
    plan.store.write_specs([real])
    line = ("real_images", "--spec", plan.store.spec_path(real), "--out", plan.store.path(real), "--store")
    done = pipeline_lib(*line, plan.store.root, "--log", "logs/real_images.log", cwd=folder)
    refused(done, "1 files in", "cannot be read as images", str(image.parent.parent), "red/001.png")
    assert "red/001.png" in (folder / "logs" / "real_images.log").read_text()
    assert not plan.store.path(real).exists()


def test_verify_exits_with_1_where_only_an_input_was_made_anew(folder: Path, params: dict[str, Any]):
    """Intact files that rest on bytes that are no more are damage, too, and --remove removes them."""
    plan = planned(params)
    prompts = plan.prompts("basic")[0]
    STAGES["prompts"](prompts, plan.store)
    images = plan.images("shapes", "basic")[0].members[0]
    with plan.store.making(images) as path:
        path.write_bytes(b"made from the prompts")
    with plan.store.making(prompts.members[0]) as path:
        path.write_bytes(b"other prompts")
    found = pipeline_lib("verify", "--store", plan.store.root, cwd=folder)
    assert found.returncode == 1
    assert f"made from damaged input: {images.path}" in found.stdout
    assert pipeline_lib("verify", "--store", plan.store.root, "--remove", cwd=folder).returncode == 0
    assert not plan.store.path(images).exists()
    assert plan.store.is_intact(prompts.members[0])
