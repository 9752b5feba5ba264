"""A small project under git and DVC, with the repository's own dvc.yaml, Makefile and workflow, and clones of it.

Nothing is computed: what its plan asks for are random bytes, with the records that the stages would write.
"""

import os
import random
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from small_project import REPOSITORY, SHAPES, changed, draw_shapes, fake_models, own_dataset, planned, small_params

from pipeline_lib.records import Member, SetReceipt
from pipeline_lib.store import Artifact, Store, read_record

LARGE_CLASS, LARGE = (
    "red/square",
    2_000_000,
)  # its shards of images are so large (bytes) that a transfer stops inside one
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
_LINKED = ("Snakefile", "pipeline_lib", "profiles", "workflow")
_COPIED = ("Makefile", "dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")


@dataclass(frozen=True)
class Clone:
    """A working folder: a git repository with DVC."""

    folder: Path

    @property
    def remote(self) -> Path:
        """The folder that .dvc/config names as the default remote."""
        return self.folder.parent / "synthetic-images-dvc"

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the folder, in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def try_(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Carry out a command; what it printed is in `stdout`."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )

    def do(self, *command: str) -> str:
        """Carry out a command that must end well; returns what it printed."""
        done = self.try_(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-5000:]}"
        return done.stdout

    def make(self, target: str) -> subprocess.CompletedProcess[str]:
        """`make TARGET`, in the Python environment that is there."""
        return self.try_("make", "--old-file=install", target)

    def commit(self, message: str) -> None:
        self.do("git", "add", "--all")
        self.do("git", "commit", "--quiet", "--message", message)

    def clone(self, name: str) -> "Clone":
        """A git clone beside this folder."""
        self.do("git", "clone", "--quiet", str(self.folder), f"../{name}")
        return Clone(self.folder.parent / name)

    def tracked(self) -> dict[str, bytes]:
        """What DVC keeps versions of, and the results; not what a killed process has left half-written."""
        folders = [
            name for stage in self._stages() for out in stage["outs"] for name in out if name.startswith("store")
        ]
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for folder in [*folders, "results"]
            for path in (self.folder / folder).rglob("*")
            if path.is_file() and path.suffix != ".tmp"
        }

    def _stages(self) -> list[dict[str, Any]]:
        return list(yaml.safe_load((self.folder / "dvc.yaml").read_text())["stages"].values())

    def _environment(self) -> dict[str, str]:
        own = self.folder.parent / "dvc"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_"))}
        return inherited | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "GIT_CONFIG_GLOBAL": str(own / "gitconfig"),
            "GIT_CONFIG_SYSTEM": os.devnull,
            "DVC_GLOBAL_CONFIG_DIR": str(own / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(own / "system"),
            "DVC_SITE_CACHE_DIR": str(own / "site"),
            # For the test's own S3 server; no other settings or credentials are looked for.
            **CREDENTIALS,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(own / "aws"),
            "AWS_SHARED_CREDENTIALS_FILE": str(own / "aws"),
            "AWS_MAX_ATTEMPTS": "1",
            "NO_PROXY": "127.0.0.1",
        }


def make_project(folder: Path) -> Clone:
    """The finished project in `folder`, which must not be there yet: committed, not pushed."""
    project = Clone(folder)
    for name in _COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    for name in _LINKED:
        (folder / name).symlink_to(REPOSITORY / name)
    own = folder.parent / "dvc"
    own.mkdir(exist_ok=True)
    (own / "aws").touch()
    (own / "gitconfig").write_text("[user]\nname = A\nemail = a@example.org\n[init]\ndefaultBranch = main\n")
    finish(folder, all_tables(folder))
    project.do("git", "init", "--quiet")
    project.do("dvc", "commit", "--force", "--quiet")
    project.commit("all tables")
    return project


def all_tables(folder: Path) -> dict[str, Any]:
    """params.yaml of every table and figure, of as few artifacts as that takes; models and images in `folder`."""
    with chdir(folder):
        draw_shapes(Path("test"), 2)
        draw_shapes(Path("train"), 4, seed=1)
        params = small_params(fake_models(Path("models")), Path("test"))
    shapes = {name: SHAPES[name] for name in (LARGE_CLASS, "grüne Fläche")}
    return changed(
        params,
        own_datasets={"shapes": {**own_dataset(Path("test"), shapes), "train_folder": "train"}},
        images__per_shard=4,
        few_shot__datasets=["shapes"],
        few_shot__ablation_dataset="shapes",
        few_shot__shots=[1],
        few_shot__real_guidance__starts=[0.5],
        few_shot__coop__epochs=[2],
    )


def finish(folder: Path, params: dict[str, Any]) -> None:
    """Write `params` as params.yaml in `folder`, and "make" what they ask for and is not there."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    with chdir(folder):
        plan = planned(params)
        results = {artifact.path: Path(name) for name, artifact in plan.results().items()}
        for job in plan.jobs.values():
            for artifact in (*job.members, job):
                if artifact.path in results:
                    _make_result(artifact, plan.store, results[artifact.path])
                elif not plan.store.is_complete(artifact):
                    with plan.store.making(artifact) as path:
                        path.write_bytes(_receipt(artifact, plan.store) if artifact.members else _content(artifact))


def _make_result(artifact: Artifact, store: Store, path: Path) -> None:
    for suffix in (
        (".md", ".json", *((".png", ".svg") if path.stem == "figure1" else ())) if path.suffix == ".csv" else ()
    ):
        path.with_suffix(suffix).parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(suffix).write_bytes(b'{"top1": 1}' if suffix == ".json" else _content(artifact))
    with store.making(artifact, path=path) as temporary:
        temporary.write_bytes(_content(artifact))


def _receipt(artifact: Artifact, store: Store) -> bytes:
    """What a set's file says: the digests of its units."""
    records = [store.record(unit) for unit in artifact.members]
    members = [Member(path=record.path, sha256=record.sha256, n_rows=None) for record in records if record is not None]
    return SetReceipt(stage=str(artifact.spec["set"]), members=members).model_dump_json().encode()


def _content(artifact: Artifact) -> bytes:
    """Bytes of its own for each artifact; one class's shards are large."""
    large = artifact.spec["stage"] == "images" and artifact.spec.get("class_name") == LARGE_CLASS
    return random.Random(artifact.key).randbytes(LARGE if large else 300)


def made_from(folder: Path, result: str) -> set[str]:
    """What the records say that a result was made from, at any remove: paths relative to the store."""
    with chdir(folder):
        todo, found = [result], set[str]()
        while todo:
            record = read_record(Path(path := todo.pop())) or read_record(Path("store", path))
            assert record is not None, path
            parents = {entry.path for entry in record.inputs}.union(record.spec.get("members", ()))
            todo += parents - found
            found |= parents
    return found
