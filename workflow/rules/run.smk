# The run: what is asked before its first job starts, who else is at work, what is said at its end.

import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pipeline_lib import devices, slurm, timings
from pipeline_lib.errors import UserError
from pipeline_lib.files import remove_abandoned
from pipeline_lib.handover import hand_over
from pipeline_lib.interrupts import end_as_python_does, end_jobs_too
from pipeline_lib.model_cards import require_intact
from pipeline_lib.presence import clear_remains, clear_unreadable, start_work
from pipeline_lib.readiness import not_here_yet, read_only, require_program, require_ready, require_writable
from pipeline_lib.store import read_record

STARTED = time.time()

if workflow.is_main_process:
    for message in not_here_yet(PLAN):  # a dry run goes on
        print(f"Not here yet: {message}", file=sys.stderr)
    for message in read_only([Path(STORE), Path(RESULTS)]):  # Snakemake itself calls their files protected
        print(message, file=sys.stderr)
    try:
        require_writable([Path(".snakemake/locks")])
        alone = clear_remains(Path(".snakemake"), [Path(STORE), Path(RESULTS)])
        if alone:
            clear_unreadable(Path(".snakemake"))
    except UserError as error:
        raise WorkflowError(str(error)) from None
    if alone is False:
        print(
            "Another run works in this folder. Where it makes the same files, this one ends; let it end first.",
            file=sys.stderr,
        )


def require_gpu():
    """Raises `UserError` where a job of this run asks for a GPU and this machine, which is to run it, has none."""
    if workflow.local_exec and any(job.resources.get("gpu") for job in workflow.dag.needrun_jobs()):
        devices.require("cuda")


def require_queue():
    """Raises `UserError` where the scheduler would not take the jobs, or Slurm not tell how they end."""
    if workflow.executor_plugin.name == "slurm":
        settings = workflow.executor_settings
        slurm.require_answers(settings.status_command, settings.init_seconds_before_status_checks)
        asked = [job.resources for job in workflow.dag.needrun_jobs() if job.resources.get("slurm_partition")]
        # Partitions of another cluster of a federation are not known here.
        here = [needs for needs in asked if not needs.get("cluster") and not needs.get("clusters")]
        slurm.require_partitions(str(needs["slurm_partition"]) for needs in here)
    elif workflow.executor_plugin.name == "cluster-generic":
        require_program(workflow.executor_settings.submit_cmd, "cluster-generic-submit-cmd")


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
        require_queue()
        require_writable(files_to_make())
        start_work(Path(STORE), "snakemake", [artifact.key for artifact in artifacts_to_make()])
        PLAN.store.write_specs(PLAN.jobs.values())
        if not workflow.local_exec:  # Snakemake passes these files to each job, which reads no other: see Snakefile
            workflow.config_settings.configfiles = [hand_over(config)]
    except UserError as error:
        raise WorkflowError(str(error)) from None
    clear_half_files()
    if workflow.local_exec:
        end_jobs_too()
    else:  # Snakemake then cancels what is in the queue
        end_as_python_does()


def outdated_results():
    """Results that are there but not made by this configuration, because nobody asked for them."""
    records = {path: read_record(Path(path)) for path in PLAN.results()}
    return [path for path, job in PLAN.results().items() if records[path] and records[path].key != job.key]


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
