"""Images per second: of the loop around a generator, and of a generator on the present device.

The loop alone, around a generator that costs nothing (what it writes per second must be above what a GPU draws):

    python benchmarks/generation.py

A model, end to end as the stage `images` runs it; on a GPU, for example Stable Diffusion 1.5 in half precision:

    python benchmarks/generation.py --model FOLDER --device cuda --batch-size 32 --images 512 --steps 50

and with real guidance, from 16 references per class that are noised to t*/T = 0.15:

    python benchmarks/generation.py --model FOLDER --start 0.15

It prints images per second, the share of the wall time that was spent sampling (on a GPU: in which the GPU had work, as
a batch's time ends when its pixels are in host memory), and the peak of the GPU's memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib import images
from pipeline_lib.batches import Batches
from pipeline_lib.generators import Generator, load_generator
from pipeline_lib.prompts import basic_prompts, write_prompts
from pipeline_lib.records import DrawnImage, Shots
from pipeline_lib.shards import encode_image, image_row, write_shard
from pipeline_lib.store import Artifact, Store

PER_SHARD = 250
SHOTS = 16  # references per class
CLASS_NAMES = ("tench", "goldfish", "great white shark", "tiger shark")


class Instant:
    """A generator whose images cost nothing to draw: squares with a little noise, in PNG as large as photographs."""

    device = "none"
    dtype = "float32"

    def __init__(self, size: int, batch_size: int):
        random = np.random.default_rng(0)
        coarse = random.random((batch_size, 8, 8, 3), np.float32).repeat(size // 8, 1).repeat(size // 8, 2)
        noise = random.normal(0, 0.01, coarse.shape).astype(np.float32)
        self._images = np.clip(coarse + noise, 0, 1)

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], references: Sequence[Image.Image] | None = None
    ) -> NDArray[np.float32]:
        """See `Generator.generate`."""
        return self._images[: len(prompts)]

    def read(self, prompt: str) -> str:
        """See `Generator.read`."""
        return prompt


class Timed:
    """Counts the seconds that a generator samples."""

    def __init__(self, generator: Generator):
        self.device, self.dtype = generator.device, generator.dtype
        self.seconds = 0.0
        self._generator = generator

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], references: Sequence[Image.Image] | None = None
    ) -> NDArray[np.float32]:
        """See `Generator.generate`."""
        started = time.perf_counter()
        try:
            return self._generator.generate(prompts, seeds, references)
        finally:
            self.seconds += time.perf_counter() - started

    def read(self, prompt: str) -> str:
        """See `Generator.read`."""
        return self._generator.read(prompt)


def write_shots(store: Store, size: int) -> dict[str, Any]:
    """Write references of each class, squares with a little noise; returns what a spec's `real_guidance` says of them,
    but for the start."""
    shots: dict[str, list[DrawnImage]] = {}
    rows = []
    images = Instant(size, len(CLASS_NAMES) * SHOTS).generate([""] * len(CLASS_NAMES) * SHOTS, [])
    for number, pixels in enumerate(np.round(images * 255).astype(np.uint8)):
        class_name, image_id = CLASS_NAMES[number // SHOTS], f"real-{number:06d}"
        drawn = DrawnImage(image_id=image_id, source_id=number, path=f"{number}.png")
        shots.setdefault(class_name, []).append(drawn)
        rows.append(image_row(image_id, encode_image(pixels, "png"), "png", size, size, class_name=class_name))
    record = Shots(dataset="benchmark", split="train", seed=0, shots=shots, validation={})
    store.path("shots.json").write_text(record.model_dump_json(), encoding="utf-8")
    write_shard(rows, store.path("shots.parquet"), {})
    return {"n_shots": SHOTS, "shots": "shots.json", "images": "shots.parquet"}


def draw(
    generator: Timed, n: int, batch_size: int, image_format: str, start: float | None = None, size: int = 0
) -> float:
    """Draw `n` images into a store that is thrown away, from references of `size` pixels where there is a `start`;
    returns the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        store, shards = Store(Path(folder)), []
        guidance = None if start is None else {"start": start, **write_shots(store, size)}
        for number in range(0, n, PER_SHARD):
            class_name = CLASS_NAMES[number // PER_SHARD % len(CLASS_NAMES)]
            prompts = f"prompts/{number}.parquet"
            store.path(prompts).parent.mkdir(exist_ok=True)
            write_prompts(basic_prompts(class_name, "a photo of a {}"), store.path(prompts))
            spec = {"prompts": prompts, "seed": 0, "format": image_format}
            spec |= {"start": number, "stop": min(number + PER_SHARD, n), "real_guidance": guidance}
            shards.append(Artifact("images/benchmark", spec, ".parquet"))
        started = time.perf_counter()
        images.make_shards(shards, store, lambda: generator, Batches(batch_size, "images"))
        return time.perf_counter() - started


def loop(n: int, batch_size: int, image_format: str) -> None:
    """Print the loop's own speed, by image size and threads."""
    for size in (256, 512):
        for threads in (1, 4):
            images.ENCODING_THREADS = threads
            seconds = draw(Timed(Instant(size, batch_size)), n, batch_size, image_format)
            print(f"loop: {n / seconds:.0f} images/s of {size}x{size} as {image_format}, {threads} encoding threads")


def model(options: argparse.Namespace) -> None:
    """Print a model's speed, the first batch (kernels are chosen, networks compiled) left out."""
    settings = {
        "steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "negative_prompt": "",
        "scheduler": options.scheduler,
        "height": options.size,
        "width": options.size,
        "dtype": options.dtype,
        "real_guidance": None if options.start is None else {"start": options.start},
    }
    started = time.perf_counter()
    generator = load_generator(
        options.model, options.revision, settings, device=options.device, compile=options.compile
    )
    loaded = time.perf_counter()
    count, reference = options.batch_size, Image.new("RGB", (64, 64))
    references = None if options.start is None else [reference] * count
    height, width = generator.generate(["a photo of a dog"] * count, range(count), references).shape[1:3]
    print(f"loaded in {loaded - started:.1f} s, first batch in {time.perf_counter() - loaded:.1f} s")
    timed = Timed(generator)
    seconds = draw(timed, options.images, options.batch_size, options.format, options.start, height)
    what = f"{Path(options.model).name} on {generator.device} in {generator.dtype}, {height}x{width}"
    steps = f"{options.steps} steps" + ("" if options.start is None else f" from t*/T = {options.start}")
    print(
        f"{what}, {steps}, batches of {options.batch_size}: {options.images / seconds:.2f} images/s, "
        f"{100 * timed.seconds / seconds:.0f}% of the time sampling"
    )
    if generator.device == "cuda":
        import torch

        print(f"{torch.cuda.get_device_name()}, peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def main() -> None:
    """Parse the options and print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="pipeline folder or hub id; without one, the loop alone is timed")
    parser.add_argument("--revision", help="commit of the hub id")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--start", type=float, help="real guidance: t*/T, 0 to 1; default: from text alone")
    parser.add_argument("--scheduler")
    parser.add_argument("--size", type=int, help="height and width in pixels; default: the model's own")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--format", default="png", choices=("png", "jpeg", "webp"))
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.model is None:
        loop(options.images, options.batch_size, options.format)
    else:
        model(options)


if __name__ == "__main__":
    main()
