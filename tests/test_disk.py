"""A disk that is full, or that may not be written to: a message, nothing finished lost, and the run goes on later."""

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fake_generator import FakeGenerator
from interrupted_work import MeanColour, needed, params_of, plan_of, results, work
from missing import missing
from small_project import changed, draw_shapes, planned
from workflow_project import Project, unprivileged

from pipeline_lib import stages
from pipeline_lib.cli import run_stage
from pipeline_lib.files import StorageError
from pipeline_lib.plan import Plan
from pipeline_lib.sets import make_set

Params = dict[str, Any]
Mount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """An empty file system of its own, and what mounts it again with other options (`size=1m`, `ro`)."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> subprocess.CompletedProcess[str]:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(place)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        made = mount("size=600k")
    except FileNotFoundError:
        missing("there is no `mount` here")
    if made.returncode:
        missing(f"a small file system cannot be mounted here: {made.stderr.strip()}")

    def again(options: str) -> None:
        done = mount("remount", *options.split(","))
        assert done.returncode == 0, done.stderr

    yield place, again
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    """What the stage loads: draws noise, which takes some 12 kB an image."""
    generator = FakeGenerator(size=64)
    monkeypatch.setattr("pipeline_lib.generators.load_generator", lambda *_, **__: generator)
    return generator


def ready(params: Params, store: Path) -> Plan:
    """A plan for more than the small disk holds, whose basic prompts are written."""
    plan = planned(changed(params, store=str(store), images__per_class=24, images__per_shard=4, images__batch_size=4))
    for prompts in plan.prompts("basic"):
        stages.prompts(prompts, plan.store)
    plan.store.write_specs(plan.images("shapes", "basic"))
    return plan


def draw(plan: Plan) -> None:
    """The job of the plan's basic images, as the workflow runs it."""
    (images,) = plan.images("shapes", "basic")
    run_stage("images", plan.store.spec_path(images), plan.store.path(images), plan.store.root)


def shards(plan: Plan) -> dict[str, bytes]:
    (images,) = plan.images("shapes", "basic")
    return {unit.path: plan.store.path(unit).read_bytes() for unit in images.members if plan.store.is_intact(unit)}


def test_generation_stops_on_a_full_disk_and_goes_on_when_there_is_room(
    params: Params, tmp_path: Path, disk: tuple[Path, Mount], generator: FakeGenerator
):
    """The message says what is missing. What was finished stays; afterwards only the rest is drawn."""
    place, mount = disk
    plan = ready(params, place / "store")
    with pytest.raises(StorageError, match=r"No space left in .*MB are free.*What was finished stays.*Make room"):
        draw(plan)
    finished = shards(plan)
    times = {path: plan.store.path(path).stat().st_mtime_ns for path in finished}
    assert 0 < len(finished) < 18
    assert not list(place.rglob("*.tmp"))
    (images,) = plan.images("shapes", "basic")
    assert not plan.store.path(images).exists()
    n_drawn = generator.n_drawn
    with pytest.raises(StorageError, match="No space left"):  # still full
        draw(plan)
    assert finished.items() <= shards(plan).items()

    mount("size=8m")
    n_left = 18 - len(shards(plan))
    n_drawn = generator.n_drawn
    draw(plan)
    assert generator.n_drawn - n_drawn == 4 * n_left
    assert {path: plan.store.path(path).stat().st_mtime_ns for path in finished} == times
    elsewhere = ready(params, tmp_path / "roomy")
    draw(elsewhere)
    assert shards(plan) == shards(elsewhere)
    assert plan.store.path(images).read_bytes() == elsewhere.store.path(images).read_bytes()


def test_a_disk_without_room_for_a_lock_is_full_too(params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nothing is drawn that could not be kept."""
    plan = ready(params, tmp_path / "store")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("filelock.FileLock.acquire", full)
    (images,) = plan.images("shapes", "basic")
    with pytest.raises(StorageError, match="No space left"):
        make_set(images, plan.store, lambda _: pytest.fail("nothing must be drawn"))


def test_no_room_for_the_timing_of_a_job_is_no_failure(
    params: Params, tmp_path: Path, generator: FakeGenerator, monkeypatch: pytest.MonkeyPatch
):
    """What was made counts."""
    plan = ready(params, tmp_path / "store")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline_lib.timings.append", full)
    draw(plan)
    assert len(shards(plan)) == 18


def test_a_read_only_store_is_named(params: Params, disk: tuple[Path, Mount], generator: FakeGenerator):
    """With the permission that is missing; nothing is drawn."""
    place, mount = disk
    plan = ready(params, place / "store")
    mount("ro")
    with pytest.raises(StorageError, match=r"disk/store/\S+ cannot be written: Read-only file system.*permission"):
        draw(plan)
    assert generator.n_drawn == 0
    with pytest.raises(StorageError, match=r"disk/store/specs/\S+ cannot be written"):
        plan.store.write_specs(plan.prompts("language_enhancement"))


def test_every_stage_says_that_the_disk_is_full(disk: tuple[Path, Mount], monkeypatch: pytest.MonkeyPatch):
    """Whatever it writes, it leaves no half of it, and makes the same bytes when there is room."""
    place, mount = disk
    mount("size=8m")
    draw_shapes(place / "shapes", 2)
    work(place)
    monkeypatch.setattr("pipeline_lib.stages._encoder_loader", lambda *_: MeanColour)
    plan = plan_of(place)
    results_of_plan = results(plan, place)
    wanted = {job.path: plan.store.path(job) for job in plan.jobs.values() if job.path in needed(plan)}
    jobs = [*plan.jobs.values(), *results_of_plan.values()]
    places = wanted | {job.path: path for path, job in results_of_plan.items()}
    plan.store.write_specs(job for job in jobs if job.path in places)
    stopped = []
    for job in jobs:
        stage = job.spec["stage"]
        if job.path not in places or stage in ("images", "heads"):  # these need a model; images: see above
            continue
        out = places[job.path]
        made = [plan.store.path(unit) for unit in job.members] or [out]
        before = [path.read_bytes() for path in made]
        for path in made:
            path.unlink()
        filling = place / "filling"
        with suppress(OSError), filling.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1024))
        with pytest.raises(StorageError, match=r"No space left in .* are free\. What was finished stays"):
            run_stage(stage, plan.store.spec_path(job), out, plan.store.root)
        assert not list(place.rglob("*.tmp"))
        filling.unlink()
        run_stage(stage, plan.store.spec_path(job), out, plan.store.root)
        assert [path.read_bytes() for path in made] == before
        stopped.append(stage)
    assert set(stopped) >= {"prompts", "real_images", "embeddings", "scores", "manifests", "classifiers"}
    assert set(stopped) >= {"predictions", "metrics", "samples", "tables"}


def test_a_run_on_a_full_disk_does_not_start(params: Params, disk: tuple[Path, Mount]):
    """Nor does Snakemake stumble over its own notes, for which there is no room either."""
    pytest.importorskip("snakemake")
    place, _ = disk
    with (place / "filling").open("wb") as stream:
        stream.write(bytes(560_000))
    done = Project(place, params).snakemake("results/table1.csv")
    assert done.returncode == 1
    assert "No space left in" in done.stderr
    assert "Make room" in done.stderr
    assert "Traceback" not in done.stderr


# --- no permission ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished project."""
    folder = tmp_path_factory.mktemp("finished")
    draw_shapes(folder / "shapes", 2)
    work(folder)
    return folder


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Within it nothing can be made, changed or removed below a folder."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(path.stat().st_mode | 0o200)


def test_a_stage_whose_store_may_not_be_written_to_names_it(finished: Path):
    """And the permission that is missing, without a traceback."""
    plan = plan_of(finished)
    (prompts,) = plan.prompts("basic")
    plan.store.write_specs([prompts])
    out = plan.store.path(prompts)
    out.unlink()
    command = ("prompts", "--spec", plan.store.spec_path(prompts), "--out", out, "--store", plan.store.root)
    project = Project(finished, params_of(finished), unprivileged())
    with read_only(plan.store.root):
        done = project.pipeline_lib(*map(str, command))
    assert done.returncode == 1
    assert "cannot be written: Permission denied. Give this user the permission" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.pipeline_lib(*map(str, command)).returncode == 0


def test_a_run_that_needs_nothing_is_content_with_a_read_only_store(finished: Path):
    pytest.importorskip("snakemake")
    with read_only(finished / "store"):
        done = Project(finished, params_of(finished), unprivileged()).snakemake("results/table1.csv")
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stderr


@pytest.mark.parametrize("folder", ["store", "results", "logs", ".snakemake"])
def test_a_run_that_may_not_write_says_where(finished: Path, folder: str):
    """Before anything is made, and without a traceback."""
    pytest.importorskip("snakemake")
    missing = [finished / "results/table1.csv"]
    if folder == "store":  # then Snakemake would make what rests on the missing part again, and finds it protected
        missing += [plan_of(finished).store.path(images) for images in plan_of(finished).images("shapes", "basic")]
    contents = [path.read_bytes() for path in missing]
    for path in missing:
        path.unlink()
    (finished / folder).mkdir(exist_ok=True)
    with read_only(finished / folder):
        done = Project(finished, params_of(finished), unprivileged()).snakemake("results/table1.csv")
    for path, content in zip(missing, contents, strict=True):
        path.write_bytes(content)
    assert done.returncode == 1
    name = finished / "store" if folder == "store" else folder
    told = rf"{name}\S* (cannot be written: Permission denied|is read-only for this user: .* cannot be made)"
    assert re.search(told, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_on_a_read_only_store_does_not_start(params: Params, tmp_path: Path, disk: tuple[Path, Mount]):
    """Snakemake prints the message, without a traceback."""
    pytest.importorskip("snakemake")
    place, mount = disk
    folder = tmp_path / "work"
    folder.mkdir()
    mount("ro")
    done = Project(folder, params).snakemake("results/table1.csv", params=changed(params, store=str(place / "store")))
    assert done.returncode == 1
    assert "cannot be written: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
