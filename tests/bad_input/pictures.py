"""Pictures to be encoded in every way that there is."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded(picture: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def oriented(orientation: int, image_format: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    return encoded(PICTURE, image_format, exif=exif, **options)


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is of this size, and holds nothing."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def frames(image_format: str) -> bytes:
    options = {"lossless": True} if image_format == "WEBP" else {}
    return encoded(Image.new("RGB", (30, 20), (10, 20, 30)), image_format, save_all=True, duration=100,
                   append_images=[Image.new("RGB", (30, 20), (200, 0, 0))], **options)  # fmt: skip
