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

from pipeline_lib import timings
from pipeline_lib.config import load_config
from pipeline_lib.costs import require_disk
from pipeline_lib.errors import UserError
from pipeline_lib.images import ENCODING_THREADS
from pipeline_lib.plan import Plan

try:
    PLAN = Plan(load_config(config, source=" + ".join(map(str, workflow.configfiles))))
except UserError as error:
    raise WorkflowError(str(error)) from None

for message in PLAN.missing_models:  # a dry run goes on
    print(f"Not here yet: {message}", file=sys.stderr)

STORE = PLAN.config.store
RESULTS = PLAN.config.results
RUN = f"{shlex.quote(sys.executable)} -m pipeline_lib"  # the Python that runs Snakemake
# Of a rule that loads a model. Where the configuration leaves the choice to the job (auto), jobs take turns by themselves.
GPU = 1 if PLAN.config.device == "cuda" else 0
STARTED = time.time()
SAMPLES = sorted({pair for table in PLAN.tables for pair in PLAN.sample_sheets(table)})
SAMPLE_JOBS = {f"{dataset}.{strategy}": PLAN.samples(dataset, strategy) for dataset, strategy in SAMPLES}


wildcard_constraints:
    key="[0-9a-f]{16}",
    name=r"[a-z0-9_]+(\.[a-z0-9_]+)*",
    sheet="|".join(map(re.escape, SAMPLE_JOBS)),
    table="|".join(PLAN.tables),


def inputs(wildcards):
    """Paths of the artifacts that the job with this key reads."""
    return ancient(PLAN.inputs(wildcards.key))


def result_inputs(artifact, result):
    """Paths that a table or picture is made from.

    A result's name does not say which configuration made it. Where one is there that is not the planned one, a file that
    is newer than it joins the inputs, so that it is made again.
    """
    paths = [ancient(path) for path in PLAN.inputs(artifact.short_key)]
    if Path(result).exists() and not PLAN.store.is_current(Path(result), artifact):
        paths.append(PLAN.store.mark_outdated(artifact))
    return paths


onstart:
    try:
        PLAN.require_models()
        require_disk(PLAN, PLAN.config.costs)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    PLAN.store.write_specs(PLAN.jobs.values())


def outdated_results():
    """Results that are there but not made by this configuration, because nobody asked for them."""
    planned = {f"{RESULTS}/{name}.csv": table for name, table in PLAN.tables.items()}
    planned |= {f"{RESULTS}/samples/{sheet}.png": job for sheet, job in SAMPLE_JOBS.items()}
    return [path for path, job in planned.items() if Path(path).exists() and not PLAN.store.is_current(Path(path), job)]


onsuccess:
    print(timings.summary(PLAN.store.root / "timings.jsonl", since=STARTED), file=sys.stderr)
    print(
        f"Tables:   {RESULTS}/*.csv, and *.md to read\n"
        f"Pictures: {RESULTS}/samples/*.png\n"
        f"Images:   {STORE}/images/*/*/*.parquet (python -m pipeline_lib show PATH says how each was made)",
        file=sys.stderr,
    )
    if outdated_results():
        print("Of another configuration, ask for them again:", *outdated_results(), file=sys.stderr)
