"""A run of all stages to Table 1 and its pictures, without Snakemake and models, that is killed at a chosen moment.

`python interrupted_work.py FOLDER` reads commands from its standard input, one a line: a sub-folder to work in, the
number of the event at which to be killed (0: never), and the configuration's bootstrap resamples, on which metrics and
tables alone depend. Each is carried out in a process of its own, forked after all imports; its answer is a line with
the number of events that the process saw, or -1 if it was killed. An event is anything that Python itself tells of (an
audit event) about a file in the folder's store or results: opening it to write, locking, renaming, removing.
"""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from fake_generator import FakeGenerator
from numpy.typing import NDArray
from PIL import Image
from small_project import changed, fake_models, planned, small_params

from pipeline_lib import stages
from pipeline_lib.batches import Batches
from pipeline_lib.classifiers.head import Head, save_head
from pipeline_lib.datasets.registry import builtin_datasets
from pipeline_lib.embeddings import make_embeddings
from pipeline_lib.images import make_shards
from pipeline_lib.plan import Plan
from pipeline_lib.sets import make_set
from pipeline_lib.store import Artifact

PER_CLASS, PER_SHARD, BATCH = 9, 3, 3
_IMPORTED_BY_STAGES = (
    "classifiers.runs",
    "classifiers.tuning",
    "figures",
    "metrics.cells",
    "prompts",
    "scores",
    "tables",
)
_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.chmod", "os.mkdir", "fcntl.flock", "tempfile.mkstemp"})


class LoggedGenerator(FakeGenerator):
    """Notes the seed of every image that it draws in a file."""

    def __init__(self, log: Path):
        super().__init__()
        self._log_file = log

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], references: Any = None) -> NDArray[np.float32]:
        images = super().generate(prompts, seeds, references)
        with self._log_file.open("a") as log:
            log.writelines(f"{seed}\n" for seed in seeds)
        return images


class MeanColour:
    """An encoder whose features are the image's mean colours, of length 1."""

    device, dtype, batch_size = "fake", "float32", 4

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        return np.asarray(image, np.float32).mean(axis=(0, 1)) + 1

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        colours = np.stack(prepared)
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)


def params_of(folder: Path, resamples: int = 100) -> dict[str, Any]:
    """The configuration of the project in a folder; `folder / "shapes"` holds its real images."""
    params = small_params(fake_models(folder / "models"), folder / "shapes", folder / "store")
    sizes = {"images__per_class": PER_CLASS, "images__per_shard": PER_SHARD}
    return changed(params, **sizes, prompts__strategy="basic", evaluation__bootstrap_resamples=resamples)


def plan_of(folder: Path, resamples: int = 100) -> Plan:
    """Its plan."""
    return planned(params_of(folder, resamples))


def work(folder: Path, resamples: int = 100) -> None:
    """Make what is missing of Table 1, its pictures and all before them, as Snakemake asks the stages to."""
    plan = plan_of(folder, resamples)
    store, batches = plan.store, Batches(BATCH, "images")
    generator = LoggedGenerator(folder / "drawn.txt")

    def images(job: Artifact) -> None:
        make_set(job, store, lambda units: make_shards(units, store, lambda: generator, batches))

    def embeddings(job: Artifact) -> None:
        make_set(job, store, lambda units: make_embeddings(units, store, MeanColour(), 1))

    def heads(job: Artifact) -> None:
        def make(units: Sequence[Artifact]) -> None:
            for unit in units:
                with store.making(unit) as path:
                    # Right, but so unsure that tuning on noise changes what it says.
                    weight = np.eye(3, dtype=np.float32) / 1000
                    save_head(path, Head(weight, np.zeros(3, np.float32), unit.spec["class_names"]))

        make_set(job, store, make)

    fakes = {"images": images, "embeddings": embeddings, "heads": heads}
    wanted = needed(plan)
    for job in plan.jobs.values():
        stage = job.spec["stage"]
        if job.path in wanted and stage not in stages.RESULTS and not store.path(job).exists():
            fakes[stage](job) if stage in fakes else stages.STAGES[stage](job, store)
    for out, job in results(plan, folder).items():
        if not (out.exists() and store.is_current(out, job)):
            # Snakemake would remove an older one first; whoever runs a stage by hand does not.
            stages.RESULTS[job.spec["stage"]](job, store, out)


def results(plan: Plan, folder: Path) -> dict[Path, Artifact]:
    """Where the pictures and the table go, and what they are; in the order in which they are made."""
    sheets = {
        folder / "results/samples" / f"{dataset}.{kind}.png": plan.samples(dataset, kind)
        for dataset, kind in plan.sample_sheets("table1")
    }
    return sheets | {folder / "results/table1.csv": plan.tables["table1"]}


def needed(plan: Plan) -> set[str]:
    """Paths of the jobs that Table 1 and its pictures rest on."""
    by_path = {job.path: job for job in plan.jobs.values()}
    of_unit = {unit.path: job.path for job in plan.jobs.values() for unit in job.members}
    found: set[str] = set()
    todo = [path for job in results(plan, Path()).values() for path in (*job.inputs, *job.after)]
    while todo:
        path = of_unit.get(name := todo.pop(), name)
        if path not in found:
            found.add(path)
            job = by_path[path]
            todo += [*job.inputs, *job.after, *(name for unit in job.members for name in (*unit.inputs, *unit.after))]
    return found


def die_at(event: int, folder: Path) -> list[int]:
    """Kill this process (-9) at that event; returns a list whose length is the number of events so far."""
    seen: list[int] = []
    places = (str(folder / "store"), str(folder / "results"))

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in _EVENTS or (name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if name == "fcntl.flock" or any(place in str(argument) for argument in arguments for place in places):
            seen.append(1)
            if len(seen) == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return seen


def main(folder: Path) -> None:
    for module in ("pandas", *(f"pipeline_lib.{name}" for name in _IMPORTED_BY_STAGES)):  # once, not in every process
        import_module(module)
    builtin_datasets()
    for line in sys.stdin:
        name, event, resamples = line.split()
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            seen = die_at(int(event), folder / name)
            work(folder / name, int(resamples))
            os.write(theirs, str(len(seen)).encode())
            os._exit(0)
        os.close(theirs)
        _, status = os.waitpid(child, 0)
        answer = os.read(ours, 20).decode()
        os.close(ours)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(-1 if killed else answer or "failed", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
