"""Synthetic images: which ones a shard holds, and the loop that samples, encodes and writes them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.generators import Generator
from pipeline_lib.progress import Progress
from pipeline_lib.seeds import derive_seed
from pipeline_lib.shards import encode_image, image_row, read_rows, write_shard
from pipeline_lib.store import Artifact, Store
from pipeline_lib.timings import phase

log = logging.getLogger(__name__)
BLANK_RANGE = 2 / 255  # an image whose brightest and darkest values are this close shows nothing


@dataclass(frozen=True)
class Request:
    """One image to draw: number `index` of its class."""

    image_id: str
    class_name: str
    prompt_id: str
    prompt: str
    seed: int


def requests(shard: Artifact, store: Store) -> list[Request]:
    """The images of a shard, in order.

    Image number i of a class shows prompt i mod P of the class's P prompts, for the (i div P)-th time; its seed is
    derived from (run seed, prompt id, i div P). So an image does not depend on how many are asked for.
    """
    spec = shard.spec
    prompts = pq.read_table(store.path(spec["prompts"])).to_pylist()
    recipe = Path(shard.folder).name
    drawn = []
    for index in range(spec["start"], spec["stop"]):
        prompt = prompts[index % len(prompts)]
        drawn.append(
            Request(
                image_id=f"{recipe}-{index:06d}",
                class_name=prompt["class_name"],
                prompt_id=prompt["prompt_id"],
                prompt=prompt["prompt"],
                seed=derive_seed(spec["seed"], prompt["prompt_id"], index // len(prompts)),
            )
        )
    return drawn


def is_valid(pixels: NDArray[np.float32]) -> bool:
    """Whether an image [height, width, 3] in [0, 1] is finite and not blank."""
    return bool(np.isfinite(pixels).all()) and float(pixels.max() - pixels.min()) > BLANK_RANGE


def existing_rows(shard: Artifact, store: Store) -> dict[str, dict[str, Any]]:
    """Rows of this shard that shorter or longer shards of the same recipe already hold, by image id."""
    wanted = {request.image_id for request in requests(shard, store)}
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((store.root / shard.folder).glob("[0-9]*-[0-9]*.parquet")):
        other = f"{shard.folder}/{path.name}"
        start, stop = (int(part) for part in path.stem.split("-"))
        overlaps = start < shard.spec["stop"] and shard.spec["start"] < stop
        if overlaps and other != shard.path and store.is_intact(other):
            found |= {row["image_id"]: row for row in read_rows(path) if row["image_id"] in wanted}
    return found


def make_shards(shards: Sequence[Artifact], store: Store, load: Callable[[], Generator], batch_size: int) -> None:
    """Draw the images of all `shards`, in batches that run across shards; write each shard when its last image is done.

    `load` is called only if there is something to draw. Encoding and writing overlap the sampling of the next batch.
    """
    known = {shard.path: existing_rows(shard, store) for shard in shards}
    wanted = [(shard, request) for shard in shards for request in requests(shard, store)]
    todo = [(shard, request) for shard, request in wanted if request.image_id not in known[shard.path]]
    log.info("%d images to draw, %d taken over from other shards", len(todo), len(wanted) - len(todo))
    generator = load() if todo else None
    details: dict[str, Any] = {"batch_size": batch_size, "n_drawn": 0}
    if generator is not None:
        details |= {"device": generator.device, "dtype": generator.dtype}
    n_drawn = Counter(shard.path for shard, _ in todo)
    left = n_drawn.copy()

    def finish(batch: Iterable[tuple[Artifact, Request]], pixels: NDArray[np.float32]) -> None:
        for (shard, request), image in zip(batch, pixels, strict=True):
            known[shard.path][request.image_id] = _row(request, image, shard.spec["format"])
            left[shard.path] -= 1
            if not left[shard.path]:
                _write(shard, store, known.pop(shard.path), details | {"n_drawn": n_drawn[shard.path]})

    for shard in shards:
        if not left[shard.path]:
            _write(shard, store, known.pop(shard.path), details)
    if generator is None:
        return
    with Progress("images", len(todo), "image") as progress, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        position = 0
        while position < len(todo):
            batch = todo[position : position + batch_size]
            try:
                with phase("sampling"):
                    pixels = generator.generate([r.prompt for _, r in batch], [r.seed for _, r in batch])
            except MemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                log.warning("out of memory: the batch is halved to %d images", batch_size)
                continue
            if writing is not None:
                writing.result()  # one batch in flight: bounds the memory, and reports a failed write at once
            writing = writer.submit(finish, batch, pixels)
            position += len(batch)
            progress.update(len(batch))
        if writing is not None:
            writing.result()


def _row(request: Request, pixels: NDArray[np.float32], image_format: str) -> dict[str, Any]:
    valid = is_valid(pixels)
    # What is stored of an invalid image is black: its bytes must still decode.
    rounded = (
        np.round(np.clip(np.nan_to_num(pixels), 0, 1) * 255).astype(np.uint8)
        if valid
        else np.zeros(pixels.shape, np.uint8)
    )
    height, width = rounded.shape[:2]
    return image_row(
        request.image_id,
        encode_image(rounded, image_format),
        image_format,
        width,
        height,
        class_name=request.class_name,
        prompt_id=request.prompt_id,
        prompt=request.prompt,
        seed=request.seed,
        valid=valid,
    )


def _write(shard: Artifact, store: Store, rows: Mapping[str, dict[str, Any]], details: Mapping[str, Any]) -> None:
    ordered = [rows[image_id] for image_id in sorted(rows)]  # ids end in the zero-padded index
    n_invalid = sum(not row["valid"] for row in ordered)
    if n_invalid:
        log.warning(
            "%s: %d of %d images are blank or not finite; they are marked invalid", shard.path, n_invalid, len(rows)
        )
    with store.making(shard, {"n_invalid": n_invalid, **details}) as path:
        write_shard(ordered, path, shard.spec)
