"""Write a corpus (scenes and captions) to a folder, and read it back.

`images.npy` uint8 [N, 32, 32, 3]; `captions.jsonl`, one object per scene: `caption`, its `body` without the medium,
and the `concepts` in the body. Only the corpus part of the training split is used.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.miniature import captions, scenes

BLOCK = 4096  # scenes composed at a time; bounds memory


@dataclass(frozen=True)
class Corpus:
    """Scenes with captions, N of each; images are memory-mapped."""

    images: NDArray[np.uint8]
    captions: list[str]
    bodies: list[str]
    concepts: list[list[str]]


def build(
    garments: NDArray[np.uint8],
    labels: NDArray[np.int64],
    out: Path,
    *,
    seed: int,
    count: int,
    plain_share: float,
    noise: float,
    loose: bool,
) -> None:
    """Compose `count` scenes from garments uint8 [M, 28, 28] with labels int64 [M] and write them to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    images_path, text_path = out / ".images.npy", out / ".captions.jsonl"
    images = np.lib.format.open_memmap(images_path, mode="w+", dtype=np.uint8, shape=(count, 32, 32, 3))
    with text_path.open("w", encoding="utf-8") as stream:
        for first in range(0, count, BLOCK):
            indices = np.arange(first, min(first + BLOCK, count))
            planned = scenes.plan(seed, indices, len(garments), plain_share)
            images[indices] = scenes.compose(garments, planned)
            texts, bodies = captions.write(seed, indices, planned, labels, noise, loose)
            stream.writelines(
                json.dumps({"caption": caption, "body": text, "concepts": concepts}) + "\n"
                for caption, (text, concepts) in zip(texts, bodies, strict=True)
            )
    images.flush()
    images_path.replace(out / "images.npy")
    text_path.replace(out / "captions.jsonl")


def load(folder: Path) -> Corpus:
    """Read what `build` wrote."""
    with (folder / "captions.jsonl").open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return Corpus(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        captions=[row["caption"] for row in rows],
        bodies=[row["body"] for row in rows],
        concepts=[row["concepts"] for row in rows],
    )


def main() -> None:
    """`python -m pipeline_lib.miniature.corpus --name web --out build/miniature/corpora/web`."""
    from pipeline_lib.miniature.training import SETTINGS, settings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="corpus in the settings file: web, loose or curated")
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument("--data", type=Path, help="folder with the four files of Fashion-MNIST; found if not given")
    parser.add_argument("--cache", type=Path, default=Path("build/cache"), help="where fetched files are kept")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    chosen = settings(args.settings, f"corpora.{args.name}")
    garments, labels, _ = fashion_mnist.load_split(fashion_mnist.find(args.data, args.cache), "corpus")
    build(
        garments,
        labels,
        args.out,
        seed=chosen["seed"],
        count=chosen["scenes"],
        plain_share=chosen["plain_share"],
        noise=chosen["noise"],
        loose=chosen["loose"],
    )


if __name__ == "__main__":
    main()
