"""The graph of artifacts, whatever they are: units, the sets of units that jobs make, and what must be made before.

*Units* (prompts of one class, a shard of images, the embeddings of a shard) are shared between data sets, tables and
studies; a *set* names the units that one job makes and is the file that Snakemake sees. All else is one file per job.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel

from pipeline_lib.errors import UserError
from pipeline_lib.store import Artifact, Store

P = ParamSpec("P")
T = TypeVar("T")

# A stage's version goes up when a change to its code changes what it makes; nothing else remakes old artifacts.
VERSIONS = {
    "prompts": 3,
    "images": 2,
    "shots": 1,
    "real_images": 2,
    "embeddings": 1,
    "heads": 1,
    "scores": 1,
    "manifests": 2,
    "classifiers": 1,
    "few_shot": 1,
    "batch_norm": 3,
    "predictions": 1,
    "metrics": 1,
    "few_shot_metrics": 3,
    "tables": 2,
    "samples": 1,
}


def once(method: Callable[P, T]) -> Callable[P, T]:
    """Remember what a graph's method returned, by its arguments: at the paper's scale one image set has thousands of
    keys to hash."""

    @wraps(method)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
        graph, *rest = args
        key = (method.__name__, *map(_identity, rest), *map(_identity, kwargs.values()))
        memory: dict[Any, T] = graph.__dict__.setdefault("_memory", {})
        if key not in memory:
            memory[key] = method(*args, **kwargs)
        return memory[key]

    return remembered


def _identity(argument: Any) -> Any:
    if isinstance(argument, Artifact):
        return argument.path
    return argument.name if isinstance(argument, BaseModel) and hasattr(argument, "name") else argument


class Graph:
    """Artifacts by key. `jobs` holds all that have a rule, in an order in which they can be made."""

    def __init__(self, store: Path):
        self.store = Store(store)
        self.jobs: dict[str, Artifact] = {}

    def inputs(self, short_key: str) -> list[str]:
        """Paths, store folder included, of what must be there before the job whose path carries this key.

        Raises `UserError` for a key of another configuration.
        """
        if short_key not in self.jobs:
            raise UserError(f"the present configuration asks for no artifact with key {short_key}; name another target")
        job = self.jobs[short_key]
        return [str(self.store.root / name) for name in job.after or job.inputs]

    def stage(self, name: str) -> list[Artifact]:
        """All jobs of one stage."""
        return [job for job in self.jobs.values() if job.spec["stage"] == name]

    def paths(self, artifacts: Iterable[Artifact]) -> list[str]:
        """Paths, store folder included."""
        return [str(self.store.root / artifact.path) for artifact in artifacts]

    def reached(self) -> set[str]:
        """Every path, relative to the store, that the configuration reaches: jobs and the units in them."""
        jobs = self.jobs.values()
        return {job.path for job in jobs} | {member.path for job in jobs for member in job.members}

    def unit(
        self,
        stage: str,
        name: str,
        spec: dict[str, Any],
        *,
        suffix: str = ".parquet",
        location: dict[str, Any] | None = None,
        inputs: Iterable[str] = (),
        after: Iterable[str] = (),
        file_name: str | None = None,
        members: tuple[Artifact, ...] = (),
    ) -> Artifact:
        """An artifact below STORE/<stage>/<name>; see `Artifact` for the parts."""
        return Artifact(
            folder=f"{stage}/{name}",
            spec={"stage": stage, "version": VERSIONS[stage], **spec},
            suffix=suffix,
            inputs=tuple(inputs),
            after=tuple(after),
            location=location or {},
            file_name=file_name,
            members=members,
        )

    def job(self, stage: str, name: str, spec: dict[str, Any], **keywords: Any) -> Artifact:
        """An artifact that a job of its own makes."""
        job = self.unit(stage, name, spec, **keywords)
        return self.jobs.setdefault(job.short_key, job)

    def set(self, stage: str, name: str, units: Iterable[Artifact], after: Iterable[str] = ()) -> Artifact:
        """A set: one job makes the units, and a receipt that names them."""
        members = tuple(units)
        spec = {"set": stage, "members": paths_of(members)}
        return self.job(stage, f"sets/{name}", spec, suffix=".json", after=after, members=members)


def paths_of(artifacts: Iterable[Artifact]) -> list[str]:
    """Paths relative to the store."""
    return [artifact.path for artifact in artifacts]


def sets_with(units: Sequence[Artifact], sets: Sequence[Artifact]) -> list[Artifact]:
    """Those of `sets` that make one of `units`."""
    wanted = set(paths_of(units))
    return [one for one in sets if not wanted.isdisjoint(paths_of(one.members))]


def blocks(items: Sequence[Artifact], size: int) -> Iterator[Sequence[Artifact]]:
    """`items` in runs of `size`: what one job makes."""
    return (items[first : first + size] for first in range(0, len(items), size))
