# The plan: every artifact's path and inputs, from the validated configuration. What a stage reads is its spec file,
# STORE/specs/KEY.json, written when a run starts. Inputs are `ancient`: a path names its content, so an artifact is
# made when it is missing and never because of a time stamp.

import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pipeline_lib.config import load_config
from pipeline_lib.errors import UserError
from pipeline_lib.images import ENCODING_THREADS
from pipeline_lib.plan import Plan

try:
    PLAN = Plan(load_config(config, source=" + ".join(map(str, workflow.configfiles))))
except UserError as error:
    raise WorkflowError(str(error)) from None

STORE = PLAN.config.store
RESULTS = PLAN.config.results
RUN = f"{shlex.quote(sys.executable)} -m pipeline_lib"  # the Python that runs Snakemake
# Of a rule that loads a model. Where the configuration leaves the choice to the job (auto), Snakemake starts as many as
# there are cores for, and they take turns on the GPUs by themselves (devices.claim).
GPU = 1 if PLAN.config.device == "cuda" else 0
SHEETS = PLAN.sheets()


wildcard_constraints:
    key="[0-9a-f]{16}",
    name=r"[a-z0-9_]+(\.[a-z0-9_]+)*",
    sheet="|".join(map(re.escape, SHEETS)),
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
