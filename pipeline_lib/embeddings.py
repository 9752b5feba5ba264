"""Embeddings: frozen, L2-normalised image features, computed once per (image, encoder)."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.batches import Batches
from pipeline_lib.errors import UserError
from pipeline_lib.progress import Progress
from pipeline_lib.records import embeddings_schema
from pipeline_lib.shards import decode_image, read_rows
from pipeline_lib.store import Artifact, Store
from pipeline_lib.timings import phase

T = TypeVar("T")
ROWS_PER_GROUP = 10_000
COPIED = ("image_id", "class_name", "prompt", "seed", "source_id", "valid")  # columns taken over from the shard
_IMAGES_PER_TASK = 16  # decoded by one thread at a time: handing over costs as much as decoding a small image
_TASKS_AHEAD = 2  # per thread, beside the batch that is being put together: bounds the memory


class ImageEncoder(Protocol):
    """What turns images into features: `encoders.Encoder`."""

    device: str
    dtype: str
    batch_size: int

    def prepare(self, image: Image.Image) -> Any:
        """One RGB image as `encode` takes it; called in several threads at once."""

    def encode(self, prepared: Sequence[Any]) -> NDArray[np.float32]:
        """L2-normalised features, float32 [len(prepared), d]. Raises MemoryError where these are too many at once."""


# --- making -----------------------------------------------------------------------------------------------------------


def make_embeddings(units: Sequence[Artifact], store: Store, encoder: ImageEncoder, workers: int) -> None:
    """Encode the images of all `units`, in batches that run across them; write each unit when its last image is done.

    `workers` threads decode and prepare images while the encoder works; with 0 that is done in between. Writing
    overlaps too. Memory holds a few batches and the features of the shards in flight.
    """
    batches = Batches(encoder.batch_size, "images")
    paths = [store.path(unit.spec["images"]) for unit in units]
    pending = deque((unit, pq.read_metadata(path).num_rows) for unit, path in zip(units, paths, strict=True))
    done: list[NDArray[np.float32]] = []  # of the first pending units
    n_done = 0
    with (
        Progress("embeddings", sum(n for _, n in pending), "images") as progress,
        ThreadPoolExecutor(1) as writer,
    ):
        writing: Future[None] | None = None
        for batch in _batched(prepared_images(paths, encoder, workers), encoder.batch_size):
            with phase("embedding"):
                done += batches.map(encoder.encode, batch)
            n_done += len(batch)
            progress.update(len(batch))
            while pending and n_done >= pending[0][1]:
                unit, n = pending.popleft()
                features = np.concatenate(done)
                done, n_done = [features[n:]], n_done - n
                if writing is not None:
                    writing.result()  # one unit in flight: bounds the memory, and reports a failed write at once
                writing = writer.submit(_write_unit, unit, store, features[:n], encoder)
        if writing is not None:
            writing.result()
    encoder.batch_size = batches.size  # a size that did not fit is not tried again with the next units


def encode_images(prepared: Iterable[Any], encoder: ImageEncoder) -> NDArray[np.float32]:
    """Features float32 [N, d] of images that `encoder.prepare` gave, in batches."""
    batches = Batches(encoder.batch_size, "images")
    done = [part for batch in _batched(prepared, encoder.batch_size) for part in batches.map(encoder.encode, batch)]
    return np.concatenate(done)


def prepared_images(paths: Iterable[Path], encoder: ImageEncoder, workers: int) -> Iterator[Any]:
    """All images of some shards, in order, as the encoder takes them."""
    encoded = (row["image"]["bytes"] for path in paths for row in read_rows(path, ["image"]))

    def prepare(images: list[bytes]) -> list[Any]:
        return [encoder.prepare(decode_image(image)) for image in images]

    tasks = _batched(encoded, _IMAGES_PER_TASK)
    if workers == 0:
        for task in tasks:
            yield from prepare(task)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        # As far ahead as a whole batch, so that the next one is ready when the encoder has done with this one.
        ahead = _TASKS_AHEAD * workers + -(-encoder.batch_size // _IMAGES_PER_TASK)
        waiting: deque[Future[list[Any]]] = deque(pool.submit(prepare, task) for task in islice(tasks, ahead))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(prepare, task) for task in islice(tasks, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def _write_unit(unit: Artifact, store: Store, features: NDArray[np.float32], encoder: ImageEncoder) -> None:
    columns = pq.read_table(store.path(unit.spec["images"]), columns=list(COPIED))
    with store.making(unit, {"device": encoder.device, "dtype": encoder.dtype}) as path:
        write_embeddings(columns, features, path, encoder.dtype)


def write_embeddings(columns: pa.Table, features: NDArray[np.float32], path: Path, dtype: str = "float32") -> None:
    """Write features float [N, d] (stored as float16) beside the copied columns of their shard.

    Raises `UserError` for a non-finite feature of a valid image; `dtype` is the precision they were computed in.
    """
    bad = ~np.isfinite(features).all(axis=1) & columns["valid"].to_numpy()
    if bad.any():
        raise UserError(
            f"embeddings.dtype: {int(bad.sum())} of {len(bad)} features are not finite: the encoder overflows in "
            f"{dtype}; write "
            + ("another encoder, this one is damaged" if dtype == "float32" else "float32, or bfloat16 on a GPU")
        )
    schema = embeddings_schema(features.shape[1])
    values = pa.array(np.nan_to_num(features).astype(np.float16).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    table = pa.table([*(columns[name].cast(schema.field(name).type) for name in COPIED), column], schema=schema)
    pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one shard, in order: `table` has the columns `COPIED`, `features` is float16 [N, d]."""

    table: pa.Table
    features: NDArray[np.float16]

    def class_index(self, class_names: Sequence[str]) -> NDArray[np.int32]:
        """int32 [N]: position of each image's class in `class_names`. Raises ValueError for a class not among them."""
        position = {name: index for index, name in enumerate(class_names)}
        column = self.table["class_name"].unify_dictionaries().combine_chunks()
        unknown = [name for name in column.dictionary.to_pylist() if name not in position]
        if unknown:
            raise ValueError(f"images of {unknown[:5]} were found, the classes are {list(class_names)[:5]} ...")
        lookup: NDArray[np.int32] = np.array([position[name] for name in column.dictionary.to_pylist()], np.int32)
        class_index: NDArray[np.int32] = lookup[column.indices.to_numpy()]
        return class_index


def read_embeddings(store: Store, paths: Iterable[str]) -> Iterator[Features]:
    """The embeddings of several shards (paths relative to the store), one shard in memory at a time."""
    for path in paths:
        table = pq.read_table(store.path(path))
        column = table["embedding"].combine_chunks()
        features = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
        yield Features(table.select(list(COPIED)), features)


def read_selected(store: Store, paths: Iterable[str], manifest: pa.Table) -> NDArray[np.float16]:
    """Features float16 [n_kept, d] of the images that a manifest keeps; nothing but them and one shard is in memory.

    manifest: columns `image_id` and `kept`, the images of all shards in order. Raises ValueError where the shards hold
    other images.
    """
    kept = manifest["kept"].to_numpy(zero_copy_only=False)
    selected = np.empty((0, 0), np.float16)
    n_read = n_selected = 0
    for shard in read_embeddings(store, paths):
        rows = slice(n_read, n_read + len(shard.features))
        if not shard.table["image_id"].equals(manifest["image_id"][rows]):
            raise ValueError(f"manifest and embeddings are of different image sets: they differ after {n_read} images")
        if not n_read:
            selected = np.empty((int(kept.sum()), shard.features.shape[1]), np.float16)
        found = shard.features[kept[rows]]
        selected[n_selected : n_selected + len(found)] = found
        n_read, n_selected = rows.stop, n_selected + len(found)
    if n_read != len(kept):
        raise ValueError(
            f"manifest and embeddings are of different image sets: the one lists {len(kept)} images, the other {n_read}"
        )
    return selected
