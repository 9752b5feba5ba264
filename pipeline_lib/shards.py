"""Image shards: Parquet files of encoded images, one row per image, that Hugging Face `datasets` reads as they are."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from pipeline_lib.records import IMAGES, IMAGES_PER_ROW_GROUP

# What is read, whatever a file is called. Pillow knows more: for EPS, a program, it would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},  # level 1: a third of the time of the default for a few percent of size
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
}


def encode_image(pixels: NDArray[np.uint8], image_format: str) -> bytes:
    """Encode uint8 [height, width, 3] as "png", "jpeg" or "webp"."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format.upper(), **_SAVE_OPTIONS[image_format])
    return buffer.getvalue()


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to an RGB image, turned as its EXIF orientation says, as viewers and Hugging Face `datasets` show it.

    Transparency is dropped. Raises ValueError for bytes that are no whole image, and for more pixels than Pillow's
    limit (`Image.MAX_IMAGE_PIXELS`) lets pass.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            image.load()
            return upright(image).convert("RGB")
    except Exception as error:  # Pillow's decoders have a class for every fault
        raise ValueError(f"not a readable image: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; itself, if that says nothing or cannot be read."""
    try:
        turned: Image.Image | None = ImageOps.exif_transpose(image) if orientation(image) != 1 else image
    except Exception:  # damaged EXIF data of a whole image
        return image
    return turned or image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8: 1 is upright, from 5 on width and height change places."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data of a whole image
        return 1
    return value if value in range(1, 9) else 1


def image_row(
    image_id: str, encoded: bytes, image_format: str, width: int, height: int, **columns: Any
) -> dict[str, Any]:
    """One row of a shard (schema `records.IMAGES`); `columns` are what differs between real and synthetic."""
    row: dict[str, Any] = {
        "image_id": image_id,
        "prompt_id": None,
        "prompt": None,
        "seed": None,
        "source_id": None,
        "reference_id": None,
        "image": {"bytes": encoded, "path": f"{image_id}.{image_format}"},
        "width": width,
        "height": height,
        "valid": True,
    }
    return row | columns


def write_shard(rows: Iterable[Mapping[str, Any]], path: Path, spec: Mapping[str, Any]) -> None:
    """Write rows in order, with the spec in the schema's metadata; the same rows give the same bytes.

    One row group is in memory at a time, so `rows` may be longer than the memory.
    """
    schema = IMAGES.with_metadata(
        {**(IMAGES.metadata or {}), b"pipeline_lib": json.dumps(spec, sort_keys=True).encode()}
    )
    remaining = iter(rows)
    # Encoded images do not compress again; snappy keeps the text columns small at no cost.
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        while group := list(islice(remaining, IMAGES_PER_ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a shard, one row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=IMAGES_PER_ROW_GROUP, columns=columns):
            yield from batch.to_pylist()
