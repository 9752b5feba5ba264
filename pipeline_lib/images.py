"""Synthetic images: which ones a shard holds, and the loop that samples, encodes and writes them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.batches import Batches
from pipeline_lib.errors import UserError
from pipeline_lib.generators import Generator
from pipeline_lib.generators.reading import lost_name
from pipeline_lib.progress import Progress
from pipeline_lib.references import Reference, References
from pipeline_lib.seeds import derive_seed
from pipeline_lib.shards import encode_image, image_row, read_rows, write_shard
from pipeline_lib.store import Artifact, Store
from pipeline_lib.timings import phase
from pipeline_lib.yaml_files import shortened

log = logging.getLogger(__name__)
ENCODING_THREADS = 4  # one makes some 40 PNGs of 512 x 512 a second: fewer than a fast generator draws
BLANK_RANGE = 2 / 255  # an image whose brightest and darkest values are this close shows nothing


@dataclass(frozen=True)
class Request:
    """One image to draw: number `index` of its class."""

    image_id: str
    class_name: str
    prompt_id: str
    prompt: str
    seed: int
    reference: Reference | None = None


def requests(shard: Artifact, store: Store, references: References | None = None) -> list[Request]:
    """The images of a shard, in order. `references`: what has read shots already, if something has.

    Image number i of a class shows prompt i mod P of the class's P prompts, for the (i div P)-th time; its seed is
    derived from (run seed, prompt id, i div P). So an image does not depend on how many are asked for.

    With `real_guidance` in the spec (start, n_shots, and the paths shots and images, see `References.of_class`) it
    starts from one of the class's M shots, number (i + i div lcm(P, M)) mod M: shots take turns, and every prompt has
    met every shot before one meets a shot again.
    """
    spec = shard.spec
    guidance, references = spec.get("real_guidance"), references or References(store)
    prompts = pq.read_table(store.path(spec["prompts"])).to_pylist()
    recipe = Path(shard.folder).name
    drawn = []
    for index in range(spec["start"], spec["stop"]):
        prompt = prompts[index % len(prompts)]
        shots = references.of_class(guidance, prompt["class_name"]) if guidance else None
        drawn.append(
            Request(
                image_id=f"{recipe}-{index:06d}",
                class_name=prompt["class_name"],
                prompt_id=prompt["prompt_id"],
                prompt=prompt["prompt"],
                seed=derive_seed(spec["seed"], prompt["prompt_id"], index // len(prompts)),
                reference=shots[(index + index // lcm(len(prompts), len(shots))) % len(shots)] if shots else None,
            )
        )
    return drawn


def is_valid(pixels: NDArray[np.float32]) -> bool:
    """Whether an image [height, width, 3] in [0, 1] is finite and not blank."""
    return bool(np.isfinite(pixels).all()) and float(pixels.max() - pixels.min()) > BLANK_RANGE


class _ShardInMaking:
    """A shard's images: those that overlapping shards of the same recipe already hold, and those that are drawn.

    In memory are only the drawn ones, encoded; the others are read when the shard is written.
    """

    def __init__(self, artifact: Artifact, store: Store, references: References):
        self.artifact = artifact
        self._store = store
        self._requests = requests(artifact, store, references)
        elsewhere = _elsewhere(artifact, store)
        self._taken_over = {r.image_id: elsewhere[r.image_id] for r in self._requests if r.image_id in elsewhere}
        self._drawn: dict[str, dict[str, Any]] = {}
        self.missing = [request for request in self._requests if request.image_id not in self._taken_over]
        self._n_to_draw = len(self.missing)

    @property
    def is_whole(self) -> bool:
        return len(self._drawn) == self._n_to_draw

    def add(self, row: dict[str, Any]) -> None:
        self._drawn[row["image_id"]] = row

    def write(self, details: Mapping[str, Any]) -> None:
        """Write the shard, in the order of its requests."""
        n_invalid = sum(not row["valid"] for row in self._drawn.values())
        n_invalid += sum(not valid for _, valid in self._taken_over.values())
        if n_invalid:
            log.warning(
                "%s: %d of %d images are blank or not finite; they are marked invalid",
                self.artifact.path,
                n_invalid,
                len(self._requests),
            )
        details = {"n_invalid": n_invalid, **details, "n_drawn": self._n_to_draw}
        with self._store.making(self.artifact, details) as path:
            write_shard(self._rows(), path, self.artifact.spec)
        self._drawn.clear()

    def _rows(self) -> Iterator[dict[str, Any]]:
        def source(request: Request) -> Path | None:
            return self._taken_over.get(request.image_id, (None, True))[0]

        for path, run in groupby(self._requests, source):
            wanted = [request.image_id for request in run]
            if path is None:
                yield from (self._drawn[image_id] for image_id in wanted)
            else:  # shards are sorted by image id, which ends in the image's zero-padded number
                ids = frozenset(wanted)
                yield from (row for row in read_rows(path) if row["image_id"] in ids)


def _elsewhere(shard: Artifact, store: Store) -> dict[str, tuple[Path, bool]]:
    """The images of shorter or longer shards of the same recipe that overlap this one: file and validity by id."""
    found: dict[str, tuple[Path, bool]] = {}
    for path in sorted((store.root / shard.folder).glob("[0-9]*-[0-9]*.parquet")):
        other = f"{shard.folder}/{path.name}"
        start, stop = (int(part) for part in path.stem.split("-"))
        overlaps = start < shard.spec["stop"] and shard.spec["start"] < stop
        if overlaps and other != shard.path and store.is_intact(other):
            table = pq.read_table(path, columns=["image_id", "valid"])
            found |= {row["image_id"]: (path, row["valid"]) for row in table.to_pylist()}
    return found


_Drawing = tuple[_ShardInMaking, Request]


def make_shards(shards: Sequence[Artifact], store: Store, load: Callable[[], Generator], batches: Batches) -> None:
    """Draw the images of all `shards`, in batches that run across shards; write each shard when its last image is done.

    `load` is called only if there is something to draw. While a batch is sampled, the one before it is encoded, by
    several threads, so two batches and an unfinished shard are in memory; with real guidance, the encoded references
    too. A shard whose images are all drawn is written before the next batch is sampled. Raises ValueError for shards
    that do not all start at one t*: it is the generator's.
    """
    starts = {shard.spec["real_guidance"]["start"] if shard.spec.get("real_guidance") else None for shard in shards}
    if len(starts) > 1:
        raise ValueError(f"shards: one call has one generator, and these start at {starts}")
    references = References(store)
    making = [_ShardInMaking(shard, store, references) for shard in shards]
    todo = [(shard, request) for shard in making for request in shard.missing]
    n_wanted = sum(shard.spec["stop"] - shard.spec["start"] for shard in shards)
    log.info("%d images to draw, %d taken over from other shards", len(todo), n_wanted - len(todo))
    for shard in making:
        if shard.is_whole:
            shard.write({})
    if not todo:
        return
    references.read(request.reference for _, request in todo if request.reference is not None)
    generator = load()
    n_cut = _cut_prompts(todo, generator)

    def sample(batch: Sequence[_Drawing]) -> tuple[Sequence[_Drawing], NDArray[np.float32]]:
        wanted = [request.reference for _, request in batch if request.reference is not None]
        real = references.images(wanted) if wanted else None
        with phase("sampling"):
            return batch, generator.generate([r.prompt for _, r in batch], [r.seed for _, r in batch], real)

    details = {"device": generator.device, "dtype": generator.dtype, "safety_checker": "off"}

    def finish(batch: Sequence[_Drawing], pixels: NDArray[np.float32]) -> None:
        formats = [shard.artifact.spec["format"] for shard, _ in batch]
        rows = encoders.map(_row, [request for _, request in batch], pixels, formats)
        for (shard, _), row in zip(batch, rows, strict=True):
            shard.add(row)
            if shard.is_whole:
                cut = {"n_cut_prompts": n_cut[shard.artifact.path]} if shard.artifact.path in n_cut else {}
                shard.write({**details, **cut, "batch_size": batches.size})

    with (
        Progress("images", len(todo), "images") as progress,
        ThreadPoolExecutor(ENCODING_THREADS) as encoders,
        ThreadPoolExecutor(1) as writer,
    ):
        writing: Future[None] | None = None
        for batch, pixels in batches.map(sample, todo):
            if writing is not None:
                writing.result()  # one batch in flight: bounds the memory, and reports a failed write at once
            writing = writer.submit(finish, batch, pixels)
            if any(request is shard.missing[-1] for shard, request in batch):
                # A shard is on the disk before more is drawn: a killed job loses one at most. The wait is short against
                # the sampling of a shard.
                writing.result()
            progress.update(len(batch))
        if writing is not None:
            writing.result()


def _cut_prompts(todo: Sequence[_Drawing], generator: Generator) -> Counter[str]:
    """By path of the shard, how many of the prompts that are to be drawn lose their end in the text encoder.

    Raises `UserError` where what it does not read is the class's name, or a part of the negative prompt.
    """
    negative = todo[0][0].artifact.spec.get("negative_prompt", "")
    if (beginning := generator.read(negative)) != negative:
        raise UserError(
            f"images.negative_prompt: the text encoder reads of {shortened(negative)} no more than "
            f"{shortened(beginning)}; shorten it"
        )
    read = {prompt: generator.read(prompt) for prompt in dict.fromkeys(request.prompt for _, request in todo)}
    for class_name, prompt in dict.fromkeys((request.class_name, request.prompt) for _, request in todo):
        if fault := lost_name(class_name, prompt, read[prompt]):
            raise UserError(fault)
    if cut := sorted(prompt for prompt, beginning in read.items() if beginning != prompt):
        log.warning(
            "%d of %d prompts are longer than what the text encoder reads: of %s it reads %s",
            len(cut),
            len(read),
            shortened(cut[0]),
            shortened(read[cut[0]]),
        )
    drawn = {(shard.artifact.path, request.prompt) for shard, request in todo}
    return Counter(path for path, prompt in drawn if read[prompt] != prompt)


def _row(request: Request, pixels: NDArray[np.float32], image_format: str) -> dict[str, Any]:
    """A drawn image as a row of its shard; pixels are float32 [height, width, 3] in [0, 1]."""
    valid = is_valid(pixels)
    # What is stored of an invalid image is black: its bytes must still decode.
    rounded = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8) if valid else np.zeros(pixels.shape, np.uint8)
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
        reference_id=request.reference.image_id if request.reference else None,
        valid=valid,
    )
