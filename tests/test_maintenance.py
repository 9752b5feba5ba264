"""Looking after a store: `verify` finds damage and what rests on it, `gc` what nothing needs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_project import changed, configured, dependants_of, make_all, planned
from typer.testing import CliRunner

from pipeline_lib import stages
from pipeline_lib.cli import app
from pipeline_lib.errors import UserError
from pipeline_lib.maintenance import remove_all, resting_on, studies, unreached, verify_store
from pipeline_lib.plan import Plan
from pipeline_lib.store import RECORD_SUFFIX, Store, record_path, result_record_path

RESULTS = Path("results")
Params = dict[str, Any]


@pytest.fixture
def params(finished: Params) -> Params:
    """Of a project that is finished, in the working folder."""
    return finished


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
}


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


def test_a_unit_that_was_made_anew_with_other_content_is_noticed(params: Params):
    """By the sets that name the old one, too: else what reads them would end for ever."""
    plan = planned(params)
    images = plan.images("shapes", "basic")[0]
    shard = images.members[0]
    content = plan.store.path(shard).read_bytes()
    with plan.store.making(shard) as path:
        path.write_bytes(content + b" ")
    found = verify_store(plan.store, RESULTS)
    assert found.faults == []
    assert images.path in found.dependants
    assert set(found.dependants) == dependants_of(shard.path, plan)


def test_an_artifact_with_anothers_record_is_found(params: Params):
    """Copied by hand, both whole: the file is not what its name says."""
    plan = planned(params)
    store = plan.store
    first, second, *_ = (shard.path for shard in plan.images("shapes", "basic")[0].members)
    shutil.copy(store.path(first), store.path(second))
    shutil.copy(record_path(store.path(first)), record_path(store.path(second)))
    found = verify_store(store, RESULTS)
    assert found.faulty == [second]


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


@pytest.mark.parametrize("name", ["table1.md", "table1.json"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_comes_with_a_result_is_verified_too(params: Params, name: str, damage: Callable[[Path], None]):
    """It has no record of its own; the result goes with it, so that a run makes both again, and no other."""
    before = contents(RESULTS)
    damage(RESULTS / name)
    found = verify_store(Store(Path("store")), RESULTS)
    assert (found.faulty, found.dependants) == (["results/table1.csv"], [])
    assert len(found.faults) == 1
    assert f"results/{name}" in found.faults[0]
    remove_all(found.faulty, Store(Path("store")))
    assert set(contents(RESULTS)) == {"table2.csv", "table2.md", "table2.json"}
    make_all(planned(params), RESULTS, ("table1",))
    assert contents(RESULTS) == before


@pytest.mark.parametrize("damage", ["", "{"])
def test_a_result_whose_record_cannot_be_read_is_found(params: Params, damage: str):
    """It is made again with its record; a file that never had a record is somebody else's."""
    result_record_path(RESULTS / "table2.csv").write_text(damage)
    (RESULTS / "notes.csv").write_text("mine")
    found = verify_store(Store(Path("store")), RESULTS)
    assert (found.faulty, found.dependants) == (["results/table2.csv"], [])
    assert "no readable record" in found.faults[0]


@pytest.mark.parametrize("store", ["empty", "of another study"])
def test_results_that_were_made_elsewhere_are_no_damage(params: Params, tmp_path: Path, store: str):
    """As in a clone, whose store is not there: they are named, and stay."""
    before = contents(RESULTS)
    other = planned(changed(params, seed=1, store=str(tmp_path / "other")))
    other.store.root.mkdir()
    if store == "of another study":
        for prompts in other.prompts("basic"):
            stages.prompts(prompts, other.store)
    found = verify_store(other.store, RESULTS)
    assert (found.faults, found.faulty, found.dependants) == ([], [], [])
    assert found.elsewhere == ["results/table1.csv", "results/table2.csv"]
    remove_all(found.faulty + found.dependants, other.store)
    assert contents(RESULTS) == before


def test_a_damaged_result_that_was_made_elsewhere_is_damaged(params: Params, tmp_path: Path):
    """Its record says what it must be, wherever it was made."""
    flip(RESULTS / "table1.csv")
    (tmp_path / "other").mkdir()
    found = verify_store(Store(tmp_path / "other"), RESULTS)
    assert (found.faulty, found.elsewhere) == (["results/table1.csv"], ["results/table2.csv"])


def test_what_is_not_here_at_all_is_no_damage(params: Params):
    """As where a store was pulled in part: nothing that is here is called damaged for it, and nothing is removed."""
    plan = planned(params)
    cell = plan.tables["table1"].inputs[0]
    prompts = plan.prompts("basic")[0].members[0].path
    remove_all([cell, prompts], plan.store)
    found = verify_store(plan.store, RESULTS)
    assert (found.faults, found.faulty, found.dependants) == ([], [], [])
    assert found.absent == sorted([cell, prompts])
    assert "results/table1.csv" in found.elsewhere


def test_what_was_made_from_damage_goes_though_other_inputs_are_not_here(params: Params):
    """A damaged cell takes its table with it, wherever the table's other cells are."""
    plan = planned(params)
    first, *others = plan.tables["table2"].inputs
    flip(plan.store.path(first))
    remove_all(others[:1], plan.store)
    found = verify_store(plan.store, RESULTS)
    assert found.faulty == [first]
    assert "results/table2.csv" in found.dependants
    assert found.elsewhere == []


# --- gc ---------------------------------------------------------------------------------------------------------------


def test_everything_that_is_needed_is_reached(params: Params):
    """Right after a run there is nothing to collect."""
    assert unreached([planned(params)]) == []


def test_what_the_present_configuration_does_not_reach_is_listed_and_nothing_else(params: Params):
    """With table 2's other threshold: the old manifest and what rests on it; images and scores stay."""
    plan = planned(changed(params, clip_filter__threshold=0.9))
    found = {path for path, _ in unreached([plan])}
    assert {path.split("/")[0] for path in found} == {"manifests", "classifiers", "predictions", "metrics"}
    assert found == {record.path for record in plan.store.records()} - plan.reached()
    sizes = dict(unreached([plan]))
    assert all(size == plan.store.path(path).stat().st_size for path, size in sizes.items())


def test_what_one_of_several_studies_reaches_is_kept(params: Params):
    """Two studies on one store; what neither reaches is the older one's, which left a result."""
    plan = planned(params)
    make_all(planned(changed(params, seed=1)), Path("results/other"), ("table1",))
    configs = [configured(changed(params, seed=seed)) for seed in (0, 1, 2)]
    assert unreached(studies(configs[0], configs[1:])) == []
    found = [path for path, _ in unreached(studies(configs[1], [configs[2]]))]
    assert set(found) == plan.reached() - planned(changed(params, seed=1)).reached() - set(tables_of(plan))
    assert resting_on(found, RESULTS) == ["results/table1.csv", "results/table2.csv"]
    assert resting_on(found[:1], Path("results/other")) == []


def tables_of(plan: Plan) -> list[str]:
    """What the plan has below results/."""
    return [table.path for table in plan.tables.values()]


def test_gc_by_hand_keeps_every_study_that_is_named(params: Params):
    """`--overlay` once for each; half-written files of killed runs go with what is deleted."""
    Path("params.yaml").write_text(yaml.safe_dump(changed(params, seed=1), allow_unicode=True))
    Path("first.yaml").write_text("seed: 0\nstudy: first\n")
    Path("more.yaml").write_text("images: {per_class: 2}\nstudy: more\n")
    before = contents(Path("store"))
    kept = CliRunner().invoke(app, ["gc", "--overlay", "first.yaml", "--overlay", "more.yaml", "--delete"])
    assert kept.exit_code == 0, kept.output
    assert "0 artifacts, 0.0 MB, are not reached by small, first, more" in kept.stdout
    assert contents(Path("store")) == before
    Path("store/images/.shard.parquet.x.tmp").write_text("half")
    gone = CliRunner().invoke(app, ["gc", "--overlay", "more.yaml", "--delete"])
    assert "results/table1.csv was made from some of them: to keep them, name its study with --overlay" in gone.stdout
    assert not [path for path in contents(Path("store")) if path.startswith(("images/", "metrics/"))]


def test_verify_by_hand_says_what_was_made_elsewhere(params: Params, tmp_path: Path):
    """It ends well, and removes nothing."""
    (tmp_path / "none").mkdir()
    done = CliRunner().invoke(app, ["verify", "--store", str(tmp_path / "none"), "--remove"])
    assert done.exit_code == 0
    assert "made elsewhere: results/table1.csv is whole" in done.stdout
    assert "2 artifacts checked, 0 damaged, 0 made from them" in done.stdout
    assert (RESULTS / "table1.csv").exists()


def test_studies_of_several_stores_are_not_collected_together(params: Params):
    """A study with a store of its own is collected alone; with several it is not known which is meant."""
    here, there, elsewhere = (configured(changed(params, store=name)) for name in ("store", "a", "b"))
    assert [str(plan.store.root) for plan in studies(here, [])] == ["store"]
    assert [str(plan.store.root) for plan in studies(here, [there])] == ["a"]
    with pytest.raises(UserError, match=r"store: these studies have several \(a, b\)"):
        studies(here, [there, elsewhere])


def test_without_a_model_nothing_is_collected(params: Params):
    """Which keys the study has is not known then, and everything would seem to be of no use."""
    with pytest.raises(UserError, match=r"models\.generator"):
        studies(configured(changed(params, models__generator="./none")), [])


def test_deleting_keeps_what_is_reached(params: Params):
    """After a collection for fewer images, a run for fewer images has nothing to make."""
    fewer = changed(params, images__per_class=3)
    plan = planned(fewer)
    make_all(plan, RESULTS)
    before = {path: content for path, content in contents(Path("store")).items() if path in plan.reached()}
    gone = [path for path, _ in unreached([plan])]
    assert gone
    remove_all(gone, plan.store)
    after = contents(Path("store"))
    assert {path: content for path, content in after.items() if path in plan.reached()} == before
    assert not set(gone).intersection(after)
    assert unreached([plan]) == []
    assert all(plan.store.is_intact(job) for job in plan.jobs.values() if job.spec["stage"] != "tables")


# --- plan -------------------------------------------------------------------------------------------------------------
