"""What Slurm is asked before a run starts, put to programs that answer as those of various clusters do."""

from pathlib import Path

import pytest

from pipeline_lib import slurm
from pipeline_lib.errors import UserError

DISABLED = "Slurm accounting storage is disabled"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the only programs that are found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def cluster(programs: Path, *, min_job_age: int = 300, sacct: str | None = "") -> None:
    """A cluster on which sacct says this on its standard error and fails (""; it answers; None: it is not there)."""
    answers = {"sbatch": "exit 0", "scontrol": f"echo 'MaxJobCount = 10\nMinJobAge               = {min_job_age} sec'"}
    if sacct is not None:
        answers["sacct"] = f"echo '{sacct}' >&2; exit 1" if sacct else "exit 0"
    for name, answer in answers.items():
        (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
        (programs / name).chmod(0o755)


@pytest.mark.parametrize(
    ("status_command", "min_job_age", "sacct"),
    [
        ("sacct", 300, ""),
        ("sacct", 2, ""),
        ("squeue", 300, DISABLED),
        ("squeue", 300, None),
        ("sacct", 300, None),  # not installed: the executor asks squeue
        ("squeue", 2, ""),  # too short: the executor asks sacct
    ],
)
def test_a_run_may_start(programs: Path, status_command: str, min_job_age: int, sacct: str | None):
    """Where what the executor will ask can answer."""
    cluster(programs, min_job_age=min_job_age, sacct=sacct)
    slurm.require_answers(status_command, 20)


@pytest.mark.parametrize(
    ("status_command", "min_job_age", "sacct", "first_look", "message"),
    [
        ("sacct", 300, DISABLED, 20, rf"sacct.*\({DISABLED}\).*wait for ever; write slurm-status-command: squeue"),
        ("sacct", 100, DISABLED, 20, r"use workflow/profiles/cluster-generic"),
        ("sacct", 300, DISABLED, 120, r"use workflow/profiles/cluster-generic"),  # it would not take squeue's word
        ("squeue", 2, DISABLED, 20, r"sacct.*use workflow/profiles/cluster-generic"),
        ("squeue", 180, DISABLED, 20, r"squeue.*forgets them after 180 s \(MinJobAge\).*cluster-generic"),
        ("squeue", 100, "", 20, r"squeue.*forgets them after 100 s.*leave slurm-status-command out"),
        ("sacct", 100, None, 20, r"squeue.*forgets them after 100 s.*cluster-generic"),
    ],
)
def test_a_run_that_would_wait_for_ever_does_not_start(
    programs: Path, status_command: str, min_job_age: int, sacct: str | None, first_look: int, message: str
):
    """The message names what does not answer, and the setting that mends it on this cluster."""
    cluster(programs, min_job_age=min_job_age, sacct=sacct)
    with pytest.raises(UserError, match=f"executor: slurm: .*{message}"):
        slurm.require_answers(status_command, first_look)


def test_a_machine_without_slurm(programs: Path):
    """Said once, before anything is submitted."""
    with pytest.raises(UserError, match=r"there is no sbatch on this machine.*login node"):
        slurm.require_answers(None, 20)


def test_a_slurm_that_does_not_answer(programs: Path):
    """With its own last words."""
    cluster(programs)
    (programs / "scontrol").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    with pytest.raises(UserError, match="Slurm does not answer here: scontrol says 'Unable to contact"):
        slurm.require_answers("squeue", 20)


def test_a_partition_that_is_not_there(programs: Path):
    """Named once, with those that are; else every job would fail, each several times."""
    (programs / "sinfo").write_text("#!/bin/sh\necho 'main\ngpu'\n")
    (programs / "sinfo").chmod(0o755)
    slurm.require_partitions(["main", "gpu,main"])
    with pytest.raises(
        UserError, match=r"slurm_partition: 'long' is no partition of this cluster, which has gpu, main"
    ):
        slurm.require_partitions(["main", "gpu,long"])
