"""Time re-cutting the CLIP filter on 1,000,000 scored images, from the scores file to the manifest file.

Run: python benchmarks/manifest.py
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib import stages
from pipeline_lib.records import SCORES
from pipeline_lib.store import Artifact, Store


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    n, n_classes = options.images, options.classes
    class_index = np.sort(rng.integers(0, n_classes, n)).astype(np.int32)
    prompts = pa.array([f"a photo of thing {index // 5} number {index % 5}" for index in range(5 * n_classes)])
    columns = [
        pa.array([f"0123456789abcdef-{index:06d}" for index in range(n)]),
        pa.array(class_index),
        pa.DictionaryArray.from_arrays(pa.array((class_index * 5 + rng.integers(0, 5, n)).astype(np.int32)), prompts),
        pa.array(rng.integers(0, 2**62, n)),
        pa.array(rng.random(n) > 0.001),
        pa.array((rng.random(n) ** 4).astype(np.float32)),
        pa.array(rng.integers(0, n_classes, n).astype(np.int32)),
        pa.array(rng.random(n).astype(np.float32)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        scores = Artifact("scores/benchmark", {"stage": "scores"}, ".parquet")
        with store.making(scores) as path:
            pq.write_table(pa.table(columns, schema=SCORES), path, compression="zstd")
        for threshold in ("1/N", 0.5):
            spec = {
                "stage": "manifests",
                "scores": scores.path,
                "head": "heads/benchmark/0123456789abcdef.safetensors",
                "n_classes": n_classes,
                "filter": {"threshold": threshold, "per_class": 800, "min_per_class": 8},
                "seed": 0,
            }
            manifest = Artifact("manifests/benchmark", spec, ".parquet", inputs=(scores.path,))
            started = time.perf_counter()
            stages.manifests(manifest, store)
            seconds = time.perf_counter() - started
            print(f"manifest: {seconds:.2f} s for {n} images, {n_classes} classes, threshold {threshold}")


if __name__ == "__main__":
    main()
