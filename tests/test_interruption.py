"""Killed or interrupted anywhere, the same command ends with the same bytes, and little is made twice."""

import base64
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from interrupted_work import PER_CLASS, PER_SHARD, plan_of
from small_project import REPOSITORY, SHAPES, draw_shapes, make_all, planned, small_params
from workflow_project import STORE, Project

from pipeline_lib.presence import announce, clear_remains
from pipeline_lib.store import RECORD_SUFFIX, Store, remove_abandoned

TABLE1 = "results/table1.csv"
MOMENTS = 30
N_IMAGES = PER_CLASS * len(SHAPES)
RESAMPLES, MORE_RESAMPLES = 100, 200  # settings of metrics and tables alone


def artifacts(store: Path) -> dict[str, bytes]:
    """Everything below a store, or in the results, but records and timings, which tell the time, spec files, digests
    and locks."""
    found = {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and not path.name.endswith((RECORD_SUFFIX, ".jsonl", ".lock"))
    }
    return {path: content for path, content in found.items() if not path.startswith("specs/")}


# --- kill -9 at any moment, without Snakemake -------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Works in sub-folders of a folder, killed where that is asked for."""

    folder: Path
    server: subprocess.Popen[str]

    def __call__(self, name: str, event: int = 0, resamples: int = RESAMPLES) -> int:
        """Make all up to the table, to be killed at an event (0: not); the number of events, or -1 if killed."""
        assert self.server.stdin is not None and self.server.stdout is not None
        if not (self.folder / name).exists():
            draw_shapes(self.folder / name / "shapes", 5)
        self.server.stdin.write(f"{name} {event} {resamples}\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def store(self, name: str) -> Path:
        return self.folder / name / "store"

    def made(self, name: str) -> dict[str, bytes]:
        """The artifacts, and the results."""
        results = self.folder / name / "results"
        return artifacts(self.store(name)) | {
            f"results/{path}": content for path, content in artifacts(results).items()
        }

    def drawn_again(self, name: str) -> int:
        """How many images were drawn a second time."""
        return len((self.folder / name / "drawn.txt").read_text().splitlines()) - N_IMAGES

    def clear(self, name: str) -> None:
        """What a run does when it starts."""
        for folder in (self.store(name), self.folder / name / "results"):
            remove_abandoned(folder)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    folder = tmp_path_factory.mktemp("interrupted")
    command = [sys.executable, str(Path(__file__).with_name("interrupted_work.py")), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Work(folder, server)


@pytest.fixture(scope="module")
def uninterrupted(work: Work) -> tuple[int, dict[str, bytes]]:
    """The number of moments at which a run can be killed, and what it makes if it is not."""
    n_events = work("uninterrupted")
    made = work.made("uninterrupted")
    n_shards = N_IMAGES // PER_SHARD
    assert Counter(path.split("/")[0] for path in made) == {
        "prompts": 4,
        "real_images": 2,
        "images": n_shards + 1,
        "embeddings": n_shards + 3,
        "heads": 2,
        **dict.fromkeys(("scores", "manifests", "classifiers", "predictions", "metrics"), 1),
        "results": 4,
    }
    return n_events, made


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_at_any_moment_the_same_run_makes_the_same_bytes(
    work: Work, uninterrupted: tuple[int, dict[str, bytes]], moment: int
):
    """Moments spread over the whole run, from prompts to table and pictures. What was finished is not touched again, of
    images at most one shard is drawn again, and no half-file is left over after the collection."""
    n_events, expected = uninterrupted
    name = f"killed_{moment}"
    assert work(name, 1 + moment * (n_events - 1) // (MOMENTS - 1)) == -1
    store = Store(work.store(name))
    finished = {
        path: store.path(path).stat().st_mtime_ns
        for path in artifacts(store.root)
        if ".tmp" not in path and store.is_intact(path)
    }
    assert work(name) >= 0
    work.clear(name)
    assert work.made(name) == expected
    assert {path: store.path(path).stat().st_mtime_ns for path in finished} == finished
    assert all(store.is_intact(path) for path in artifacts(store.root))
    assert not list((work.folder / name).rglob("*.tmp"))
    assert work.drawn_again(name) <= PER_SHARD


def test_killed_again_and_again_a_run_gets_on(work: Work, uninterrupted: tuple[int, dict[str, bytes]]):
    """Every run gets as far as a tenth of the whole, and is killed; together they finish, byte for byte."""
    n_events, expected = uninterrupted
    kills = before = 0
    while work("again", n_events // 10) == -1:
        kills += 1
        work.clear("again")
        assert kills < 80
        assert before <= (before := len(work.made("again")))
    assert kills >= 10
    assert work.made("again") == expected
    assert work.drawn_again("again") <= kills * PER_SHARD


def test_killed_at_every_event_of_metrics_and_table_over_an_older_one(
    work: Work, uninterrupted: tuple[int, dict[str, bytes]]
):
    """At no moment does a record take the older table for the new one, or the other way round."""
    tables = {}
    for resamples in (RESAMPLES, MORE_RESAMPLES):
        work("tables", resamples=resamples)
        tables[resamples] = (work.folder / "tables/results/table1.csv").read_bytes()
    assert tables[RESAMPLES] != tables[MORE_RESAMPLES]
    event = 0
    killed = True
    while killed:
        event += 1
        name = f"table_{event}"
        shutil.copytree(work.folder / "uninterrupted", work.folder / name)
        killed = work(name, event, MORE_RESAMPLES) == -1
        table = work.folder / name / "results/table1.csv"
        for resamples, content in tables.items():
            plan = plan_of(work.folder / name, resamples)
            if table.exists() and plan.store.is_current(table, plan.tables["table1"]):
                assert table.read_bytes() == content
        work(name, resamples=MORE_RESAMPLES)
        work.clear(name)
        assert plan.store.is_current(table, plan.tables["table1"])
        assert table.read_bytes() == tables[MORE_RESAMPLES]
        assert work.made(name) == work.made("tables")
        shutil.rmtree(work.folder / name)
    assert event > 20


# --- who is there -----------------------------------------------------------------------------------------------------

ANNOUNCE = """
import sys, time
from pathlib import Path
from pipeline_lib.presence import announce, clear_remains
print(announce(Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


def test_a_process_is_alone_until_another_comes_and_again_when_all_have_gone(tmp_path: Path):
    """Presence ends with the process, by kill -9 too; the second of two that came is still seen when the first left."""
    processes: list[subprocess.Popen[str]] = []

    def come() -> str:
        command = [sys.executable, "-c", ANNOUNCE, str(tmp_path)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        return processes[-1].stdout.readline().strip()

    def leave() -> None:
        process = processes.pop(0)
        process.kill()
        process.communicate()

    try:
        assert come() == "True"
        assert come() == "False"
        leave()
        assert come() == "False"
        leave()
        leave()
        assert come() == "True"
    finally:
        while processes:
            leave()
    assert announce(tmp_path)


def mark(snakemake: Path, path: str) -> Path:
    """Mark a path as Snakemake does: with the name in Base64, in folders where that is longer than 255 characters."""
    name = base64.urlsafe_b64encode(path.encode()).decode()
    *first, last = [name[at : at + 254] for at in range(0, len(name), 254)]
    file = Path(snakemake, "incomplete", *(f"@{part}" for part in first), last)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    return file


@pytest.mark.parametrize("alone", [True, False])
def test_remains_of_a_killed_run_are_cleared_where_nobody_is(tmp_path: Path, alone: bool):
    """Locks, and marks of what is made whole or not at all; not the marks of other rules, nor a living run's."""
    snakemake = tmp_path / ".snakemake"
    (snakemake / "locks").mkdir(parents=True)
    ours = [snakemake / "locks" / "0.input.lock", mark(snakemake, "my store/images/sets/a.json")]
    ours += [mark(snakemake, f"results/{'x' * 300}.csv"), mark(snakemake, f"{Path.cwd()}/my store/b.parquet")]
    others = [mark(snakemake, "build/miniature/clip"), snakemake / "incomplete" / "migration_underway"]
    for path in (ours[0], others[1]):
        path.write_text("")
    folders = [Path("my store"), Path("results")]
    if alone:
        assert clear_remains(snakemake, folders)
    else:
        other = subprocess.Popen([sys.executable, "-c", ANNOUNCE, str(snakemake)], stdout=subprocess.PIPE)
        try:
            assert other.stdout is not None
            other.stdout.readline()
            assert not clear_remains(snakemake, folders)
        finally:
            other.kill()
            other.communicate()
    assert [path.exists() for path in ours] == [not alone] * len(ours)
    assert all(path.exists() for path in others)


# --- a whole run of the workflow --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, str]) -> Project:
    """A project in which nothing was made."""
    folder = tmp_path_factory.mktemp("project")
    draw_shapes(folder / "shapes", 3)
    params = small_params(tiny_models, Path("shapes"), STORE)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    return Project(folder, params)


@contextmanager
def running(project: Project) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a process group of its own, as a terminal starts it; killed when the block ends."""
    command = ["-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--directory", str(project.folder)]
    with (project.folder / "printed.txt").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, *command, "--cores", "2", TABLE1],
            cwd=project.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], project: Project) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, (project.folder / "printed.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def n_records(project: Project) -> int:
    return len(list(project.store.rglob(f"*{RECORD_SUFFIX}")))


def test_a_run_is_interrupted_killed_and_ends_as_if_nothing_had_been(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C, then kill -9 of the whole process group at several points; each time the same command again, and nothing
    by hand. Meanwhile a second run in the same folder is told that there is another."""
    with running(project) as process:
        wait_for(lambda: n_records(project) >= 1, process, project)
        second = project.snakemake(TABLE1)
        assert second.returncode == 1
        assert "Another run works in this folder" in second.stderr
        assert "Traceback" not in second.stderr
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        started = time.monotonic()
        process.wait(timeout=60)
        assert time.monotonic() - started < 5
        assert process.returncode != 0
    for more in (2, 9):
        with running(project) as process:
            before = n_records(project)
            wait_for(lambda before=before, more=more: n_records(project) >= before + more, process, project)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
            assert list((project.folder / ".snakemake/locks").glob("*.lock"))
    finished = {path: record for path, record in project.records().items() if "/sets/" not in path}
    last = project.run(TABLE1)
    assert "tables" in last.jobs
    after = project.records()
    assert finished == {path: after[path] for path in finished}
    assert not list(project.folder.rglob(".*.tmp"))

    shutil.copytree(project.folder / "shapes", tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    make_all(planned(project.params), Path("results"), ("table1",))
    made = artifacts(project.store)
    expected = artifacts(tmp_path / STORE)
    assert {path: expected[path] for path in made if path in expected} == made
    kinds = {path.split("/")[0] for path in made}
    assert kinds >= {"images", "embeddings", "scores", "manifests", "classifiers", "predictions", "metrics"}
    for name in ("table1.csv", "table1.md", "table1.json"):
        assert (project.folder / "results" / name).read_bytes() == (tmp_path / "results" / name).read_bytes()
