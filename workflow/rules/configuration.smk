# The configuration's files, looked at before Snakemake reads params.yaml: what YAML lets slip is refused (a key twice, an
# alias that multiplies), and so is a template, whose Python Snakemake would run. It has read overlays by now.

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from pipeline_lib.interrupts import end_at_once

if workflow.is_main_process:
    end_at_once()  # while it imports and plans

from pipeline_lib.errors import UserError
from pipeline_lib.handover import is_handed_over
from pipeline_lib.yaml_files import read_yaml

HANDED_OVER = is_handed_over(workflow.configfiles)

try:
    if not HANDED_OVER:
        for file in (*workflow.configfiles, "params.yaml"):
            read_yaml(Path(file))
except UserError as error:
    raise WorkflowError(str(error)) from None
