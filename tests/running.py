"""Runs of the workflow in the background, as a terminal starts them, to be interrupted or killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock
from small_project import REPOSITORY
from workflow_project import Project

from pipeline_lib.sets import _lock_path
from pipeline_lib.store import Artifact, Store


@contextmanager
def running(project: Project, target: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a process group of its own; killed when the block ends. `printed` says what it prints."""
    content = yaml.safe_dump(project.params, allow_unicode=True)
    (project.folder / "params.yaml").write_text(content, encoding="utf-8")
    command = ["-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--directory", str(project.folder)]
    with (project.folder / "printed.txt").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, *command, "--cores", "2", *options, "--", target],
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
        process.wait(timeout=60)


def printed(project: Project) -> str:
    """What the project's latest run has printed so far."""
    return (project.folder / "printed.txt").read_text()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], project: Project) -> None:
    """Wait until something is so; fails where the run ends before."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, printed(project)
        assert time.monotonic() < deadline, printed(project)
        time.sleep(0.02)


@dataclass(frozen=True)
class Waiting:
    """A run whose one job waits, until the lock is released: for ever, if it is not."""

    process: subprocess.Popen[bytes]
    target: str
    lock: FileLock
    project: Project

    def printed(self) -> str:
        return printed(self.project)


@contextmanager
def waiting_for(artifact: Artifact, store: Store, project: Project) -> Iterator[Waiting]:
    """A run that makes a set of which somebody else is making a unit; it needs no model."""
    path = _lock_path(artifact.members[0], store)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = str(store.path(artifact))
    log = Path(project.folder, "logs", artifact.spec["stage"], f"{Path(artifact.folder).name}.{artifact.short_key}.log")
    with FileLock(path) as lock, running(project, target) as process:
        wait_for(lambda: log.exists() and "waiting for 1 units" in log.read_text(), process, project)
        yield Waiting(process, target, lock, project)
