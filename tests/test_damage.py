"""Damage to any kind of artifact is found and named; what can be made again is made again alone, byte for byte."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_project import changed, draw_shapes, own_dataset, planned, small_params

from pipeline_lib import stages
from pipeline_lib.cli import run_stage
from pipeline_lib.errors import UserError
from pipeline_lib.maintenance import remove_all, verify_store
from pipeline_lib.plan import Plan
from pipeline_lib.presence import clear_unreadable
from pipeline_lib.store import RECORD_SUFFIX, Artifact, Store, record_path, result_record_path

RESULTS = Path("results")
TABLES = ("table1", "figure1")
SHEET = RESULTS / "samples" / "shapes.basic.png"
Params = dict[str, Any]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}
# A file of every stage, and a set's receipt.
KINDS = (
    *("prompts", "images", "shots", "real_images", "embeddings", "heads", "scores", "manifests", "classifiers"),
    *("few_shot", "batch_norm", "predictions", "metrics", "few_shot_metrics", "receipt"),
)
RESULT_FILES = ("table1.csv", "table1.md", "table1.json", *(f"figure1.{end}" for end in ("csv", "md", "json", "png")))
ALL_RESULTS = (*RESULT_FILES, "figure1.svg", "samples/shapes.basic.png")


def run(plan: Plan) -> None:
    """Make what is missing, by the names of the files, as Snakemake would."""
    for job in plan.jobs.values():
        if job.spec["stage"] in stages.STAGES and not plan.store.path(job).exists():
            stages.STAGES[job.spec["stage"]](job, plan.store)
    for name in TABLES:
        if not all((RESULTS / file).exists() for file in ALL_RESULTS if file.startswith(name)):
            stages.tables(plan.tables[name], plan.store, RESULTS / f"{name}.csv")
    if not SHEET.exists():
        stages.samples(plan.samples("shapes", "basic"), plan.store, SHEET)


@pytest.fixture(scope="module")
def params(tiny_models: dict[str, str]) -> Params:
    own = {"shapes": {**own_dataset(Path("test")), "train_folder": "train"}}
    small = small_params(tiny_models, Path("test"))
    return changed(small, own_datasets=own, few_shot__datasets=["shapes"], few_shot__ablation_dataset="shapes")


@pytest.fixture(scope="module")
def plan(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """A finished project with real shots; the working folder is its folder. Each test leaves it whole."""
    folder = tmp_path_factory.mktemp("damage")
    draw_shapes(folder / "test", 3)
    draw_shapes(folder / "train", 4, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = planned(params)
        run(plan)
        yield plan


def file_of(plan: Plan, kind: str) -> str:
    """Path in the store of an artifact of a kind, the last one that is planned."""
    if kind == "receipt":
        return plan.stage("images")[-1].path
    job = plan.stage(kind)[-1]
    return (job.members or (job,))[-1].path


def everything() -> dict[Path, bytes]:
    """Artifacts and results; without records, which tell the time."""
    return {
        path: path.read_bytes()
        for folder in (Path("store"), RESULTS)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(RECORD_SUFFIX) and not {".locks", "specs"} & {*path.parts}
    }


def test_every_stage_is_among_the_kinds(plan: Plan):
    """So that a new one is damaged here, too; and an intact project has no faults."""
    assert set(stages.STAGES) <= set(KINDS)
    found = verify_store(plan.store, RESULTS)
    assert (found.faults, found.dependants, found.elsewhere) == ([], [], [])
    assert set(ALL_RESULTS) == {
        path.relative_to(RESULTS).as_posix()
        for path in RESULTS.rglob("*")
        if path.is_file() and ".records" not in path.parts
    }


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_an_artifact_is_found_and_named(plan: Plan, kind: str, damage: str, tmp_path: Path):
    """It alone, as damaged itself."""
    name = file_of(plan, kind)
    path = plan.store.path(name)
    shutil.copy2(path, tmp_path / "whole")
    DAMAGES[damage](path)
    try:
        found = verify_store(plan.store, RESULTS)
    finally:
        shutil.copy2(tmp_path / "whole", path)
    assert found.faulty == [name]
    assert len(found.faults) == 1
    assert name in found.faults[0]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ALL_RESULTS)
def test_damage_to_a_result_is_found_and_named(plan: Plan, name: str, damage: str, tmp_path: Path):
    """A table with all its files, and the pictures; the damaged file is named."""
    path = RESULTS / name
    shutil.copy2(path, tmp_path / "whole")
    DAMAGES[damage](path)
    try:
        found = verify_store(plan.store, RESULTS)
    finally:
        shutil.copy2(tmp_path / "whole", path)
    recorded = path if path.suffix == ".csv" or "samples" in path.parts else path.with_suffix(".csv")
    assert (found.faulty, found.dependants) == ([str(recorded)], [])
    assert len(found.faults) == 1
    assert str(path) in found.faults[0]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["images", "receipt", "few_shot", "result"])
def test_damage_to_a_record_is_found_and_named(plan: Plan, kind: str, damage: str, tmp_path: Path):
    """Bytes that no record vouches for are not finished. Of a result without record, nothing is known: a run makes it
    again, because it is not the planned one."""
    path = RESULTS / "table1.csv" if kind == "result" else plan.store.path(file_of(plan, kind))
    record = result_record_path(path) if kind == "result" else record_path(path)
    shutil.copy2(record, tmp_path / "whole")
    DAMAGES[damage](record)
    try:
        found = verify_store(plan.store, RESULTS)
        current = plan.store.is_current(path, plan.tables["table1"])
    finally:
        shutil.copy2(tmp_path / "whole", record)
    if kind == "result" and damage == "deleted":
        assert not current
    else:
        assert found.faulty == [str(path) if kind == "result" else plan.store.relative(path)]


def named_in(value: Any) -> Iterator[str]:
    """Every text in a spec."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from named_in(part)


def read_by(plan: Plan, job: Artifact) -> dict[str, str]:
    """What the last unit of a job, or the job, reads: of each stage a file, and of each set a unit."""
    sets = {one.path: one for one in plan.jobs.values() if one.members}
    known = plan.reached()
    found: dict[str, str] = {}
    for name in named_in((job.members or (job,))[-1].spec):
        if name in known:
            found[name.split("/")[0] + " set" * (name in sets)] = name
        if name in sets:
            found[f"unit of {name.split('/')[0]}"] = sets[name].members[-1].path
    # A manifest says which head gives soft targets, a figure counts what is in sets: they do not look there.
    not_read = {"manifests": "heads", "tables": "unit of embeddings"}.get(job.spec["stage"])
    return {kind: name for kind, name in found.items() if kind != not_read}


def make_as_a_rule_does(plan: Plan, job: Artifact) -> None:
    plan.store.write_specs([job])
    stage = job.spec.get("set", job.spec["stage"])
    out = plan.store.path(job) if stage in stages.STAGES else RESULTS / "again.csv"
    run_stage(stage, plan.store.spec_path(job), out, plan.store.root)


READING = (*(set(KINDS) - {"prompts", "shots", "heads", "receipt"}), "tables", "samples")


@pytest.mark.parametrize("stage", sorted(READING))
def test_nothing_is_made_from_a_damaged_input(plan: Plan, stage: str, tmp_path: Path):
    """One flipped bit in anything that a stage reads: it ends with the name of the file and what to do, and leaves
    nothing. This is what a user meets who runs Snakemake again and no `verify`."""
    before = everything()
    jobs = [plan.samples("shapes", "basic")] if stage == "samples" else plan.stage(stage)
    n_read = 0
    for job in jobs:
        made = plan.store.path((job.members or (job,))[-1])
        for name in read_by(plan, job).values():
            n_read += 1
            path = plan.store.path(name)
            touched = [file for file in (path, made, record_path(made)) if file.exists()]
            for number, file in enumerate(touched):
                shutil.copy2(file, tmp_path / str(number))
            flip(path)
            if job.members:  # else there would be nothing to make
                plan.store.remove((made).relative_to(plan.store.root).as_posix())
            try:
                with pytest.raises(UserError, match=rf"damaged: {path} .*verify --store store --remove"):
                    make_as_a_rule_does(plan, job)
                assert not job.members or not made.exists()
            finally:
                for number, file in enumerate(touched):
                    shutil.copy2(tmp_path / str(number), file)
    assert n_read
    assert everything() == before


@pytest.mark.parametrize("kind", [*KINDS, "results"])
def test_what_was_damaged_is_made_again_alone(plan: Plan, params: Params, kind: str):
    """With what rests on it, byte for byte; all else is not touched."""
    before = everything()
    times = {path: path.stat().st_mtime_ns for path in before}
    flip(RESULTS / "figure1.svg" if kind == "results" else plan.store.path(file_of(plan, kind)))
    found = verify_store(plan.store, RESULTS)
    remove_all(found.faulty + found.dependants, plan.store)
    removed = before.keys() - everything().keys()
    assert removed
    run(planned(params))
    assert everything() == before
    assert {path for path in before if path.stat().st_mtime_ns != times[path]} <= removed
    found = verify_store(Store(Path("store")), RESULTS)
    assert (found.faults, found.dependants) == ([], [])


def test_damaged_notes_of_snakemake_are_removed_and_whole_ones_stay(tmp_path: Path):
    """Bytes that are no text would end every run with a traceback; JSON that is none, Snakemake itself passes over."""
    notes = {
        "a": b'{"rule": "images"}',
        "b": b'{"rule": "\xefmages"}',
        "@long/c": b'{"rule"',
        "@long/d": b"\xff",
        "e": b"",
    }
    for name, content in notes.items():
        path = tmp_path / "metadata" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    clear_unreadable(tmp_path)
    left = {path.relative_to(tmp_path / "metadata").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"a", "@long/c", "e"}
    clear_unreadable(tmp_path / "none")
