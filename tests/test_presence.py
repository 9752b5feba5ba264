"""Who is at work: in a working folder, and on a store. A second run is told, and nothing is removed under a run."""

import base64
import errno
import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import Waiting, waiting_for
from small_project import planned
from workflow_project import Project

from pipeline_lib.errors import UserError
from pipeline_lib.presence import announce, at_work, clear_remains

Params = dict[str, Any]

# --- in a working folder ----------------------------------------------------------------------------------------------

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


# --- on a store -------------------------------------------------------------------------------------------------------

WORK = """
import sys, time
from pathlib import Path
from pipeline_lib.presence import start_work
makes = None if sys.argv[2] == "alone" else sys.argv[2:]
start_work(Path(sys.argv[1]), "a run", makes)
print("at work", flush=True)
time.sleep(600)
"""


@contextmanager
def working(store: Path, *makes: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, at work on a store; killed when the block ends."""
    command = [sys.executable, "-c", WORK, str(store), *makes]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("theirs", "ours", "may"),
    [
        (["k1", "k2"], ["k3"], True),
        (["k1", "k2"], [], True),  # tables of what is there
        (["k1", "k2"], ["k2", "k3"], False),
        (["k1"], None, False),
        (["alone"], ["k3"], False),
        (["alone"], [], False),
        (["alone"], None, False),
    ],
)
def test_work_that_would_make_the_same_or_removes_is_refused(
    tmp_path: Path, theirs: list[str], ours: list[str] | None, may: bool
):
    """Until the other process has ended, by kill -9 too."""
    with working(tmp_path, *theirs) as process:
        if may:
            with at_work(tmp_path, "a second run", ours):
                pass
        else:
            told = rf"in use by a run in .* \(process {process.pid} on .* wait until"
            with pytest.raises(UserError, match=told), at_work(tmp_path, "a second run", ours):
                pass
    with at_work(tmp_path, "a second run", ours):
        pass
    with at_work(tmp_path, "a third run", None):
        assert len(list(tmp_path.glob(".locks/work/run.*"))) == 1  # the notices of those who have gone are removed


def test_of_two_that_come_at_once_one_works(tmp_path: Path):
    """Never both, and never neither."""
    command = [sys.executable, "-c", WORK, str(tmp_path), "k1"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    try:
        said = []
        for process in processes:
            assert process.stdout is not None
            said.append(process.stdout.readline())
        assert sorted(said) == [""] * 5 + ["at work\n"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_without_locks_nothing_is_known_and_nothing_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some file systems have none."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    with working(tmp_path, "k1"):
        monkeypatch.setattr(fcntl, "flock", no_locks)
        with at_work(tmp_path, "a run", ["k1"]):
            pass
    assert announce(tmp_path) is None
    assert clear_remains(tmp_path, []) is None


def test_a_second_run_is_told_and_nothing_is_removed_under_the_first(tmp_path: Path, params: Params):
    """Two folders, one store. The first run's job waits for a unit; when it has ended, the second finds all made."""
    pytest.importorskip("snakemake")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plan = planned(params)
    (prompts,) = plan.prompts("basic")
    with waiting_for(prompts, plan.store, Project(tmp_path / "a", params)) as first:
        assert isinstance(first, Waiting)
        second = Project(tmp_path / "b", params)
        refused = second.snakemake(first.target)
        assert refused.returncode == 1
        assert f"is in use by snakemake in {tmp_path / 'a'} (process {first.process.pid} " in refused.stderr
        assert "Traceback" not in refused.stderr
        for command in (["gc", "--delete"], ["verify", "--remove", "--store", str(plan.store.root)]):
            done = second.pipeline_lib(*command)
            assert done.returncode == 1, command
            assert "is in use by snakemake" in done.stderr
        assert second.pipeline_lib("gc").returncode == 0
        first.lock.release()
        assert first.process.wait(timeout=120) == 0, first.printed()
    done = second.snakemake(first.target)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stderr
    assert second.pipeline_lib("gc", "--delete").returncode == 0
