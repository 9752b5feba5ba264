"""Real images become shards: their own bytes, each proved whole, whatever is damaged counted and named."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_trees import CLASSES, draw_raw_tree
from small_project import changed, planned

from pipeline_lib import stages
from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.datasets.preparation import encode
from pipeline_lib.errors import UserError
from pipeline_lib.miniature.targets import render
from pipeline_lib.plan import Plan
from pipeline_lib.records import IMAGES, IMAGES_PER_ROW_GROUP
from pipeline_lib.sets import read_receipt
from pipeline_lib.shards import decode_image, read_rows
from pipeline_lib.store import Artifact

Params = dict[str, Any]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)


def encoded(image_format: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def made(params: Params, dataset: str = "shapes", split: str = "test") -> tuple[Plan, Artifact]:
    """A plan, and the set of real images that it has made."""
    plan = planned(params)
    real = plan.real_images(dataset, split)  # type: ignore[arg-type]
    stages.real_images(real, plan.store)
    return plan, real


def rows(plan: Plan, real: Artifact) -> list[dict[str, Any]]:
    return [row for unit in real.members for row in read_rows(plan.store.path(unit))]


@pytest.mark.parametrize(("image_format", "kept"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")])
def test_bytes_are_never_altered(image_format: str, kept: str):
    """A JPEG, PNG or WebP is stored as it is."""
    content = encoded(image_format)
    stored = encode(content)
    assert stored.content == content
    assert (stored.image_format, stored.width, stored.height) == (kept, 15, 12)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
def test_bytes_of_other_modes_are_kept_too(mode: str):
    """Grey, palette and CMYK images are converted when they are read for the encoder, not when they are stored."""
    content = encoded("JPEG" if mode == "CMYK" else "PNG", mode)
    assert encode(content).content == content
    assert decode_image(content).mode == "RGB"


@pytest.mark.parametrize("image_format", ["BMP", "TIFF"])
def test_other_formats_become_png_of_the_same_pixels(image_format: str):
    """What a browser or Hugging Face `datasets` may not show is stored as PNG, without loss."""
    stored = encode(encoded(image_format))
    assert stored.image_format == "png"
    assert (np.asarray(decode_image(stored.content)) == PIXELS).all()


def test_animation_becomes_its_first_frame():
    """Of an animated image the first frame is stored."""
    first, second = Image.new("RGB", (8, 8), (10, 20, 30)), Image.new("RGB", (8, 8), (200, 0, 0))
    for image_format in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        first.save(buffer, image_format, save_all=True, append_images=[second], lossless=True)
        stored = encode(buffer.getvalue())
        assert stored.image_format == "png"
        assert decode_image(stored.content).getpixel((4, 4)) == (10, 20, 30)


def test_arrays_become_png():
    """Pixels without a file are stored as PNG."""
    stored = encode(PIXELS)
    assert (np.asarray(decode_image(stored.content)) == PIXELS).all()
    assert (stored.image_format, stored.width, stored.height) == ("png", 15, 12)


def test_deep_images_are_refused():
    """16 bits per channel would be clipped to white on the way to RGB: the file is refused instead."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    with pytest.raises(ValueError, match="more than 8 bits"):
        encode(buffer.getvalue())


def test_shards_of_a_folder(params: Params, tmp_path: Path):
    """Rows have the schema, the folder's order, the class's name and the file's own bytes and path."""
    plan, real = made(params)
    [unit] = real.members
    assert pq.read_schema(plan.store.path(unit)).equals(IMAGES)
    found = rows(plan, real)
    assert [row["image_id"] for row in found] == [f"shapes-test-{number:06d}" for number in range(6)]
    assert [row["source_id"] for row in found] == list(range(6))
    assert [row["image"]["path"] for row in found] == [
        f"{c}/{n:03d}.png" for c in ("red", "blue", "green") for n in (0, 1)
    ]
    assert [row["class_name"] for row in found[::2]] == list(plan.dataset("shapes").class_names)
    for row in found:
        assert row["image"]["bytes"] == (tmp_path / "shapes" / row["image"]["path"]).read_bytes()
        assert (row["width"], row["height"], row["valid"], row["prompt"]) == (24, 24, True, None)


def test_several_shards_hold_the_split_in_order(params: Params, monkeypatch: pytest.MonkeyPatch):
    """Shards are consecutive ranges; where they are cut changes no image."""
    whole = rows(*made(params))
    monkeypatch.setattr("pipeline_lib.datasets.units.REAL_PER_SHARD", 4)
    plan, real = made(params)
    assert [member.n_rows for member in read_receipt(plan.store.path(real)).members] == [4, 2]
    assert rows(plan, real) == whole


def test_missing_shard_is_remade_alone(params: Params, monkeypatch: pytest.MonkeyPatch):
    """What is there is kept; the missing shard comes back with the same bytes."""
    monkeypatch.setattr("pipeline_lib.datasets.units.REAL_PER_SHARD", 4)
    plan, real = made(params)
    first, second = (plan.store.path(unit) for unit in real.members)
    content, time = second.read_bytes(), first.stat().st_mtime_ns
    plan.store.remove(real.members[1].path)
    stages.real_images(real, plan.store)
    assert second.read_bytes() == content
    assert first.stat().st_mtime_ns == time


@pytest.mark.parametrize("name", CLASSES)
def test_every_download_becomes_shards(params: Params, tmp_path: Path, name: str):
    """From the raw tree of each of the 17 to rows whose class names and paths fit their images."""
    tree = draw_raw_tree(name, tmp_path / name, 2)
    plan, real = made(changed(params, own_datasets=params["own_datasets"] | {"mine": tree.definition()}), "mine")
    found = rows(plan, real)
    assert len(found) == tree.n_images["test"]
    for row in found:
        index = list(tree.classes.values()).index(row["class_name"])
        shown = decode_image(row["image"]["bytes"]).getpixel((8, 8))
        assert abs(shown[0] - (20 + 3 * index)) <= 1
        assert row["image"]["path"]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_damaged_images_are_counted_and_named(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All damaged files of the split are found in one run; shards without any are kept, the others are not written."""
    monkeypatch.setattr("pipeline_lib.datasets.units.REAL_PER_SHARD", 2)
    for name in ("red/001.png", "green/000.png"):
        damage(tmp_path / "shapes" / name)
    plan = planned(params)
    real = plan.real_images("shapes", "test")
    with pytest.raises(UserError) as caught:
        stages.real_images(real, plan.store)
    message = str(caught.value)
    assert "shapes: 2 files in " in message and "cannot be read as images" in message
    assert "red/001.png" in message
    assert "green/000.png" in message
    assert [plan.store.is_complete(unit) for unit in real.members] == [False, True, False]
    assert not plan.store.is_complete(real)
    assert not list(plan.store.root.rglob("*.tmp"))


DAMAGES = {
    "empty": b"",
    "text": b"this is no image",
    "half a JPEG": encoded("JPEG")[:200],
    "half a PNG": encoded("PNG")[:200],
    "a bomb": b"\x89PNG\r\n\x1a\n"
    + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
            (b"IDAT", b""),
            (b"IEND", b""),
        )
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_of_every_kind_is_reported(params: Params, tmp_path: Path, kind: str):
    """A file that is no whole image, or claims to be enormous, is reported by its path."""
    (tmp_path / "shapes" / "blue" / "000.png").write_bytes(DAMAGES[kind])
    with pytest.raises(UserError, match=r"1 files in .* cannot be read as images: blue/000.png \(.+\)"):
        made(params)


@pytest.mark.parametrize("name", [name for name in CLASSES if not name.startswith("cifar")])
def test_damaged_file_of_a_download(params: Params, tmp_path: Path, name: str):
    """A truncated image of an official download is named."""
    tree = draw_raw_tree(name, tmp_path / name, 2)
    own = changed(params, own_datasets=params["own_datasets"] | {"mine": tree.definition()})
    plan, real = made(own, "mine")
    path = rows(plan, real)[3]["image"]["path"]
    plan.store.remove(real.members[0].path)
    for file in tree.root.rglob(Path(path).name):
        if file.as_posix().endswith(path):
            damage(file)
    with pytest.raises(UserError, match=f"mine: 1 files in .* cannot be read as images: {path}"):
        stages.real_images(real, plan.store)


def test_bytes_do_not_depend_on_threads(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One thread and many write the same shards."""
    draw = np.random.default_rng(3)
    for number in range(3 * IMAGES_PER_ROW_GROUP):
        Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(
            tmp_path / f"shapes/red/x{number:03d}.png"
        )
    contents = []
    for threads, store in ((1, "one"), (8, "many")):
        monkeypatch.setattr("pipeline_lib.datasets.preparation._MAX_THREADS", threads)
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
        plan, real = made(changed(params, store=str(tmp_path / store)))
        contents.append([plan.store.path(unit).read_bytes() for unit in real.members])
    assert contents[0] == contents[1]


def test_hugging_face_datasets_reads_the_shards(params: Params):
    """The column of images is one that `datasets` decodes by itself."""
    datasets = pytest.importorskip("datasets")
    plan, real = made(params)
    paths = [str(plan.store.path(unit)) for unit in real.members]
    table = datasets.Dataset.from_parquet(paths, cache_dir=str(plan.store.root / "cache"))
    assert table[0]["image"].size == (24, 24)
    assert table[5]["class_name"] == plan.dataset("shapes").class_names[2]


def test_renderings_keep_fashion_mnists_numbers(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Renderings share the numbers of Fashion-MNIST's images, so that data sets of one pool are resampled together;
    their pixels are those of the rendering."""
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.int64) % 10
    monkeypatch.setattr(fashion_mnist, "find", lambda *_, **__: tmp_path)
    monkeypatch.setattr(fashion_mnist, "load_split", lambda *_: (images, labels, np.arange(40)))
    plan = planned(changed(params, datasets=["fine_grained"], tables__table2_datasets=["fine_grained"]))
    names = list(plan.dataset("fine_grained").class_names)
    recipe = {"dataset": "fine_grained", "split": "test", "class_names": names, "fashion_mnist": "fine_grained"}
    spec = {**recipe, "n_images": 20, "start": 0, "stop": 20}
    unit = plan.unit("real_images", "small", spec, location={"folder": None, "cache": str(tmp_path)})
    real = plan.set("real_images", "small", [unit])
    stages.real_images(real, plan.store)
    found = rows(plan, real)
    numbers = [number for number in range(40) if number % 10 in (0, 2, 3, 4, 6)]
    assert [row["source_id"] for row in found] == numbers
    assert [row["image_id"] for row in found] == [f"fine_grained-test-{number:06d}" for number in numbers]
    assert [names.index(row["class_name"]) for row in found[:5]] == [0, 1, 2, 3, 4]
    pixels = np.stack([np.asarray(decode_image(row["image"]["bytes"])) for row in found])
    assert (pixels == render("fine_grained", images[numbers], np.array(numbers))).all()
    assert all(row["image"]["bytes"].startswith(b"\x89PNG") for row in found)
