"""Whether a run can be carried out here, asked before anything is made: models, raw data, room on the disk, permission
to write."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pipeline_lib.costs import require_disk
from pipeline_lib.datasets.fashion_mnist import FashionMnistError, require_whole
from pipeline_lib.datasets.layouts import require_parts
from pipeline_lib.errors import UserError
from pipeline_lib.files import storage_errors
from pipeline_lib.paths import nearest_existing
from pipeline_lib.plan import Plan
from pipeline_lib.prompt_lengths import cut_prompts
from pipeline_lib.store import Artifact

_PROBE = 64 * 1024  # bytes: what logs, locks and notes of a run take up at least


def not_here_yet(plan: Plan) -> list[str]:
    """What a plan needs and this machine lacks: a line for each model, one for the raw data of all data sets."""
    jobs = [*plan.stage("real_images"), *plan.stage("shots")]
    absent = dict.fromkeys(name for name, _ in _absent_raw_data(plan, jobs))
    lines = list(plan.missing_models)
    if absent:
        lines.append(f"raw data of {', '.join(absent)} (python -m pipeline_lib datasets says where to get it)")
    return lines


def require_ready(plan: Plan, jobs: Collection[Artifact]) -> None:
    """Raises `UserError` naming all that `jobs` of the plan need and this machine lacks, and prompts that are too
    long."""
    faults = [
        *plan.missing_models,
        *(f"{name}: {fault}" for name, fault in _absent_raw_data(plan, jobs)),
        *_damaged_fashion_mnist(plan, jobs),
        *cut_prompts(plan, jobs),
    ]
    if faults:
        raise UserError("nothing was run:\n" + "\n".join(faults))
    require_disk(plan, jobs, plan.config.costs)


def require_writable(files: Iterable[Path]) -> None:
    """Raises `StorageError` for a folder in which one of the files is to be made and cannot: no permission, no room."""
    folders = sorted({file.parent for file in files})
    for place in dict.fromkeys(map(nearest_existing, folders)):
        with storage_errors(place):
            try:
                with tempfile.TemporaryFile(dir=place) as probe:
                    probe.write(bytes(_PROBE))
            except OSError as error:
                raise type(error)(error.errno, error.strerror, str(place)) from None


def read_only(folders: Iterable[Path]) -> list[str]:
    """A line for each folder in which this user cannot make anything."""
    return [
        f"{folder} is read-only for this user: what is in it is used, what is missing in it cannot be made"
        for folder in folders
        if not os.access(nearest_existing(folder), os.W_OK)
    ]


def require_program(command: str, key: str) -> None:
    """Raises `UserError` where the program that the command of a profile's `key` begins with is not there."""
    program = command.split(maxsplit=1)[0]
    if shutil.which(program) is None:
        raise UserError(
            f"{key}: there is no {program!r} on this machine; start the run where jobs are submitted, or write your "
            f"scheduler's command in the config.yaml of the profile"
        )


def _absent_raw_data(plan: Plan, jobs: Collection[Artifact]) -> list[tuple[str, str]]:
    """Name and fault of each split whose official download is needed and not there."""
    absent: dict[tuple[str, str], None] = {}
    for job in jobs:
        needed = [unit for unit in job.members if unit.spec.get("loader") and not plan.store.is_complete(unit)]
        if not needed:  # the shards of a split outlive its download
            continue
        spec, location = needed[0].spec, needed[0].location
        try:
            require_parts(spec["loader"], spec["split"], Path(location["root"]), location["download"])
        except UserError as error:
            absent[spec["dataset"], str(error)] = None
    return list(absent)


def _damaged_fashion_mnist(plan: Plan, jobs: Collection[Artifact]) -> Iterator[str]:
    """The fault of Fashion-MNIST's files, where they are needed and a job could not fetch them anew."""
    units = (unit for job in jobs for unit in job.members if "fashion_mnist" in unit.spec)
    if not all(map(plan.store.is_complete, units)):
        try:
            require_whole(Path(plan.config.fashion_mnist) if plan.config.fashion_mnist else None)
        except FashionMnistError as error:
            yield f"fashion_mnist: {error}"
