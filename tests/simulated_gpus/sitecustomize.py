"""Imported by every Python that has this folder on PYTHONPATH: there, GPUs that only `nvidia-smi` lists can be used.

A stage that claims one computes on the CPU; images are noise. In the folder SIMULATED_GPUS each process notes what it
claims, and holds it until as many processes have one or wait for one as the file `side_by_side` there says.
"""

import atexit
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fake_generator import FakeGenerator
from numpy.typing import NDArray

from pipeline_lib import devices, generators

SECONDS = 100  # for which a process waits for others, at most
notes = Path(os.environ["SIMULATED_GPUS"])
me = str(os.getpid())


class NoteWaiting(logging.Handler):
    """Notes that this process has asked for a GPU and waits."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("waiting"):
            (notes / "asked" / me).touch()


def claimed(_: str) -> str:
    """See `pipeline_lib.devices.claimed`."""
    devices.log.addHandler(NoteWaiting())
    gpu = devices.claim()
    (notes / "running" / me).touch()
    atexit.register((notes / "running" / me).unlink)  # before the claim ends: what is registered last comes first
    mark = notes / f"{gpu}.held"
    try:
        mark.touch(exist_ok=False)
        how = "alone"
        atexit.register(mark.unlink)
    except FileExistsError:
        how = "together"
    with (notes / "claims").open("a") as claims:
        claims.write(f"{gpu} {how} {len(list((notes / 'running').iterdir()))}\n")
    (notes / "asked" / me).touch()
    return "cpu"


class Patient(FakeGenerator):
    """Draws when the others are there."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], references: Any = None) -> NDArray[np.float32]:
        deadline = time.monotonic() + SECONDS
        expected = int((notes / "side_by_side").read_text())
        while len(list((notes / "asked").iterdir())) < expected and time.monotonic() < deadline:
            time.sleep(0.02)
        return super().generate(prompts, seeds, references)


devices.claimed = claimed
devices.resolve = lambda _: "cpu"
generators.load_generator = lambda *_, **settings: (settings, Patient())[1]
