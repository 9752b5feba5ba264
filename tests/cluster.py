"""A Slurm cluster of one node on this machine: munged, slurmctld and slurmd, real ones, for as long as a test needs it.

Needs root, and installs the Debian packages where they are missing. Slurm's programs look for their configuration in
/etc/slurm: it is written there, and taken away at the end; a configuration that somebody else wrote is left alone.
"""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

PACKAGES = ("slurm-wlm", "slurm-wlm-torque", "munge")  # the second: qsub, qstat and qdel in front of Slurm
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "qsub", "qstat")
CONFIGURATION = Path("/etc/slurm")
MARK = "# written by tests/cluster.py"
SECONDS_TO_START = 120
SECONDS_FOR_APT = 600
SECONDS_BETWEEN_TRIES = 2.0
# More than the machine has (config_overrides): what jobs ask for is tested, and what they get is small. Two partitions:
# a job in `urgent` may take the node from jobs in `main`, which go back into the queue. Jobs that have ended are
# remembered for a day: tests ask late.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={state}/slurmctld
SlurmdSpoolDir={state}/slurmd
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=2
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
ReturnToService=2
JobRequeue=0
MinJobAge=86400
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=1000000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=14-00:00:00 State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=01:00:00 State=UP PriorityTier=2
"""
HOST = socket.gethostname().split(".")[0]
GRES_CONF = "NodeName={host} Name=gpu File=/dev/null\n"  # a GPU in name only
CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"


class NoClusterError(Exception):
    """There can be no cluster on this machine; the message says why."""


def install() -> None:
    """Install what is missing. Raises `NoClusterError` where that cannot be done."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if shutil.which("apt-get") is None:
        raise NoClusterError("Slurm is not installed, and there is no apt-get to install it with")
    apt_get("update")
    apt_get("install", "--yes", "--no-install-recommends", *PACKAGES)
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NoClusterError(f"{', '.join(PACKAGES)} are installed, but there is no {', '.join(missing)}")


def apt_get(*command: str) -> None:
    """Run apt-get, after whoever runs it now. Raises `NoClusterError` where it fails."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    deadline = time.monotonic() + SECONDS_FOR_APT
    while True:
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if "Could not get lock" not in done.stderr or time.monotonic() > deadline:
            raise NoClusterError(f"apt-get {command[0]} failed: {done.stderr.strip()[-500:]}")
        time.sleep(SECONDS_BETWEEN_TRIES)


@contextlib.contextmanager
def slurm() -> Iterator[None]:
    """A running cluster, empty at first; afterwards its jobs, daemons and files are gone. Raises `NoClusterError`."""
    if os.geteuid() != 0:
        raise NoClusterError("a Slurm cluster can only be started by root")
    with contextlib.ExitStack() as after:
        # Packages, ports and /etc/slurm are the machine's.
        after.enter_context(FileLock(Path(tempfile.gettempdir()) / "pipeline_lib-test-cluster.lock"))
        install()
        if subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0:
            raise NoClusterError("this machine belongs to a Slurm cluster already")
        state = Path(after.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        after.enter_context(_configured(state))
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode != 0:
            socket_folder = Path("/run/munge")
            socket_folder.mkdir(exist_ok=True)
            shutil.chown(socket_folder, "munge", "munge")
            user = ("--reuid=munge", "--regid=munge", "--init-groups")
            after.enter_context(_daemon(state, "munged", "--foreground", options=user))
            _wait_for("munge", "-n")
        for folder in ("slurmctld", "slurmd"):
            (state / folder).mkdir()
        after.enter_context(_daemon(state, "slurmctld", "-D"))
        _wait_for("scontrol", "ping")
        after.enter_context(_daemon(state, "slurmd", "-D"))
        after.callback(_end_jobs)
        _wait_for("sinfo", "--noheader", "--format=%t", prints=r"idle\n")
        yield


def jobs(state: str | None = None, rule: str = "") -> dict[int, dict[str, str]]:
    """What the cluster knows of its jobs, ended ones too, by number: scontrol's fields (JobState, TRES, Requeue, ...).

    `rule` selects those that Snakemake's Slurm executor submitted for a rule, `state` those of one state.
    """
    listing = subprocess.run(["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, check=True)
    found = {}
    for line in listing.stdout.splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        of_rule = re.match(rf"rule_{rule}(_wildcards_|$)", fields.get("Comment", "")) if rule else True
        if "JobId" in fields and of_rule and state in (None, fields["JobState"]):
            found[int(fields["JobId"])] = fields
    return found


@contextlib.contextmanager
def _configured(state: Path) -> Iterator[None]:
    """Slurm's configuration, with everything that Slurm writes in the folder `state`."""
    files = {
        CONFIGURATION / "slurm.conf": SLURM_CONF.format(host=HOST, state=state),
        CONFIGURATION / "gres.conf": GRES_CONF.format(host=HOST),
        CONFIGURATION / "cgroup.conf": CGROUP_CONF,
    }
    for path in files:
        if path.exists() and not path.read_text().startswith(MARK):
            raise NoClusterError(f"this machine has a {path} of its own")
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{MARK}\n{content}")
        yield
    finally:
        for path in files:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _daemon(state: Path, *command: str, options: tuple[str, ...] = ()) -> Iterator[None]:
    """A daemon in the foreground of a session of its own, which ends when this process does, however it ends."""
    with (state / f"{command[0]}.out").open("wb") as out:
        daemon = subprocess.Popen(
            # The signal is set for a user only after becoming that user.
            ["setpriv", *options, "setpriv", "--pdeathsig=TERM", *command],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _wait_for(*command: str, prints: str = "") -> None:
    """Wait until a command succeeds and prints what is expected (a regular expression). Raises `NoClusterError`."""
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and re.match(prints, done.stdout):
            return
        if time.monotonic() > deadline:
            raise NoClusterError(f"Slurm did not start: {shlex.join(command)} says {done.stdout}{done.stderr}")
        time.sleep(0.2)


def _end_jobs() -> None:
    """Cancel all jobs and wait until their processes are gone."""
    subprocess.run(["scancel", "--user=root"], capture_output=True, check=False)
    deadline = time.monotonic() + 10
    while subprocess.run(["squeue", "--noheader"], capture_output=True, check=False).stdout:
        if time.monotonic() > deadline:
            return
        time.sleep(0.2)
