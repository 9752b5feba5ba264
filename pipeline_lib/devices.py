"""Devices: where a model runs, which GPU is this process's own, and when memory ran out.

Stages that load a model call `claimed` before the model's module touches CUDA; what loads the model calls `resolve`.
"""

import atexit
import errno
import hashlib
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from pipeline_lib.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)
DEVICES = ("auto", "cpu", "cuda")
VISIBLE = "CUDA_VISIBLE_DEVICES"  # read by CUDA once, when a process first uses it
_SECONDS_BETWEEN_TRIES = 1.0
_OUT_OF_MEMORY = re.compile(
    r"out of memory"  # CUDA, its libraries and drivers
    r"|(not enough|can't allocate|cannot allocate) memory"  # torch's allocator on a CPU
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_RESOLVE = """
import sys
from pipeline_lib import devices
try:
    devices.resolve(sys.argv[1])
except devices.UserError as error:
    print(error)
"""


def resolve(device: str) -> str:
    """What a configuration's `device` ("auto", "cpu" or "cuda") is on this machine: "cpu" or "cuda".

    Imports torch unless `device` is "cpu". Raises `UserError` where "cuda" is asked for and there is none.
    """
    if device not in DEVICES:
        raise UserError(f"device: {device!r} is not allowed; write {', '.join(DEVICES)}")
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "auto":
        return "cpu"
    if torch.version.cuda is None and torch.version.hip is None:
        reason = f"the installed torch {torch.__version__} is built for CPUs only"
    elif VISIBLE in os.environ:
        reason = f"{VISIBLE} is {os.environ[VISIBLE]!r}"
    else:
        reason = "nvidia-smi says whether the driver is there"
    raise UserError(
        f"device: 'cuda' is asked for, but torch finds no GPU here ({reason}); write device: auto to run on a GPU "
        f"where there is one and on the CPU elsewhere, or run this on a machine with a GPU"
    )


def require(device: str) -> None:
    """Raises the `UserError` of `resolve(device)`, if there is one. Torch is imported in a process of its own."""
    asked = subprocess.run([sys.executable, "-c", _RESOLVE, device], stdout=subprocess.PIPE, text=True, check=True)
    if asked.stdout:
        raise UserError(asked.stdout.strip())


def claimed(device: str) -> str:
    """`resolve(device)`, on a GPU that no other process of this machine has claimed: see `claim`.

    Call it before anything in the process uses CUDA, only when a model is probably going to be loaded, and holding
    nothing that another process may wait for: where all GPUs are taken it waits.
    """
    if device not in ("auto", "cuda"):
        return resolve(device)
    claim()
    resolved = resolve(device)
    if resolved == "cpu":  # torch cannot use what the driver lists: others need not wait for it
        release()
    return resolved


# --- whose turn it is on which GPU ------------------------------------------------------------------------------------

_held: dict[str, socket.socket] = {}  # this process's GPU, by its name in CUDA_VISIBLE_DEVICES, as long as it lives


def claim() -> str | None:
    """Take one free GPU for this process; returns the name that CUDA_VISIBLE_DEVICES now holds.

    Among the GPUs that CUDA_VISIBLE_DEVICES names (a cluster's allocation), else among all that nvidia-smi lists; None
    where there are none, or where they cannot be counted. Processes of all users of the machine take turns: with more
    processes than GPUs, waits, and says so in the log. The GPU is held until the process ends, however it ends: a CUDA
    context cannot move to another GPU.
    """
    for name in _held:
        return name
    gpus = _gpus()
    if not gpus:
        return None
    waiting = False
    while True:
        for name, identity in gpus:
            if (lock := _lock(identity)) is None:
                continue
            _held[name], os.environ[VISIBLE] = lock, name
            log.info("GPU %s is this process's", name)
            return name
        if not waiting:
            log.info("waiting: other processes have all %d GPUs (nvidia-smi lists them)", len(gpus))
            waiting = True
        time.sleep(_SECONDS_BETWEEN_TRIES)


def release() -> None:
    """Give the claimed GPU back, if there is one. For a process that has not used it; else its end does so."""
    while _held:
        _held.popitem()[1].close()


atexit.register(release)


def _gpus() -> list[tuple[str, str]]:
    """The GPUs to choose from: the name that CUDA_VISIBLE_DEVICES takes, and the identity that all processes of this
    machine know the GPU by."""
    listed = _listed_by_driver()
    if VISIBLE not in os.environ:
        return [(uuid, uuid) for uuid in listed]
    found = []
    for name in map(str.strip, os.environ[VISIBLE].split(",")):
        if not name or name == "-1":
            break  # CUDA ignores what follows an invalid name
        # Inside a cluster's container numbers start at 0 on every job: the UUID is what tells its GPUs apart.
        if name.isdigit() and int(name) < len(listed):
            identity = listed[int(name)]
        else:
            identity = next((uuid for uuid in listed if uuid.startswith(name)), name)
        found.append((name, identity))
    return found


def _listed_by_driver() -> list[str]:
    """UUIDs of the GPUs, or of their slices where they are partitioned (MIG), in nvidia-smi's order; [] without it."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    uuids: list[str] = []
    for line in listing.splitlines():
        if (match := re.search(r"UUID: ((GPU|MIG)-[^)\s]+)", line)) is None:
            continue
        if match[2] == "MIG" and uuids and uuids[-1].startswith("GPU"):
            uuids.pop()  # a partitioned GPU itself takes no work
        uuids.append(match[1])
    return uuids


def _lock(identity: str) -> socket.socket | None:
    """The lock of a GPU, held until it is closed or this process is gone; None where another process holds it.

    It is a name in Linux's abstract socket namespace, which one process of the machine can have at a time, whoever's it
    is. Lock files would need a folder that all users may write to, and each file would still belong to one of them.
    """
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0pipeline_lib-gpu-{hashlib.sha256(identity.encode()).hexdigest()[:16]}")
    except OSError as error:
        lock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return lock


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: where torch runs out of memory, on a GPU or a CPU, `function` raises MemoryError.

    The new error does not refer to the old one, whose traceback would keep the failed batch's tensors alive.
    """

    @wraps(function)
    def translated(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if _OUT_OF_MEMORY.search(str(error)) is None:
                raise
            message = str(error).splitlines()[0]
        import torch

        torch.cuda.empty_cache()  # nothing where CUDA is not in use
        raise MemoryError(message)

    return translated
