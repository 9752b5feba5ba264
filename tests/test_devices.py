"""Devices: what a configuration's device means here, one process per GPU, and what running out of memory looks like."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from missing import missing
from small_project import REPOSITORY, changed, planned
from workflow_project import STORE, Project

from pipeline_lib import devices
from pipeline_lib.datasets import preparation
from pipeline_lib.errors import UserError

CLAIMANTS = REPOSITORY / "tests" / "claimants.py"
# Claims a GPU, prints its name and holds it for so many seconds.
HOLDER = """
import logging, sys, time
from pipeline_lib.devices import claim
logging.basicConfig(level=logging.INFO)
print(claim(), flush=True)
time.sleep(float(sys.argv[1]))
"""

# Makes the set of the units START to STOP in the store named by the first argument, four at a time, as a stage that
# needs a GPU does; begins when there is a file `go`.
SHARER = """
import logging, sys, time
from pathlib import Path
from pipeline_lib.devices import claim
from pipeline_lib.sets import make_set
from pipeline_lib.store import Artifact, Store

def make(units):
    print(claim(), flush=True)
    while not (store.root / "go").exists():
        time.sleep(0.01)
    for unit in units:
        with store.making(unit) as path:
            path.write_text("made")

logging.basicConfig(level=logging.INFO)
store = Store(Path(sys.argv[1]))
units = tuple(Artifact("units/u", {"number": number}, ".txt") for number in range(*map(int, sys.argv[2:])))
spec = {"set": "units", "members": [unit.path for unit in units]}
make_set(Artifact("units/sets/all", spec, ".json", members=units), store, make, 4, prepare=claim)
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without a GPU; returns the folder in which an `nvidia-smi` can be put."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv(devices.VISIBLE, "")  # restored afterwards, whatever a claim sets
    monkeypatch.delenv(devices.VISIBLE)
    yield programs
    devices.release()


def new_gpus(number: int) -> list[str]:
    """Names of simulated GPUs that nobody else on this machine has: claims are the machine's."""
    return [f"gpu-{uuid.uuid4()}" for _ in range(number)]


def install_driver(programs: Path, listing: str) -> None:
    """An nvidia-smi that prints this listing."""
    program = programs / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ntest \"$1\" = -L || exit 1\n/bin/cat <<'END'\n{listing}\nEND\n")
    program.chmod(0o755)


def start(seconds: float, **environment: str) -> subprocess.Popen[str]:
    """A process that holds a GPU for that long."""
    return start_python("-c", HOLDER, str(seconds), **environment)


def start_python(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- what a device is -------------------------------------------------------------------------------------------------


def test_cpu_is_cpu_without_torch():
    """The CPU needs no looking, so nothing heavy is imported for it."""
    code = "import sys; from pipeline_lib.devices import claimed; print(claimed('cpu'), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["cpu", "False"]


@pytest.mark.parametrize(("available", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, available: bool, device: str):
    """And the CPU elsewhere."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    assert devices.resolve("auto") == device


def test_a_missing_gpu_is_an_error_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    """The message names key and value, why there is none, and what to write instead."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"device: 'cuda' is asked for.*write device: auto"):
        devices.resolve("cuda")
    monkeypatch.setattr("torch.version.cuda", "12.8")
    monkeypatch.setenv(devices.VISIBLE, "7")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is '7'"):
        devices.claimed("cuda")


def test_an_unknown_device_is_an_error():
    """With what is allowed."""
    for function in (devices.resolve, devices.claimed):
        with pytest.raises(UserError, match=r"device: 'tpu' is not allowed; write auto, cpu, cuda"):
            function("tpu")


def test_a_gpu_that_torch_cannot_use_is_left_to_others(monkeypatch: pytest.MonkeyPatch):
    """`auto` falls back to the CPU, and nobody waits for this process."""
    (gpu,) = new_gpus(1)
    monkeypatch.setenv(devices.VISIBLE, gpu)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert devices.claimed("auto") == "cpu"
    other = start(0)
    assert other.communicate(timeout=60)[0].strip() == gpu


# --- which GPUs there are ---------------------------------------------------------------------------------------------

TWO = "GPU 0: NVIDIA H100 (UUID: GPU-aaaa-1)\nGPU 1: NVIDIA H100 (UUID: GPU-bbbb-2)"
SLICED = (
    "GPU 0: NVIDIA A100 (UUID: GPU-aaaa-1)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-cccc-3)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-dddd-4)\n"
    "GPU 1: NVIDIA A100 (UUID: GPU-bbbb-2)"
)


@pytest.mark.parametrize(
    ("listing", "visible", "names"),
    [
        (TWO, None, ["GPU-aaaa-1", "GPU-bbbb-2"]),
        (SLICED, None, ["MIG-cccc-3", "MIG-dddd-4", "GPU-bbbb-2"]),
        (TWO, "1,0", ["1", "0"]),  # a cluster's allocation wins, in its own words
        (TWO, "GPU-bbbb-2", ["GPU-bbbb-2"]),
        (TWO, "0,-1,1", ["0"]),  # as CUDA reads it
        (TWO, "", []),
        (None, "0,1", ["0", "1"]),  # no nvidia-smi
        (None, None, []),
        ("No devices were found", None, []),
    ],
)
def test_gpus_are_counted_without_torch(
    machine: Path, monkeypatch: pytest.MonkeyPatch, listing: str | None, visible: str | None, names: list[str]
):
    """By CUDA_VISIBLE_DEVICES where it is set, else by nvidia-smi; slices instead of a sliced GPU."""
    if listing is not None:
        install_driver(machine, listing)
    if visible is not None:
        monkeypatch.setenv(devices.VISIBLE, visible)
    assert [name for name, _ in devices._gpus()] == names


def test_one_gpu_has_one_identity(machine: Path, monkeypatch: pytest.MonkeyPatch):
    """Its number, its UUID and the UUID's beginning name the same lock."""
    install_driver(machine, TWO)
    for name in ("1", "GPU-bbbb-2", "GPU-bb"):
        monkeypatch.setenv(devices.VISIBLE, name)
        assert devices._gpus() == [(name, "GPU-bbbb-2")]


def test_clusters_may_number_the_gpus_of_each_job_from_0(machine: Path, monkeypatch: pytest.MonkeyPatch):
    """Two jobs on one machine that see different GPUs, both as number 0, do not wait for each other."""
    mine, theirs = (f"GPU-{uuid.uuid4()}" for _ in range(2))
    monkeypatch.setenv(devices.VISIBLE, "0")
    install_driver(machine, f"GPU 0: NVIDIA H100 (UUID: {theirs})")
    holder = start(60)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "0"
    install_driver(machine, f"GPU 0: NVIDIA H100 (UUID: {mine})")
    try:
        assert devices.claim() == "0"
    finally:
        holder.kill()
        holder.communicate()


def test_without_gpus_there_is_nothing_to_claim():
    """And CUDA_VISIBLE_DEVICES stays as it is."""
    assert devices.claim() is None
    assert devices.VISIBLE not in os.environ


# --- one process per GPU ----------------------------------------------------------------------------------------------


def test_processes_never_share_a_gpu(tmp_path: Path):
    """64 processes in waves of 16 on three GPUs, 16 of them killed -9 as holders: none is held twice, none is lost."""
    gpus = new_gpus(3)
    processes = start_python(str(CLAIMANTS), "waves", str(tmp_path), CUDA_VISIBLE_DEVICES=",".join(gpus))
    _, messages = processes.communicate(timeout=600)
    assert processes.returncode == 0, messages
    claims = [line.split() for line in (tmp_path / "claims").read_text().splitlines()]
    assert {how for *_, how in claims} == {"alone"}
    assert {int(number) for number, *_ in claims} == set(range(64))
    assert {gpu for _, gpu, _ in claims} == set(gpus)
    assert len(list((tmp_path / "killed").iterdir())) == 16


def test_users_do_not_share_a_gpu():
    """What one user's process holds another's waits for, wherever each keeps its temporary files."""
    if os.geteuid() != 0:
        missing("needs root, to become two users")
    (gpu,) = new_gpus(1)
    users = start_python(str(CLAIMANTS), "users", "65533", "65534", CUDA_VISIBLE_DEVICES=gpu)
    output, messages = users.communicate(timeout=600)
    assert users.returncode == 0, messages
    assert output.splitlines() == ["65533 has it", "65534 waits", "65533 ends", "65534 has it"], messages


def test_a_process_that_waits_says_so_and_a_killed_holder_frees_its_gpu():
    """Not even kill -9 leaves a GPU taken."""
    (gpu,) = new_gpus(1)
    holder = start(600, CUDA_VISIBLE_DEVICES=gpu)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == gpu
    waiting = start(0, CUDA_VISIBLE_DEVICES=gpu)
    assert waiting.stderr is not None
    assert any("waiting: other processes have all 1 GPUs" in line for line in waiting.stderr)
    time.sleep(2 * devices._SECONDS_BETWEEN_TRIES)
    assert waiting.poll() is None
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    output, messages = waiting.communicate(timeout=60)
    assert output.strip() == gpu
    assert "waiting" not in messages  # said once


def test_jobs_that_share_units_and_a_gpu_both_finish(tmp_path: Path):
    """The one that waits for the GPU locks nothing that the one with the GPU waits for."""
    store = tmp_path / "store"
    store.mkdir()
    (gpu,) = new_gpus(1)
    first = start_python("-c", SHARER, str(store), "0", "12", CUDA_VISIBLE_DEVICES=gpu)
    jobs = [first]
    try:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == gpu
        second = start_python("-c", SHARER, str(store), "8", "20", CUDA_VISIBLE_DEVICES=gpu)
        jobs.append(second)
        assert second.stderr is not None
        assert any("waiting: other processes have all 1 GPUs" in line for line in second.stderr)
        (store / "go").touch()
        for job in jobs:
            job.communicate(timeout=60)
            assert job.returncode == 0
    finally:
        for job in jobs:
            job.kill()
            job.communicate()
    assert len(list((store / "units" / "u").glob("*.txt"))) == 20


def test_a_claim_lasts_as_long_as_its_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A second stage in the same process gets the same GPU: CUDA cannot move."""
    caplog.set_level(logging.INFO)
    first, second = new_gpus(2)
    monkeypatch.setenv(devices.VISIBLE, f"{first},{second}")
    assert devices.claim() == first == os.environ[devices.VISIBLE]
    assert devices.claim() == first
    assert caplog.text.count("is this process's") == 1


# --- a run of the workflow --------------------------------------------------------------------------------------------


@pytest.fixture
def project(params: dict[str, Any], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Snakemake on a small project that asks for a GPU, on a machine that shows torch none."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed(params, device="cuda"), allow_unicode=True))

    def snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--directory", str(tmp_path), *arguments]
        environment = os.environ | {"PATH": os.defpath, devices.VISIBLE: ""}
        return subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    return snakemake


def test_a_run_without_the_gpu_it_needs_does_not_start(
    project: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
):
    """It says so before the first job, not in the logs of the first that loads a model."""
    run = project("--cores", "2", "results/table1.csv")
    assert run.returncode != 0
    assert "device: 'cuda' is asked for" in run.stderr
    assert "CUDA_VISIBLE_DEVICES is ''" in run.stderr
    assert not (tmp_path / "store").exists()


def test_what_needs_no_gpu_is_made_without_one(
    project: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
):
    """Real images can be prepared elsewhere."""
    plan = project("--cores", "16", "--dry-run", "results/table1.csv")
    assert plan.returncode == 0, plan.stderr
    receipt = re.search(r"store/real_images/sets/\S+\.json", plan.stdout)
    assert receipt is not None
    run = project("--cores", "2", str(tmp_path / receipt[0]))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / receipt[0]).exists()


def test_jobs_that_decode_images_with_several_threads_say_so(
    project: Callable[..., subprocess.CompletedProcess[str]],
):
    """Else as many of them as there are cores would run side by side, each with threads for all cores."""
    plan = project("--cores", "16", "--dry-run", "results/table1.csv").stdout
    jobs = re.findall(r"^(?:local)?rule real_images:\n(?:    .*\n)+", plan, re.MULTILINE)
    assert jobs
    assert all(f"threads: {preparation._MAX_THREADS}\n" in job for job in jobs)


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_jobs_of_a_run_take_turns_on_two_gpus(
    machine: Path, params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
):
    """With the profile `gpu` and so many jobs that may use one: each has a GPU of its own, and a third job waits."""
    gpus = [f"GPU-{uuid.uuid4()}" for _ in range(2)]
    install_driver(machine, "\n".join(f"GPU {number}: NVIDIA H100 (UUID: {gpu})" for number, gpu in enumerate(gpus)))
    notes = tmp_path / "notes"
    for name in ("asked", "running"):
        (notes / name).mkdir(parents=True)
    (notes / "side_by_side").write_text(str(allowed))
    tests = REPOSITORY / "tests"
    monkeypatch.setenv("PATH", f"{machine}:{os.defpath}")
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, (tests / "simulated_gpus", tests, REPOSITORY))))
    monkeypatch.setenv("SIMULATED_GPUS", str(notes))
    project = Project(tmp_path, changed(params, device="cuda", store=STORE, images__classes_per_job=1))
    receipts = [f"{STORE}/{job.path}" for job in planned(project.params).stage("images") if ".basic" in job.path]
    profile = ("--profile", str(REPOSITORY / "workflow/profiles/gpu"), "--cores", "16", "--resources", f"gpu={allowed}")
    assert project.run(*profile, "--", *receipts).jobs == {"prompts": 1, "images": len(receipts)}
    claims = [line.split() for line in (notes / "claims").read_text().splitlines()]
    assert len(claims) == len(receipts) == 3
    assert {how for _, how, _ in claims} == {"alone"}
    assert {gpu for gpu, *_ in claims} == set(gpus[:allowed])
    assert max(int(running) for *_, running in claims) == min(allowed, 2)
    waited = [log for log in (tmp_path / "logs/images").iterdir() if "waiting: other processes" in log.read_text()]
    assert len(waited) == (1 if allowed == 3 else 0)


# --- memory -----------------------------------------------------------------------------------------------------------


def out_of_memory_on_a_cpu() -> None:
    import torch

    torch.empty(2**60)


def out_of_memory_on_a_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def out_of_memory_in_a_library() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def out_of_memory_in_numpy() -> None:
    raise MemoryError("Unable to allocate 8.00 TiB")


@pytest.mark.parametrize(
    "function", [out_of_memory_on_a_cpu, out_of_memory_on_a_gpu, out_of_memory_in_a_library, out_of_memory_in_numpy]
)
def test_running_out_of_memory_is_a_memory_error(function: Callable[[], None]):
    """Whatever ran out; the first is the real thing."""
    with pytest.raises(MemoryError):
        devices.memory_errors(function)()


def test_cached_memory_is_given_back(monkeypatch: pytest.MonkeyPatch):
    """What torch keeps of the failed batch could be in pieces too small for the next one."""
    freed: list[bool] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: freed.append(True))
    with pytest.raises(MemoryError):
        devices.memory_errors(out_of_memory_on_a_gpu)()
    assert freed


def test_other_errors_stay_what_they_are():
    """A fault in the code must not halve batches."""

    @devices.memory_errors
    def fail() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")

    with pytest.raises(RuntimeError, match="cannot be multiplied") as found:
        fail()
    assert not isinstance(found.value, MemoryError)


def test_what_did_not_fit_is_let_go():
    """The error keeps nothing of the failed batch alive, or the halved one would not fit either."""

    class Batch:
        pass

    kept: list[weakref.ref[Batch]] = []

    @devices.memory_errors
    def fail() -> None:
        batch = Batch()
        kept.append(weakref.ref(batch))
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(MemoryError) as found:
        fail()
    assert found.value.__context__ is None
    assert kept[0]() is None


def test_results_pass_through():
    """The decorator changes nothing else."""
    assert devices.memory_errors(divmod)(7, 2) == (3, 1)
