"""Time encoding images: shards in, features out. Run: python benchmarks/embedding.py (the miniature's encoder, CPU)

On a GPU, the paper's encoder on images of the paper's size, as many as a data set of 100 classes has:
python benchmarks/embedding.py --model RN50 --pretrained openai --images 200000 --side 256 --batch-size 512 --workers 16
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline_lib.embeddings import make_embeddings
from pipeline_lib.encoders import Encoder
from pipeline_lib.shards import encode_image, image_row, write_shard
from pipeline_lib.store import Artifact, Store

DISTINCT = 200  # images drawn; more are copies of them


def draw(store: Store, n: int, side: int, image_format: str, per_shard: int) -> list[Artifact]:
    """Units to embed, of shards of smooth random images, which compress like photographs."""
    random = np.random.default_rng(0)
    encoded = []
    for _ in range(min(n, DISTINCT)):
        coarse = random.integers(0, 256, (side // 8 + 1, side // 8 + 1, 3))
        smooth = np.kron(coarse, np.ones((8, 8, 1)))[:side, :side]
        pixels = np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        encoded.append(encode_image(pixels, image_format))
    units = []
    for start in range(0, n, per_shard):
        shard = Artifact("images/drawn", {"stage": "images", "start": start}, ".parquet")
        rows = [
            image_row(f"{i:07d}", encoded[i % len(encoded)], image_format, side, side, class_name="none")
            for i in range(start, min(start + per_shard, n))
        ]
        with store.making(shard) as path:
            write_shard(rows, path, shard.spec)
        units.append(Artifact("embeddings", {"images": shard.path}, ".parquet", inputs=(shard.path,)))
    return units


def main() -> None:
    """Print one line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="local-dir:pipeline_lib/miniature/weights/clip")
    parser.add_argument("--pretrained")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--format", default="png", choices=["png", "jpeg", "webp"])
    parser.add_argument("--per-shard", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    encoder = Encoder(options.model, options.pretrained, options.batch_size, dtype=options.dtype, device=options.device)
    encoding = 0.0
    encode = encoder.encode

    def timed(batch):
        nonlocal encoding
        started = time.perf_counter()
        features = encode(batch)
        encoding += time.perf_counter() - started
        return features

    encoder.encode = timed
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        units = draw(store, options.images, options.side, options.format, options.per_shard)
        make_embeddings(units[:2], store, encoder, 0)  # warm up
        for workers in options.workers:
            encoding = 0.0
            started = time.perf_counter()
            make_embeddings(units, store, encoder, workers)
            seconds = time.perf_counter() - started
            print(
                f"embedding: {options.images / seconds:.0f} images/s, {100 * encoding / seconds:.0f}% of the time in "
                f"the encoder; {workers} workers, {options.images} {options.format} images of {options.side} x "
                f"{options.side}, batches of {options.batch_size}, {options.model} in {encoder.dtype} on "
                f"{encoder.device}"
            )


if __name__ == "__main__":
    main()
