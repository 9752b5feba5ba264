"""Real images into one canonical form: shards that hold the images' own bytes.

A real image is never altered: a JPEG, PNG or WebP file goes into the shard as it is (decoding ImageNet and storing it
losslessly would take ten times the room), all else as PNG. An EXIF orientation is kept with the bytes; width and height
are those of the image as it is shown, and as `shards.decode_image` gives it. Each image is decoded once, to prove that
it is whole.
"""

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline_lib.datasets.fingerprints import raw_fingerprint
from pipeline_lib.datasets.loaders.split import Raw, RealSplit, class_name_of, image_id
from pipeline_lib.datasets.shots import positions_of, read_shots
from pipeline_lib.digests import DigestCache
from pipeline_lib.errors import UserError
from pipeline_lib.progress import Progress
from pipeline_lib.records import IMAGES_PER_ROW_GROUP
from pipeline_lib.shards import FORMATS, encode_image, image_row, upright, write_shard
from pipeline_lib.store import Artifact, Store

# Pillow's names of what is kept as it is. MPO is a JPEG that a camera appended a preview to.
_KEPT = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}
_DEEP_MODES = ("I", "F")  # beginnings of Pillow's modes of more than 8 bits: converting them to RGB clips
# An encoder enlarges the short side to some 300 pixels before it crops: of a longer strip that would be gigabytes.
_MOST_ELONGATED = 3000
_MAX_THREADS = 8


@dataclass(frozen=True)
class EncodedImage:
    """An image as it is stored."""

    content: bytes
    image_format: str
    width: int
    height: int


class _DamagedShardError(Exception):
    """Some images of the shard in hand are damaged: it is not to be kept."""


def encode(raw: Raw) -> EncodedImage:
    """An image's own bytes where they are a still JPEG, PNG or WebP; else the same pixels as PNG.

    Raises ValueError for more than 8 bits per channel and for a strip that no encoder can use, and whatever Pillow
    raises for bytes that are no whole image.
    """
    if isinstance(raw, np.ndarray):
        height, width = raw.shape[:2]
        return EncodedImage(encode_image(raw, "png"), "png", width, height)
    with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
        if image.mode.startswith(_DEEP_MODES):
            raise ValueError(f"mode {image.mode} has more than 8 bits per channel; convert it to 8 bits")
        kept = _KEPT.get(image.format or "")
        is_still = image.format == "MPO" or getattr(image, "n_frames", 1) == 1
        image.load()
        if max(image.size) > _MOST_ELONGATED * min(image.size):
            raise ValueError(
                f"{image.width} x {image.height} pixels: the sides differ by more than a factor of {_MOST_ELONGATED}; "
                f"crop it"
            )
        shown = upright(image)
        if kept is not None and is_still:
            return EncodedImage(raw, kept, *shown.size)
        pixels = np.asarray(shown.convert("RGB"))
        return EncodedImage(encode_image(pixels, "png"), "png", *shown.size)


def prepare(split: RealSplit, units: Sequence[Artifact], store: Store) -> None:
    """Write shards of a split, in order, with images decoded in threads.

    Damaged images stop the run when all units have been seen: the `UserError` counts and names them. Shards without
    any are written all the same. Records say how many images the split had, and of an official download what it was.
    """
    _write(split, units, store, [_range(unit, split) for unit in units])


def prepare_shots(split: RealSplit, units: Sequence[Artifact], store: Store) -> None:
    """Write the shards of draws from a split (see `units.shot_images_spec`), one a draw; as `prepare` does.

    Images go class by class, in the order of the class names: shots, then validation images. No other image is read.
    """
    drawn = [read_shots(store.path(unit.spec["shots"])) for unit in units]
    _write(split, units, store, [positions_of(shots, split) for shots in drawn])


def _write(split: RealSplit, units: Sequence[Artifact], store: Store, positions: Sequence[Sequence[int]]) -> None:
    """Write units whose images are at `positions` of the split."""
    damaged: dict[int, str] = {}  # what is wrong, by position: several draws may hold the same image
    details = {"n_images": len(split), **_raw_data(units[0], store)}
    threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    total = sum(map(len, positions))
    with Progress("real images", total, "images") as progress, ThreadPoolExecutor(threads) as pool:
        for unit, own in zip(units, positions, strict=True):
            with suppress(_DamagedShardError), store.making(unit, details) as path:
                write_shard(_rows(unit, split, own, pool, progress, damaged), path, unit.spec)
    if damaged:
        location = units[0].location
        place = location.get("root") or location.get("folder") or location.get("id")
        raise UserError(
            f"{units[0].spec['dataset']}: {len(damaged)} files{f' in {place}' if place else ''} cannot be read as "
            f"images: {'; '.join(islice(damaged.values(), 5))}. "
            f"Unpack or download them again; in data of your own, replace or remove them"
        )


def _raw_data(unit: Artifact, store: Store) -> dict[str, str | None]:
    if "loader" not in unit.spec:
        return {}
    root, digests = Path(unit.location["root"]), DigestCache(store.root / "digests.json")
    return {"raw_data": raw_fingerprint(unit.spec["loader"], unit.spec["split"], root, digests)}


def _range(unit: Artifact, split: RealSplit) -> range:
    return range(unit.spec["start"], len(split) if unit.spec["stop"] is None else unit.spec["stop"])


def _rows(
    unit: Artifact,
    split: RealSplit,
    positions: Sequence[int],
    pool: ThreadPoolExecutor,
    progress: Progress,
    damaged: dict[int, str],
) -> Iterator[dict[str, Any]]:
    """The rows of a shard. Damaged images are added to `damaged`; at the end they are why there is no shard."""
    names = class_name_of(unit.spec)
    is_whole = True
    for start in range(0, len(positions), IMAGES_PER_ROW_GROUP):  # block by block: bounds the memory
        block = positions[start : start + IMAGES_PER_ROW_GROUP]
        for position, encoded in zip(block, pool.map(partial(_try_encode, split), block), strict=True):
            progress.update(1)
            if isinstance(encoded, str):
                damaged[position] = encoded
                is_whole = False
                continue
            source_id = split.source_ids[position]
            yield image_row(
                image_id(unit.spec, source_id),
                encoded.content,
                encoded.image_format,
                encoded.width,
                encoded.height,
                image={"bytes": encoded.content, "path": split.paths[position]},
                class_name=names[split.labels[position]],
                source_id=source_id,
            )
    if not is_whole:
        raise _DamagedShardError


def _try_encode(split: RealSplit, position: int) -> EncodedImage | str:
    """An image, or what is wrong with it."""
    try:
        return encode(split.read(position))
    except UnidentifiedImageError:  # its message names a buffer
        return f"{split.paths[position]} (none of {', '.join(FORMATS)})"
    except Exception as error:  # Pillow's decoders have a class for every fault
        return f"{split.paths[position]} ({error})"
