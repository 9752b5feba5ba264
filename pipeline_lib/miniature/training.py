"""What every training loop here shares: settings, schedule, checkpoints, progress."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

SETTINGS = Path(__file__).with_name("settings.yaml")


def settings(path: Path, section: str) -> dict[str, Any]:
    """Read one section of a settings file; dots go deeper ("corpora.web")."""
    found: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for name in section.split("."):
        if not isinstance(found, dict) or name not in found:
            raise ValueError(f"{path} has no section {section!r} ({name!r} is missing)")
        found = found[name]
    return dict(found)


def settings_for(path: Path, section: str, inputs: list[Path]) -> dict[str, Any]:
    """Settings of a training with the digest of its inputs, so that no checkpoint outlives what it learned from."""
    digest = hashlib.sha256()
    for file in inputs:
        digest.update(file.read_bytes())
    return {**settings(path, section), "inputs": digest.hexdigest()}


def learning_rate(step: int, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up, then a half cosine that ends at 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def trapezoid(step: int, peak: float, warmup: int, steps: int, cooldown: int) -> float:
    """Linear warm-up, constant, linear decay to 2 % in the last `cooldown` steps (Haegele et al., 2024): the number of
    steps may be raised or lowered until the decay begins, and the run is still the one the settings describe."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * min(1.0, max(0.02, (steps - step) / cooldown))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = value


def update(optimizer: torch.optim.Optimizer, value: torch.Tensor) -> None:
    """One step down the gradient of `value`, whose norm is clipped to 1."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(value)
    torch.nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()


def save_checkpoint(path: Path, state: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Write a checkpoint and the settings it was made with, atomically: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        torch.save({**state, "settings": json.dumps(chosen, sort_keys=True)}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path, chosen: dict[str, Any], free: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """The last checkpoint, or None where there is none or it was made with other settings (said on stderr).

    Args:
        chosen: the settings of this run.
        free: settings that may differ, beside `checkpoint_every` and `compile`.
    """
    if not path.is_file():
        return None
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    before = json.loads(found["settings"])
    free = (*free, "checkpoint_every", "compile")
    differing = sorted(name for name in {*before, *chosen} if name not in free and before.get(name) != chosen.get(name))
    if differing:
        print(f"{path} was made with other settings ({', '.join(differing)}): starting anew", file=sys.stderr)
        return None
    return found


def batch_rows(seed: int, step: int, batch: int, count: int) -> torch.Tensor:
    """Rows of one batch, int64 [batch]: a fresh shuffle per epoch, a pure function of (seed, step)."""
    batch = min(batch, count)
    per_epoch = count // batch
    epoch, position = divmod(step, per_epoch)
    if _shuffle.get("key") != (seed, epoch, count):
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        _shuffle.update(key=(seed, epoch, count), order=torch.randperm(count, generator=generator))
    order: torch.Tensor = _shuffle["order"]
    return order[position * batch : (position + 1) * batch]


_shuffle: dict[str, Any] = {}  # the last epoch's order; only a cache


def progress(name: str, first: int, steps: int, notes: dict[str, float], every: int = 100) -> Iterator[int]:
    """Count steps: a bar on a terminal, plain lines in logs. `notes` is read when a line is printed."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(range(first, steps), initial=first, total=steps, desc=name)
        for step in bar:
            yield step
            if step % 20 == 0:
                bar.set_postfix({key: f"{value:.4g}" for key, value in notes.items()})
        return
    started = time.monotonic()
    for step in range(first, steps):
        yield step
        if (step + 1) % every == 0 or step + 1 == steps:
            rate = (step + 1 - first) / (time.monotonic() - started)
            text = " ".join(f"{key}={value:.4g}" for key, value in notes.items())
            print(f"{name} step {step + 1}/{steps} {text} {rate:.2f} steps/s", file=sys.stderr, flush=True)
