"""Slurm: what would make every job of a run fail, or the run wait for ever, asked before the first is submitted."""

import re
import shutil
import subprocess
from collections.abc import Iterable

from pipeline_lib.errors import UserError

# Seconds to which the executor's pauses between two looks at the queue grow. squeue forgets a job MinJobAge seconds
# after its end.
LONGEST_PAUSE = 180
_GENERIC = "use workflow/profiles/cluster-generic, whose jobs say themselves how they end"


def require_answers(status_command: str | None, first_look: int) -> None:
    """Raises `UserError`, naming the setting to change, where a run would wait for ever for a job that has ended.

    `status_command` and `first_look` (seconds) are the profile's slurm-status-command and
    slurm-init-seconds-before-status-checks.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "executor: slurm: there is no sbatch on this machine; start the run on the cluster's login node"
        )
    remembered = _seconds_remembered()
    fault = _fault_of_sacct()
    has_sacct = shutil.which("sacct") is not None
    # As the executor decides.
    asks_sacct = has_sacct and (status_command != "squeue" or remembered < 3 * first_look)
    if asks_sacct and fault:
        what = f"sacct, which is to tell how jobs end, does not answer here ({fault})"
    elif not asks_sacct and remembered <= LONGEST_PAUSE:
        what = f"squeue is to tell how jobs end, but forgets them after {remembered} s (MinJobAge)"
    else:
        return
    if remembered >= max(LONGEST_PAUSE + 1, 3 * first_look):
        remedy = "write slurm-status-command: squeue in the config.yaml of the profile"
    elif has_sacct and not fault:
        remedy = "leave slurm-status-command out of the config.yaml of the profile"
    else:
        remedy = _GENERIC
    raise UserError(f"executor: slurm: {what}, so this run would wait for ever; {remedy}")


def require_partitions(names: Iterable[str]) -> None:
    """Raises `UserError` where the cluster has no partition of that name; "a,b" is either of two."""
    asked = subprocess.run(["sinfo", "--all", "--noheader", "--format=%R"], capture_output=True, text=True, check=False)
    there = set(asked.stdout.split())
    for name in dict.fromkeys(part for text in names for part in text.split(",")):
        if there and name not in there:
            raise UserError(
                f"slurm_partition: {name!r} is no partition of this cluster, which has {', '.join(sorted(there))}; "
                f"name one of these in the config.yaml of the profile"
            )


def _seconds_remembered() -> int:
    """For how long Slurm remembers a job that has ended."""
    asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise UserError(f"executor: slurm: Slurm does not answer here: scontrol says {_last_line(asked.stderr)!r}")
    found = re.search(r"^MinJobAge\s*=\s*(\d+)", asked.stdout, re.MULTILINE)
    return int(found[1]) if found else 0


def _fault_of_sacct() -> str | None:
    """What sacct says where it cannot answer; None where it can."""
    command = ["sacct", "--noheader", "--allocations", "--name=pipeline_lib"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "it is not installed"
    return None if asked.returncode == 0 else _last_line(asked.stderr)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1]
