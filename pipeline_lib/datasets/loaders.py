"""Real images of a data set's split, one at a time, as they go into a shard."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.datasets.registry import IMAGE_SUFFIXES
from pipeline_lib.digests import files_below
from pipeline_lib.errors import UserError
from pipeline_lib.shards import encode_image, image_row


def real_images(spec: Mapping[str, Any], location: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows (schema `records.IMAGES`) of the real images that a `datasets` spec names.

    Raises `UserError` for missing, damaged or too few images.
    """
    rows = list(_fashion_mnist(spec, location) if "fashion_mnist" in spec else _folder(spec, location))
    expected = spec["n_images"]
    if expected is not None and len(rows) != expected:
        raise UserError(f"{spec['dataset']}: {len(rows)} {spec['split']} images were found, {expected} are expected")
    yield from rows


def _fashion_mnist(spec: Mapping[str, Any], location: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from pipeline_lib.miniature import targets

    try:
        folder = fashion_mnist.find(
            Path(location["folder"]) if location["folder"] else None, cache=Path(location["cache"])
        )
    except fashion_mnist.FashionMnistError as error:
        raise UserError(str(error)) from error
    images, labels, indices = fashion_mnist.load_split(folder, spec["split"])
    kind = spec["fashion_mnist"]
    chosen, class_index = targets.select(kind, labels)
    rendered = targets.render(kind, images[chosen], indices[chosen])
    for pixels, index, source in zip(rendered, class_index, indices[chosen], strict=True):
        yield _row(spec, pixels, spec["class_names"][index], int(source))


def _folder(spec: Mapping[str, Any], location: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    damaged: list[str] = []
    number = 0
    for class_name, folder in zip(spec["class_names"], spec["folders"], strict=True):
        root = Path(location["folder"]) / folder
        paths = files_below(root, IMAGE_SUFFIXES)
        if not paths:
            raise UserError(f"{spec['dataset']}: no images in {root} for {class_name!r}")
        for path in paths:
            try:
                with Image.open(io.BytesIO(path.read_bytes())) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                damaged.append(f"{path} ({error})")
                continue
            yield _row(spec, pixels, class_name, number)
            number += 1
    if damaged:
        raise UserError(
            f"{spec['dataset']}: {len(damaged)} files cannot be read as images: {'; '.join(damaged[:5])}. "
            f"Replace or remove them."
        )


def _row(spec: Mapping[str, Any], pixels: NDArray[np.uint8], class_name: str, source_id: int) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    image_id = f"{spec['dataset']}-{spec['split']}-{source_id:06d}"
    encoded = encode_image(pixels, "png")  # lossless: a real image is never altered
    return image_row(image_id, encoded, "png", width, height, class_name=class_name, source_id=source_id)
