"""What one few-shot run learns from: features of its real shots, its validation images, its synthetic images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.head import Head
from pipeline_lib.datasets.shots import read_shots
from pipeline_lib.embeddings import prepared_images, read_embeddings, read_selected
from pipeline_lib.real_filter import RealFilter, real_filter
from pipeline_lib.records import DrawnImage
from pipeline_lib.sets import member_paths
from pipeline_lib.store import Store


def real_examples(
    store: Store, run: Mapping[str, Any], class_names: Sequence[str], validation_per_class: int
) -> tuple[Examples, Examples]:
    """The shots of a run, and its validation images: as many a class as there are shots, at the most
    `validation_per_class`.

    run: its number of `shots`, and the paths of what was `drawn` (JSON) and of the features (`real`).
    """
    n_shots = run["shots"]
    drawn = read_shots(store.path(run["drawn"]), at_least=n_shots)
    row_of, features = _rows(store, run["real"])

    def examples(images: Mapping[str, Sequence[DrawnImage]], per_class: int) -> Examples:
        chosen = [(index, image) for index, name in enumerate(class_names) for image in images[name][:per_class]]
        rows = [row_of[image.image_id] for _, image in chosen]
        return Examples(features[rows], np.array([index for index, _ in chosen], np.int64))

    return examples(drawn.shots, n_shots), examples(drawn.validation, min(n_shots, validation_per_class))


def _rows(store: Store, path: str) -> tuple[dict[str, int], NDArray[np.float16]]:
    """Features of a shard, and the row of each image in them."""
    (shard,) = read_embeddings(store, [path])
    return {image_id: row for row, image_id in enumerate(shard.table["image_id"].to_pylist())}, shard.features


def synthetic_examples(store: Store, run: Mapping[str, Any], class_names: Sequence[str]) -> Examples | None:
    """The synthetic images of a run, None where it has none: those that its `manifest` keeps, else all valid ones."""
    if "synthetic" not in run:
        return None
    if "manifest" in run:
        manifest = pq.read_table(store.path(run["manifest"]), columns=["image_id", "class_index", "kept"])
        features = read_selected(store, member_paths(store, run["synthetic"]), manifest)
        return Examples(features, manifest["class_index"].to_numpy()[manifest["kept"].to_numpy()])
    shards = list(read_embeddings(store, run["synthetic"]))
    valid = [shard.table["valid"].to_numpy() for shard in shards]
    return Examples(
        np.concatenate([shard.features[rows] for shard, rows in zip(shards, valid, strict=True)]),
        np.concatenate([shard.class_index(class_names)[rows] for shard, rows in zip(shards, valid, strict=True)]),
    )


def real_filter_of(store: Store, spec: Mapping[str, Any], class_index: NDArray[np.integer[Any]]) -> RealFilter:
    """How close synthetic images lie to real shots of other classes, for the spec of a manifest with `real_filter`
    whose images have the classes `class_index` [N]."""
    settings = spec["real_filter"]
    shots, validation = real_examples(
        store,
        {"shots": settings["n_shots"], "drawn": settings["shots"], "real": settings["embeddings"]},
        spec["class_names"],
        settings["validation_per_class"],
    )
    shards = read_embeddings(store, member_paths(store, spec["embeddings"]))
    features = np.concatenate([shard.features for shard in shards])
    return real_filter(features, class_index, shots, validation, settings["quantile"])


def batch_norm_data(
    store: Store, spec: Mapping[str, Any], run: Mapping[str, Any], encoder: Any, head: Head, workers: int
) -> tuple[list[Any], NDArray[np.int64], NDArray[np.float32] | None]:
    """The images of one run with batch norm in train mode, as the encoder takes them; their classes [N]; and, for
    synthetic images, the zero-shot logits [N, n_classes] of the untouched encoder, from its cached features."""
    if "drawn" in run:
        drawn = read_shots(store.path(run["drawn"]), at_least=run["shots"]).shots
        class_of = {
            image.image_id: index
            for index, name in enumerate(spec["class_names"])
            for image in drawn[name][: run["shots"]]
        }
    else:
        manifest = pq.read_table(store.path(run["manifest"]), columns=["image_id", "class_index", "kept"])
        kept = manifest.filter(manifest["kept"])
        class_of = dict(zip(kept["image_id"].to_pylist(), kept["class_index"].to_pylist(), strict=True))
    paths = [store.path(path) for path in run["images"]]
    ids = [image_id for path in paths for image_id in pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()]
    images = [
        image
        for image_id, image in zip(ids, prepared_images(paths, encoder, workers), strict=True)
        if image_id in class_of
    ]
    classes = np.array([class_of[image_id] for image_id in ids if image_id in class_of], np.int64)
    if "manifest" not in run:
        return images, classes, None
    features = read_selected(store, member_paths(store, spec["embeddings"]), manifest)
    return images, classes, head.logits(features)
