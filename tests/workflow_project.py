"""A small project in a folder of its own, run as a user runs it: `snakemake` and `python -m pipeline_lib`."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from small_project import REPOSITORY

from pipeline_lib.records import Record
from pipeline_lib.store import RECORD_SUFFIX, read_record

STORE = "my store"  # a name that the shell would split


def unprivileged() -> tuple[str, ...]:
    """What starts a command that may write only where permissions let it: also for root, who else may everywhere."""
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


@dataclass
class Project:
    """A working folder with a params.yaml; `prefix` starts what is run (`unprivileged`)."""

    folder: Path
    params: dict[str, Any]
    prefix: tuple[str, ...] = ()
    first_results: dict[str, bytes] = field(default_factory=dict)
    program: tuple[str, ...] = ("-m", "snakemake")

    @property
    def store(self) -> Path:
        return self.folder / STORE

    def snakemake(self, *arguments: str, params: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Run Snakemake in the folder, from elsewhere, with `params` as params.yaml."""
        content = yaml.safe_dump(params or self.params, allow_unicode=True)
        (self.folder / "params.yaml").write_text(content, encoding="utf-8")
        command = [*self.program, "-s", str(REPOSITORY / "Snakefile"), "--directory", str(self.folder)]
        if "--profile" not in arguments:
            command += ["--cores", "2"]
        return self._python(*command, *arguments)

    def run(self, *targets: str, params: dict[str, Any] | None = None) -> "Run":
        """A run that must end well; what it did, by stage."""
        before = self.timings()
        done = self.snakemake(*targets, params=params)
        assert done.returncode == 0, done.stderr[-5000:]
        return Run(Counter(line["stage"] for line in self.timings()[len(before) :]), done.stderr)

    def pipeline_lib(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._python("-m", "pipeline_lib", *arguments)

    def timings(self) -> list[dict[str, Any]]:
        path = self.store / "timings.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def records(self) -> dict[str, Record]:
        """All records of the store by the artifact's path in it."""
        found = {}
        for path in self.store.rglob(f"*{RECORD_SUFFIX}"):
            record = read_record(path.with_name(path.name.removesuffix(RECORD_SUFFIX)))
            assert record is not None
            found[record.path] = record
        return found

    def results(self) -> dict[str, bytes]:
        folder = self.folder / "results"
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and ".records" not in path.parts
        }

    def files(self) -> dict[str, int]:
        """Modification time of everything that a run may write, Snakemake's and the logs' own bookkeeping aside."""
        return {
            path.relative_to(self.folder).as_posix(): path.stat().st_mtime_ns
            for path in self.folder.rglob("*")
            if path.is_file() and not {".snakemake", "logs"}.intersection(path.parts) and path.name != "params.yaml"
        }

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [*self.prefix, sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )


@dataclass(frozen=True)
class Run:
    """Jobs by stage, and what was printed."""

    jobs: Counter[str]
    printed: str
