"""Where the time of a run goes: each stage process appends one line, a run's end sums them up."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, FiniteFloat, NonNegativeFloat

_phases: defaultdict[str, float] = defaultdict(float)
# The three that the run is for; everything else is overhead.
COMPUTE = ("sampling", "embedding", "tuning")


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the wall time of the block towards phase `name` of this process."""
    started = time.perf_counter()
    try:
        yield
    finally:
        _phases[name] += time.perf_counter() - started


class _Line(BaseModel):
    """What one process took."""

    stage: str
    key: str
    ended: FiniteFloat
    wall_time_s: NonNegativeFloat
    phases: dict[str, NonNegativeFloat]


def append(path: Path, stage: str, key: str, wall_time_s: float) -> None:
    """Append this process's line. One write of a short line to a file opened for appending is atomic."""
    line = _Line(stage=stage, key=key, ended=time.time(), wall_time_s=wall_time_s, phases=dict(_phases))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, f"{line.model_dump_json()}\n".encode())
    finally:
        os.close(descriptor)


def _read(path: Path) -> Iterator[_Line]:
    """The lines that can be read; damaged ones tell nothing, and no run fails for them."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.splitlines():
        with suppress(ValueError):
            yield _Line.model_validate_json(line)


def summary(path: Path, since: float) -> str:
    """The breakdown of all lines that ended after `since` (seconds since the epoch), for people; "" without any."""
    lines = [line for line in _read(path) if line.ended >= since]
    if not lines:
        return ""
    total = sum(line.wall_time_s for line in lines)
    phases: defaultdict[str, float] = defaultdict(float)
    stages: defaultdict[str, list[float]] = defaultdict(list)
    for line in lines:
        stages[line.stage].append(line.wall_time_s)
        for name, seconds in line.phases.items():
            phases[name] += seconds
    compute = sum(phases[name] for name in COMPUTE)
    shares = ", ".join(f"{name} {phases[name]:.0f} s" for name in COMPUTE)
    rows = [f"  {stage:<12} {len(walls):4d} jobs {sum(walls):8.1f} s" for stage, walls in stages.items()]
    return "\n".join(
        [
            f"Time of the jobs: {total:.0f} s in {time.time() - since:.0f} s elapsed",
            *rows,
            f"  of it computing: {shares}: {100 * compute / max(total, 1e-9):.0f}% of the jobs' time",
        ]
    )
