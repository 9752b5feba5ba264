"""What a result rests on, from the plan alone: in a fresh clone the store is not there, so no record can tell."""

from collections.abc import Collection
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.plan import Plan
from pipeline_lib.store import Artifact, read_record, record_path


def planned_result(path: Path, plan: Plan) -> Artifact:
    """The artifact of a table, a figure (or a file that comes with it) or a contact sheet.

    Raises `UserError` where the configuration has no such result, or the one that is there is another configuration's.
    """
    results = plan.results()
    result = next((name for name in (path, path.with_suffix(".csv")) if name.as_posix() in results), None)
    if result is None:
        raise UserError(f"{path} is no result of this configuration; it has {', '.join(results)}")
    artifact = results[result.as_posix()]
    record = read_record(result)
    if record is not None and record.key != artifact.key:
        raise UserError(
            f"{path} was made by another configuration than this one, which would make it from other files; name its "
            f"study with --overlay, or check out the params.yaml that it was committed with"
        )
    return artifact


def sources(result: Artifact, plan: Plan) -> set[str]:
    """Paths (relative to the store) of all that must be there for `result` to need no job: units, and the sets that
    made them."""
    artifacts = {artifact.path: artifact for job in plan.jobs.values() for artifact in (job, *job.members)}
    found: set[str] = set()
    todo = [*result.inputs, *result.after]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            artifact = artifacts[path]
            todo += [*artifact.inputs, *artifact.after, *(unit.path for unit in artifact.members)]
    return found


def of_stages(paths: Collection[str], stages: Collection[str]) -> set[str]:
    """Those of `paths` that these stages make; all where none is named. Raises `UserError` where one makes none."""
    by_stage: dict[str, set[str]] = {}
    for path in paths:
        by_stage.setdefault(path.split("/")[0], set()).add(path)
    if unknown := [stage for stage in stages if stage not in by_stage]:
        raise UserError(
            f"--stage: {unknown[0]!r} makes nothing that this rests on; give one of {', '.join(sorted(by_stage))}"
        )
    return set().union(*(by_stage[stage] for stage in stages or by_stage))


def fewest_paths(wanted: Collection[str], planned: Collection[str]) -> list[str]:
    """Files and folders that hold `wanted` with their records and nothing else of `planned`; sorted.

    A folder stands for all in it, because DVC reads its own files again for every path that it is given.
    """
    also_holds_others = {folder for path in set(planned).difference(wanted) for folder in Path(path).parents}
    found: set[str] = set()
    for path in map(Path, wanted):
        folders = [folder for folder in path.parents[:-1] if folder not in also_holds_others]
        found |= {str(folders[-1])} if folders else {str(path), str(record_path(path))}
    return sorted(found)
