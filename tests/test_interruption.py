"""Killed or interrupted anywhere, the same command ends with the same bytes, and little is made twice."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest
from interrupted_work import PER_CLASS, PER_SHARD, plan_of
from running import printed, running, wait_for, waiting_for
from small_project import SHAPES, changed, draw_shapes, make_all, planned, small_params
from workflow_project import STORE, Project

from pipeline_lib.files import remove_abandoned
from pipeline_lib.interrupts import end_as_python_does, end_at_once, end_jobs_too
from pipeline_lib.lineage import sources
from pipeline_lib.store import RECORD_SUFFIX, Store

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


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

# What a job may be doing: calling into a library that does not come back; importing something that swallows everything;
# working in threads that Python waits for when it ends.
BUSY = {
    "in a library": "import ctypes; print('busy', flush=True); ctypes.PyDLL(None).sleep(600)",
    "swallowing": """
import time
print("busy", flush=True)
while True:
    try:
        time.sleep(600)
    except BaseException:
        pass
""",
    "in threads": """
import time
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(1) as pool:
    pool.submit(time.sleep, 600)
    print("busy", flush=True)
""",
}


@pytest.mark.parametrize("busy", BUSY)
def test_a_job_ends_whatever_it_is_doing(busy: str):
    """At once, without a word: none of these would end on a KeyboardInterrupt."""
    command = f"from pipeline_lib.interrupts import end_at_once; end_at_once()\n{BUSY[busy]}"
    with subprocess.Popen([sys.executable, "-c", command], stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=30) == -signal.SIGINT
        finally:
            process.kill()
        assert process.stderr.read() == ""


def test_what_was_started_not_to_be_interrupted_is_not(monkeypatch: pytest.MonkeyPatch):
    """`nohup`, `&` in a script: the signal is ignored, and stays so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_at_once()
        end_jobs_too()
        end_as_python_does()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("whom", ["all", "run", "job"])
def test_ctrl_c_ends_a_run_and_its_jobs(tmp_path: Path, params: dict[str, Any], whom: str):
    """A terminal interrupts all processes; `kill -INT`, and a signal that comes while a job is being started, the run
    alone. Here its job would wait for ever. A stage by itself ends too, as a program that was interrupted."""
    plan = planned(params)
    (prompts,) = plan.prompts("basic")
    with waiting_for(prompts, plan.store, Project(tmp_path, params)) as run:
        (job,) = (
            process
            for process in psutil.Process(run.process.pid).children(recursive=True)
            if "prompts" in process.cmdline()
        )
        half = plan.store.root / "prompts" / ".half.parquet.x.tmp"
        half.touch()
        if whom == "job":
            job.send_signal(signal.SIGINT)
        elif whom == "run":
            run.process.send_signal(signal.SIGINT)
        else:
            os.killpg(run.process.pid, signal.SIGINT)
        assert run.process.wait(timeout=60) == 1
        assert not job.is_running()
        assert "Traceback" not in run.printed()
        assert "the same command goes on from there" in run.printed()
        assert ("died with <Signals.SIGINT" in run.printed()) or whom != "job"
        assert not half.exists()


def test_ctrl_c_cancels_what_is_in_a_queue(tmp_path: Path, params: dict[str, Any]):
    """Snakemake does; it must be let."""
    cancel = tmp_path / "cancel.sh"
    cancel.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/cancelled\n')
    cancel.chmod(0o755)
    plan = planned(params)
    options = ["--executor", "cluster-generic", "--jobs", "1", "--cluster-generic-cancel-cmd", str(cancel)]
    options += ["--cluster-generic-submit-cmd", "echo job4711 #"]  # a queue in which nothing gets on
    project = Project(tmp_path, params)
    with running(project, str(plan.store.path(plan.prompts("basic")[0])), *options) as process:
        wait_for(lambda: "external jobid 'job4711'" in printed(project), process, project)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 1
    assert (tmp_path / "cancelled").read_text() == "job4711\n"


# --- a whole run of the workflow --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, str]) -> Project:
    """A project in which nothing was made."""
    folder = tmp_path_factory.mktemp("project")
    draw_shapes(folder / "shapes", 3)
    return Project(folder, small_params(tiny_models, Path("shapes"), STORE))


def n_records(project: Project) -> int:
    return len(list(project.store.rglob(f"*{RECORD_SUFFIX}")))


def test_a_run_is_interrupted_killed_and_ends_as_if_nothing_had_been(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C, then kill -9 of the whole process group at several points; each time the same command again, and nothing
    by hand. Meanwhile a second run in the same folder is told that there is another."""
    with running(project, TABLE1) as process:
        wait_for(lambda: n_records(project) >= 1, process, project)
        second = project.snakemake(TABLE1)
        assert second.returncode == 1
        assert "Another run works in this folder" in second.stderr
        assert "Traceback" not in second.stderr
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 1
    plan = planned(changed(project.params, own_datasets__shapes__folder=str(project.folder / "shapes")))
    n_artifacts = len(sources(plan.tables["table1"], plan))
    locks = project.folder / ".snakemake/locks"
    left_locked = []
    for share in (0.3, 0.6, 0.85):  # of all that is to be made, whatever an earlier run got done before it was killed
        with running(project, TABLE1) as process:
            wait_for(lambda: any(locks.glob("*.lock")), process, project)
            wait_for(lambda share=share: n_records(project) >= share * n_artifacts, process, project)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
            left_locked.append(any(locks.glob("*.lock")))
    assert any(left_locked)
    # Whoever was killed in between has left a record alone, and makes the artifact again.
    is_there = Store(project.store).is_intact
    finished = {path: record for path, record in project.records().items() if "/sets/" not in path and is_there(path)}
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
