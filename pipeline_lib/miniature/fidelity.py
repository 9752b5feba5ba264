"""The judge of fidelity: a small convolutional network that knows real garments in all target renderings.

It only reports how many reconstructions and generated images show the class they should; the pipeline never uses it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.miniature import targets, training
from pipeline_lib.miniature.clip import to_tensor

KINDS = tuple(kind for kind in targets.TARGETS if kind != "fine_grained")  # that one looks like "objects"


def create() -> nn.Module:
    """An untrained judge: [N, 3, 32, 32] -> logits [N, 10]."""

    def block(inside: int, outside: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *block(3, 24),
        nn.MaxPool2d(2),
        *block(24, 64),
        *block(64, 64),
        nn.MaxPool2d(2),
        *block(64, 128),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(128 * 16, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def train(images: NDArray[np.uint8], labels: NDArray[np.int64], chosen: dict[str, Any]) -> nn.Module:
    """Train on uint8 [N, 28, 28] garments, each batch in one random rendering."""
    torch.manual_seed(chosen["seed"])
    model = create().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen["lr"], weight_decay=0.02)
    notes: dict[str, float] = {}
    for step in training.progress("fidelity", 0, chosen["steps"], notes):
        rows = training.batch_rows(chosen["seed"], step, chosen["batch"], len(images)).numpy()
        rate = training.learning_rate(step, chosen["lr"], chosen["warmup"], chosen["steps"])
        training.set_learning_rate(optimizer, rate)
        # Half of the batches are the plain look that matters most.
        kind = "objects" if step % 2 == 0 else KINDS[step // 2 % len(KINDS)]
        batch = to_tensor(targets.render(kind, images[rows], rows + step * 60_000))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch)
        value = F.cross_entropy(logits.float(), torch.from_numpy(labels[rows]))
        training.update(optimizer, value)
        notes["loss"] = value.item()
    return model.eval()


@torch.no_grad()
def judge(model: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Labels the judge sees in uint8 [N, 32, 32, 3]: int64 [N]."""
    parts = [model(to_tensor(images[first : first + 500])).argmax(1) for first in range(0, len(images), 500)]
    return torch.cat(parts).numpy()


def load(path: Path) -> nn.Module:
    """Read what `main` wrote."""
    model = create()
    model.load_state_dict(load_file(path))
    return model.eval()


def main() -> None:
    """`python -m pipeline_lib.miniature.fidelity --out judge.safetensors`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the four files of Fashion-MNIST; found if not given")
    parser.add_argument("--cache", type=Path, default=Path("build/cache"), help="where fetched files are kept")
    parser.add_argument("--settings", type=Path, default=training.SETTINGS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    folder = fashion_mnist.find(args.data, args.cache)
    images, labels, _ = fashion_mnist.load_split(folder, "corpus")
    model = train(images, labels, training.settings(args.settings, "fidelity"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, args.out)
    images, labels, indices = fashion_mnist.load_split(folder, "validation")
    for kind in KINDS:
        right = judge(model, targets.render(kind, images, indices)) == labels
        print(f"{kind}: {right.mean():.4f}")


if __name__ == "__main__":
    main()
