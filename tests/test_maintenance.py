"""Looking after a store: `verify` finds damage and what rests on it, `gc` what nothing needs, `show` the chain."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_project import changed, draw_shapes, make_all, planned, small_params

from pipeline_lib.errors import UserError
from pipeline_lib.maintenance import provenance, remove_all, unreached, verify_store
from pipeline_lib.plan import Plan
from pipeline_lib.store import RECORD_SUFFIX, Store, record_path

RESULTS = Path("results")
Params = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, str]) -> Path:
    """A folder with a finished small project."""
    folder = tmp_path_factory.mktemp("finished")
    draw_shapes(folder / "shapes", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all(planned(small_params(tiny_models, Path("shapes"))), RESULTS)
    return folder


@pytest.fixture
def params(finished: Path, tiny_models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The parameters of the finished project; the working folder is a copy of it."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return small_params(tiny_models, Path("shapes"))


def contents(folder: Path = Path()) -> dict[str, bytes]:
    """All artifacts and results; without records, which tell the time, and notes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(RECORD_SUFFIX) and ".locks" not in path.parts
    }


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped bit": (flip, "does not have the SHA-256"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its record says"),
    "deleted": (Path.unlink, "missing"),
    "record deleted": (lambda path: record_path(path).unlink(), "no readable record"),
    "record damaged": (lambda path: record_path(path).write_text("{"), "no readable record"),
    "gone with its record": (lambda path: (path.unlink(), record_path(path).unlink()), "missing"),  # type: ignore[dict-item]
}


def dependants_of(target: str, plan: Plan) -> set[str]:
    """What rests on an artifact, from the plan alone: a set rests on its units, a unit and a job on their inputs."""
    reads: dict[str, set[str]] = {}
    for job in plan.jobs.values():
        for artifact in (job, *job.members):
            reads.setdefault(artifact.path, set()).update(artifact.inputs, [member.path for member in artifact.members])
    found: set[str] = set()
    while more := {path for path, parents in reads.items() if parents & (found | {target})} - found:
        found |= more
    results = {f"tables/{name}/": f"results/{name}.csv" for name in plan.tables}
    return {next((to for start, to in results.items() if path.startswith(start)), path) for path in found}


# --- verify -----------------------------------------------------------------------------------------------------------


def test_an_intact_store_has_no_faults(params: Params):
    """Everything is hashed, results too."""
    found = verify_store(Store(Path("store")), RESULTS)
    assert (found.faults, found.faulty, found.dependants) == ([], [], [])
    reached = planned(params).reached()
    assert found.n_checked == len(reached)  # two tables among them


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stage", ["images", "prompts", "scores"])
def test_damage_is_found_with_exactly_what_rests_on_it(params: Params, damage: str, stage: str):
    """One fault for one damaged artifact; its dependants, known from the plan, and no other artifact."""
    plan = planned(params)
    jobs = plan.stage(stage)
    target = (jobs[0].members or jobs)[0].path
    inflict, words = DAMAGES[damage]
    inflict(plan.store.path(target))
    found = verify_store(plan.store, RESULTS)
    assert found.faulty == [target]
    assert len(found.faults) == 1
    assert target in found.faults[0]
    assert words in found.faults[0]
    assert set(found.dependants) == dependants_of(target, plan)


def test_a_damaged_result_is_found(params: Params):
    """A table that was edited by hand is not what was computed."""
    table = RESULTS / "table1.csv"
    table.write_text(table.read_text().replace("shapes", "shapez"))
    found = verify_store(Store(Path("store")), RESULTS)
    assert found.faulty == ["results/table1.csv"]
    assert found.dependants == []


def test_an_input_that_was_made_anew_with_other_content_is_noticed(params: Params):
    """What was made from the old bytes rests on nothing that is there, although every file is intact."""
    plan = planned(params)
    scores = plan.stage("scores")[0]
    content = plan.store.path(scores).read_bytes()
    with plan.store.making(scores) as path:
        path.write_bytes(content + b" ")
    found = verify_store(plan.store, RESULTS)
    assert found.faults == []
    assert set(found.dependants) == dependants_of(scores.path, plan)


@pytest.mark.parametrize("stage", ["prompts", "images", "embeddings", "classifiers"])
def test_removing_what_is_damaged_and_running_again_gives_the_same_store(params: Params, stage: str):
    """After --remove a run makes what was removed, byte for byte, and leaves the rest alone."""
    plan = planned(params)
    before = contents()
    kept_times = {path: record.created for record in plan.store.records() if (path := record.path)}
    jobs = plan.stage(stage)
    target = (jobs[-1].members or jobs)[-1].path
    flip(plan.store.path(target))
    found = verify_store(plan.store, RESULTS)
    removed = {target, *found.dependants}
    untouched = {path: plan.store.path(path).stat().st_mtime_ns for path in kept_times if path not in removed}
    remove_all(found.faulty + found.dependants, plan.store)
    assert not any(plan.store.path(path).exists() for path in removed)
    make_all(planned(params), RESULTS)
    assert contents() == before
    assert {path: plan.store.path(path).stat().st_mtime_ns for path in untouched} == untouched


# --- show -------------------------------------------------------------------------------------------------------------


def show(path: str | Path, depth: int = 20) -> list[str]:
    return list(provenance(Path(path), Store(Path("store")), depth))


def test_show_prints_the_chain_of_a_table(params: Params):
    """From the table through every stage to class names, templates, seeds and the digests of three models."""
    plan = planned(params)
    lines = show("results/table2.csv")
    text = "\n".join(lines)
    assert lines[0] == "results/table2.csv"
    shown = {line.strip() for line in lines}
    for path in dependants_of(plan.prompts("basic")[0].members[0].path, plan) - set(show_results(plan)):
        if "/sets/" not in path:
            assert path in shown, path
    digests = {plan._generator, plan._sentences, *plan._encoders.values()}
    assert len(digests) == 3
    for words in (*digests, '"red/square"', '"grüne Fläche"', '"a photo of a {}"', "seed: 0", "top_p: 0.95"):
        assert words in text, words


def show_results(plan: Plan) -> Iterator[str]:
    return (f"results/{name}.csv" for name in plan.tables)


def test_show_prints_each_artifact_once(params: Params):
    """What two methods share is described at its first place."""
    lines = [line for line in show("results/table2.csv") if "key " in line]
    assert len(lines) == len(set(lines))
    assert any("(shown above)" in line for line in show("results/table2.csv"))


def test_show_takes_artifacts_and_a_depth(params: Params):
    """A path of the store, with or without the store's folder; as many steps as asked for."""
    path = planned(params).stage("scores")[0].path
    assert show(path) == show(f"store/{path}")
    assert len([line for line in show(path, 0) if "key " in line]) == 1
    assert len(show(path, 0)) < len(show(path, 1)) < len(show(path))


@pytest.mark.parametrize("path", ["no/such/file", "shapes/red/000.png", "store", "."])
def test_show_of_something_else_is_a_user_error(params: Params, path: str):
    """The message says what to give."""
    with pytest.raises(UserError, match=r"has no record.*give a table"):
        show(path)


# --- gc ---------------------------------------------------------------------------------------------------------------


def test_everything_that_is_needed_is_reached(params: Params):
    """Right after a run there is nothing to collect."""
    assert unreached(planned(params)) == []


def test_what_the_present_configuration_does_not_reach_is_listed_and_nothing_else(params: Params):
    """With table 2's other threshold: the old manifest and what rests on it; images and scores stay."""
    plan = planned(changed(params, clip_filter__threshold=0.9))
    found = {path for path, _ in unreached(plan)}
    assert {path.split("/")[0] for path in found} == {"manifests", "classifiers", "predictions", "metrics"}
    assert found == {record.path for record in plan.store.records()} - plan.reached()
    sizes = dict(unreached(plan))
    assert all(size == plan.store.path(path).stat().st_size for path, size in sizes.items())


def test_deleting_keeps_what_is_reached(params: Params):
    """After a collection for fewer images, a run for fewer images has nothing to make."""
    fewer = changed(params, images__per_class=3)
    plan = planned(fewer)
    make_all(plan, RESULTS)
    before = {path: content for path, content in contents(Path("store")).items() if path in plan.reached()}
    gone = [path for path, _ in unreached(plan)]
    assert gone
    remove_all(gone, plan.store)
    after = contents(Path("store"))
    assert {path: content for path, content in after.items() if path in plan.reached()} == before
    assert not set(gone).intersection(after)
    assert unreached(plan) == []
    assert all(plan.store.is_intact(job) for job in plan.jobs.values() if job.spec["stage"] != "tables")


# --- plan -------------------------------------------------------------------------------------------------------------
