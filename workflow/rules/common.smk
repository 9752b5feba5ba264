# The plan: every artifact's path and inputs, from the validated configuration. What a stage reads is its spec file,
# STORE/specs/KEY.json, written when a run starts. Inputs are `ancient`: a path names its content, so an artifact is
# made when it is missing and never because of a time stamp.

import re
import shlex
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from pipeline_lib.interrupts import end_as_python_does, end_at_once, end_jobs_too

if workflow.is_main_process:
    end_at_once()  # while it imports and plans

from pipeline_lib import devices, timings
from pipeline_lib.config import load_config
from pipeline_lib.errors import UserError
from pipeline_lib.images import ENCODING_THREADS
from pipeline_lib.model_cards import require_intact
from pipeline_lib.plan import Plan
from pipeline_lib.presence import clear_remains, start_work
from pipeline_lib.readiness import not_here_yet, read_only, require_ready, require_writable
from pipeline_lib.store import remove_abandoned
from pipeline_lib.yaml_files import read_yaml

try:
    for file in workflow.configfiles:  # Snakemake has read it; this refuses what YAML lets slip, such as a key twice
        read_yaml(Path(file))
    PLAN = Plan(load_config(config, source=" + ".join(map(str, workflow.configfiles))))
except UserError as error:
    raise WorkflowError(str(error)) from None

for message in not_here_yet(PLAN):  # a dry run goes on
    print(f"Not here yet: {message}", file=sys.stderr)

STORE = PLAN.config.store
RESULTS = PLAN.config.results
RUN = f"{shlex.quote(sys.executable)} -m pipeline_lib"  # the Python that runs Snakemake
# Of a rule that loads a model. Where the configuration leaves the choice to the job (auto), Snakemake starts as many as
# there are cores for, and they take turns on the GPUs by themselves (devices.claim).
GPU = 1 if PLAN.config.device == "cuda" else 0
STARTED = time.time()
for message in read_only([Path(STORE), Path(RESULTS)]):  # Snakemake itself says of their files that they are protected
    print(message, file=sys.stderr)
SAMPLES = sorted({pair for table in PLAN.tables for pair in PLAN.sample_sheets(table)})
SAMPLE_JOBS = {f"{dataset}.{strategy}": PLAN.samples(dataset, strategy) for dataset, strategy in SAMPLES}


if workflow.is_main_process:
    try:
        require_writable([Path(".snakemake/locks")])
        alone = clear_remains(Path(".snakemake"), [Path(STORE), Path(RESULTS)])
    except UserError as error:
        raise WorkflowError(str(error)) from None
    if alone is False:
        print(
            "Another run works in this folder. Where it makes the same files, this one ends; let it end first.",
            file=sys.stderr,
        )


wildcard_constraints:
    key="[0-9a-f]{16}",
    name=r"[a-z0-9_]+(\.[a-z0-9_]+)*",
    sheet="|".join(map(re.escape, SAMPLE_JOBS)),
    table="table[12567]|findings",
    figure="figure1",


def inputs(wildcards):
    """Paths of the artifacts that the job with this key reads."""
    return ancient(PLAN.inputs(wildcards.key))


def table_job(name):
    """The artifact of a table or figure. One that this configuration has no data for is an error."""
    if name not in PLAN.tables:
        raise WorkflowError(
            f"few_shot.datasets: {PLAN.config.few_shot.datasets} names none of datasets ({PLAN.config.datasets}), so "
            f"there is no {name}; name those that have real training images"
        )
    return PLAN.tables[name]


def sheets(name):
    """The contact sheets of the images that a table or figure rests on."""
    return [f"{RESULTS}/samples/{dataset}.{kind}.png" for dataset, kind in PLAN.sample_sheets(name)]


def result_inputs(artifact, result):
    """Paths that a table or picture is made from.

    A result's name does not say which configuration made it. Where one is there that is not the planned one, a file that
    is newer than it joins the inputs, so that it is made again.
    """
    paths = [ancient(path) for path in PLAN.inputs(artifact.short_key)]
    if Path(result).exists() and not PLAN.store.is_current(Path(result), artifact):
        paths.append(PLAN.store.mark_outdated(artifact))
    return paths


def require_gpu():
    """Raises `UserError` where a job of this run asks for a GPU and this machine, which is to run it, has none."""
    if workflow.local_exec and any(job.resources.get("gpu") for job in workflow.dag.needrun_jobs()):
        devices.require("cuda")


def artifacts_to_make():
    """The artifacts whose jobs this run starts; what was not asked for needs neither data nor disk."""
    keys = {job.wildcards_dict.get("key") for job in workflow.dag.needrun_jobs()}
    return [artifact for key, artifact in PLAN.jobs.items() if key in keys]


def files_to_make():
    """The files that the jobs of this run write: what was asked for, and logs."""
    return [Path(file) for job in workflow.dag.needrun_jobs() for file in (*job.output, *job.log)]


def clear_half_files():
    """Removes what killed jobs left half-written, which is nobody's."""
    for folder in (STORE, RESULTS):
        remove_abandoned(Path(folder))


onstart:
    try:
        require_intact(PLAN.config.models)
        require_ready(PLAN, artifacts_to_make())
        require_gpu()
        require_writable(files_to_make())
        if workflow.is_main_process:
            start_work(Path(STORE), "snakemake", [artifact.key for artifact in artifacts_to_make()])
        PLAN.store.write_specs(PLAN.jobs.values())
    except UserError as error:
        raise WorkflowError(str(error)) from None
    clear_half_files()
    if workflow.is_main_process and workflow.local_exec:
        end_jobs_too()
    elif workflow.is_main_process:  # Snakemake then cancels what is in the queue
        end_as_python_does()


def outdated_results():
    """Results that are there but not made by this configuration, because nobody asked for them."""
    planned = {f"{RESULTS}/{name}.csv": table for name, table in PLAN.tables.items()}
    planned |= {f"{RESULTS}/samples/{sheet}.png": job for sheet, job in SAMPLE_JOBS.items()}
    return [path for path, job in planned.items() if Path(path).exists() and not PLAN.store.is_current(Path(path), job)]


onerror:
    clear_half_files()
    print("What was finished stays: the same command goes on from there.", file=sys.stderr)


onsuccess:
    print(timings.summary(PLAN.store.root / "timings.jsonl", since=STARTED), file=sys.stderr)
    print(
        f"Tables:   {RESULTS}/*.csv, and *.md to read\n"
        f"Pictures: {RESULTS}/*.png, {RESULTS}/samples/*.png\n"
        f"Images:   {STORE}/images/*/*/*.parquet (python -m pipeline_lib show PATH says how each was made)",
        file=sys.stderr,
    )
    if outdated_results():
        print("Of another configuration, ask for them again:", *outdated_results(), file=sys.stderr)
