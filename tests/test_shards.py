"""Image shards: the encodings, the layout, and what Hugging Face `datasets` needs to read them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline_lib.records import IMAGES, IMAGES_PER_ROW_GROUP
from pipeline_lib.shards import decode_image, encode_image, image_row, read_rows, write_shard

SPEC = {"stage": "images", "class_name": "grüne Fläche"}


def picture(seed: int = 0, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    """A smooth picture, as lossy formats like them."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    return np.stack([x, y, (x + y + seed / 7) % 1], axis=-1).clip(0, 1).__mul__(255).astype(np.uint8)


def rows(n: int) -> list[dict]:
    encoded = encode_image(picture(), "png")
    return [
        image_row(f"r-{i:06d}", encoded, "png", 24, 16, class_name="a/b", prompt_id="p", prompt="x", seed=i)
        for i in range(n)
    ]


@pytest.mark.parametrize(("image_format", "tolerance"), [("png", 0), ("jpeg", 8), ("webp", 12)])
def test_encodings_round_trip(image_format: str, tolerance: float):
    """PNG is lossless; JPEG and WebP are close; each is what its name says, and the same pixels give the same bytes."""
    pixels = picture()
    encoded = encode_image(pixels, image_format)
    assert Image.open(io.BytesIO(encoded)).format == image_format.upper()
    decoded = np.asarray(decode_image(encoded))
    assert np.abs(decoded.astype(int) - pixels).mean() <= tolerance
    assert decoded.shape == pixels.shape
    assert encode_image(pixels, image_format) == encoded


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_decode_to_rgb(mode: str):
    """Whatever the file holds, three channels come out."""
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, "TIFF")
    assert decode_image(buffer.getvalue()).mode == "RGB"


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_images_are_value_errors(damage: str):
    """Half an image is no image."""
    encoded = encode_image(picture(), "png")
    broken = {"truncated": encoded[: len(encoded) // 2], "empty": b"", "text": b"no image"}[damage]
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(broken)


def test_shard_reads_back_in_order_and_in_small_row_groups(tmp_path: Path):
    """One row is cheap to read: a group holds 100 images."""
    path = tmp_path / "shard.parquet"
    written = rows(250)
    write_shard(written, path, SPEC)
    assert list(read_rows(path)) == written
    assert [row["image_id"] for row in read_rows(path, ["image_id"])] == [row["image_id"] for row in written]
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 50]
    assert IMAGES_PER_ROW_GROUP == 100


def test_shard_carries_its_spec_and_is_the_same_every_time(tmp_path: Path):
    """The spec lies in the schema's metadata; the same rows give the same bytes."""
    for name in "ab":
        write_shard(rows(3), tmp_path / name, SPEC)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads(pq.read_schema(tmp_path / "a").metadata[b"pipeline_lib"]) == SPEC


def test_a_row_that_lacks_a_class_is_refused(tmp_path: Path):
    """A column that must not be null is not null."""
    incomplete = [row | {"class_name": None} for row in rows(1)]
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        write_shard(incomplete, tmp_path / "shard.parquet", SPEC)
        pq.read_table(tmp_path / "shard.parquet").validate(full=True)


def test_hugging_face_metadata_describes_every_column(tmp_path: Path):
    """`datasets` finds in the metadata the features that it would write itself, the column `image` as an Image."""
    path = tmp_path / "shard.parquet"
    write_shard(rows(1), path, SPEC)
    schema = pq.read_schema(path)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    value_types = {"string": pa.string(), "int64": pa.int64(), "int32": pa.int32(), "bool": pa.bool_()}
    for name, feature in features.items():
        if name != "image":
            assert feature["_type"] == "Value"
            assert value_types[feature["dtype"]] == schema.field(name).type


def test_image_path_has_the_suffix_of_its_format():
    """The name inside the column tells a viewer what the bytes are."""
    row = image_row("x-000001", b"", "webp", 1, 1, class_name="a")
    assert row["image"]["path"] == "x-000001.webp"
    assert set(row) == set(IMAGES.names)
