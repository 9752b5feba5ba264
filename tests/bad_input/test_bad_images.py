"""Images in a data set of one's own, whatever the files' names say."""

import contextlib
import errno
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cases import Case, Workplace, check
from pictures import PICTURE, PIXELS, encoded, frames, oriented, png_of
from PIL import Image
from raw_trees import draw_raw_tree

from pipeline_lib import digests, stages
from pipeline_lib.shards import decode_image


def image(content: bytes, *words: str, shows: Any = None, near: float = 0) -> Case:
    """A file of this content among the images of a class, whatever its name says. The encoder sees `shows`, uint8
    [height, width, 3], up to a mean difference of `near`; or the file is named in an error."""

    def act(place: Workplace) -> None:
        (place.folder / "shapes" / "blue" / "000.png").write_bytes(content)
        row = place.real_rows()[2]
        seen = np.asarray(decode_image(row["image"]["bytes"]))
        assert (row["height"], row["width"]) == seen.shape[:2]
        assert np.abs(seen.astype(float) - shows).mean() <= near

    return Case(act, ("shapes: 1 files in", "blue/000.png", *words, "replace or remove") if words else ())


def encoder_sees(size: tuple[int, int]) -> Case:
    """An image of this size, (width, height), goes through the encoder."""

    def act(place: Workplace) -> None:
        pytest.importorskip("torch")
        from pipeline_lib.encoders import Encoder

        (place.folder / "shapes" / "blue" / "000.png").write_bytes(encoded(Image.new("RGB", size, (9, 200, 30))))
        row = place.real_rows()[2]
        assert (row["width"], row["height"]) == size
        encoder = Encoder(place.models["encoders"][0]["model"], None, 8, device="cpu")
        prepared = [encoder.prepare(decode_image(row["image"]["bytes"])), encoder.prepare(Image.new("RGB", (50, 50)))]
        assert prepared[0].shape == prepared[1].shape
        assert (prepared[0] == prepared[0][0, 0]).all()  # one colour stays one colour
        np.testing.assert_allclose(np.linalg.norm(encoder.encode(prepared), axis=1), 1, atol=1e-5)

    return Case(act)


def beside(make: Callable[[Path], Any], *words: str) -> Case:
    """Something else is made among the images of the class blue; `make` gets the folder."""

    def act(place: Workplace) -> None:
        make(place.folder / "shapes" / "blue")
        found = [row["image"]["path"] for row in place.real_rows()]
        assert found == [f"{colour}/00{number}.png" for colour in ("red", "blue", "green") for number in (0, 1)]

    return Case(act, words)


def named(name: str, content: bytes = b"x") -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "x.png")


def listening(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(folder):
        listening.bind("x.png")  # the whole path may be too long for a socket's


def linked(name: str, target: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).symlink_to(target)


def linked_folder(place: Workplace) -> None:
    """A folder may be a link to one that lies elsewhere: its images count."""
    shutil.move(place.folder / "shapes" / "blue", place.folder / "elsewhere")
    (place.folder / "shapes" / "blue").symlink_to(place.folder / "elsewhere")
    assert [row["class_name"] for row in place.real_rows()].count('blue "circle"') == 2


def unreadable(folder: str) -> Case:
    """This user may not read a folder. (Root may read all: so the system's answer is acted.)"""

    def act(place: Workplace) -> None:
        (place.folder / "shapes" / "blue" / "more").mkdir()
        closed, scan = place.folder / folder, os.scandir

        def refusing(path: Any) -> Any:
            if Path(path) == closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scan(path)

        with mock.patch("os.scandir", refusing):
            place.plan(own_datasets__shapes__class_names=..., own_datasets__shapes__class_folders=...)

    return Case(act, (folder, "cannot be read", "Permission denied", "give this user the permission"))


def unreadable_file(place: Workplace) -> None:
    closed, digest = place.folder / "shapes" / "red" / "000.png", digests.file_sha256

    def refusing(path: Path) -> str:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return digest(path)

    with mock.patch("pipeline_lib.digests.file_sha256", refusing):
        place.real_rows()


def gone_since(place: Workplace) -> None:
    """A file that is no more there when the images are read."""
    plan = place.plan()
    (place.folder / "shapes" / "blue" / "001.png").unlink()
    stages.real_images(plan.real_images("shapes", "test"), plan.store)


def pipe_since(place: Workplace) -> None:
    plan = place.plan()
    (place.folder / "shapes" / "blue" / "001.png").unlink()
    os.mkfifo(place.folder / "shapes" / "blue" / "001.png")
    stages.real_images(plan.real_images("shapes", "test"), plan.store)


def pipe_for_a_list(place: Workplace) -> None:
    tree = draw_raw_tree("dtd", place.folder / "raw", 2)
    (listed,) = (place.folder / "raw").rglob("test1.txt")
    listed.unlink()
    os.mkfifo(listed)
    place.plan(own_datasets__shapes=tree.definition())


def terminal_command(place: Workplace) -> None:
    """A file whose name would clear the screen, and which is no image."""
    (place.folder / "shapes" / "blue" / "\x1b[2J.png").write_bytes(b"no image")
    place.real_rows()


def file_name_of_bytes(place: Workplace) -> None:
    folder = place.folder / "shapes" / "blue"
    (folder / "000.png").rename(folder / "\udce9.png")  # the byte E9 alone
    assert [row["image"]["path"] for row in place.real_rows()][2:4] == ["blue/001.png", r"blue/\xe9.png"]


FIRST_FRAME = np.full((20, 30, 3), (10, 20, 30))
GREY = np.asarray(PICTURE.convert("L"))[..., None].repeat(3, axis=2)
PALETTE = PICTURE.quantize(16)
# By the definition of EXIF's tag 274: what must be done to the stored pixels so that they are upright.
UPRIGHT = {
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: np.rot90(PIXELS, 2).transpose(1, 0, 2),
    8: np.rot90(PIXELS),
}
SMOOTH = Image.fromarray(np.linspace(0, 255, 30 * 20 * 3).reshape(20, 30, 3).astype(np.uint8))

IMAGES = {
    "image: PNG cut off": image(encoded(PICTURE)[:-40], "("),
    "image: JPEG cut off": image(encoded(PICTURE, "JPEG")[:-40], "truncated"),
    "image: GIF cut off": image(encoded(PICTURE, "GIF")[:60], "("),
    "image: WebP cut off": image(encoded(PICTURE, "WEBP")[:-40], "("),
    "image: 0 bytes": image(b"", "none of PNG, JPEG"),
    "image: text named .png": image(b"this is no image", "none of PNG, JPEG"),
    "image: page of HTML": image(b"<!doctype html><title>404</title>", "none of PNG, JPEG"),
    "image: a program, EPS": image(encoded(PICTURE, "EPS"), "none of PNG, JPEG"),
    "image: bomb": image(png_of(60_000, 60_000), "decompression bomb"),
    "image: PNG whose data are damaged": image(encoded(PICTURE)[:60] + b"\0" + encoded(PICTURE)[61:], "("),
    "image: 16 bits, grey": image(encoded(Image.new("I;16", (30, 20), 40_000)), "more than 8 bits", "convert it"),
    "image: floating point": image(encoded(Image.new("F", (30, 20)), "TIFF"), "more than 8 bits", "convert it"),
    "image: 20,000 x 1": image(encoded(Image.new("RGB", (20_000, 1))), "20000 x 1", "crop it"),
    "image: CMYK": image(encoded(SMOOTH.convert("CMYK"), "JPEG", quality=95), shows=np.asarray(SMOOTH), near=8),
    "image: palette": image(encoded(PALETTE), shows=np.asarray(PALETTE.convert("RGB"))),
    "image: grey": image(encoded(PICTURE.convert("L")), shows=GREY),
    "image: grey with transparency": image(encoded(PICTURE.convert("LA")), shows=GREY),
    "image: transparency": image(encoded(PICTURE.convert("RGBA")), shows=PIXELS),
    "image: 1 bit": image(encoded(Image.new("1", (30, 20), 1)), shows=np.full((20, 30, 3), 255)),
    "image: BMP named .png": image(encoded(PICTURE, "BMP"), shows=PIXELS),
    "image: animated GIF": image(frames("GIF"), shows=FIRST_FRAME),
    "image: animated WebP": image(frames("WEBP"), shows=FIRST_FRAME),
    "image: animated PNG": image(frames("PNG"), shows=FIRST_FRAME),
    **{f"image: orientation {number}": image(oriented(number), shows=pixels) for number, pixels in UPRIGHT.items()},
    "image: orientation 6, WebP": image(oriented(6, "WEBP"), shows=UPRIGHT[6]),
    "image: orientation 99": image(oriented(99), shows=PIXELS),
    "image: EXIF data that are none": image(encoded(PICTURE, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), shows=PIXELS),
    "image: 1 x 1": encoder_sees((1, 1)),
    "image: 20,000 x 10": encoder_sees((20_000, 10)),
    "image: HEIC named .png": image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "none of PNG, JPEG"),
    "image: AVIF named .png": image(encoded(PICTURE, "AVIF"), "none of PNG, JPEG"),
    "image: SVG named .png": image(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of PNG, JPEG"),
    "image: PDF named .png": image(b"%PDF-1.4\n" + bytes(64), "none of PNG, JPEG"),
    "image: pickle named .png": image(pickle.dumps([1]), "none of PNG, JPEG"),
    "image: bomb of one row": image(png_of(2**31 - 1, 1), "("),
    "image: 16 bits, colours": image(encoded(Image.new("I;16", (30, 20), 40_000), "TIFF"), "more than 8 bits"),
    "image: HEIC": beside(named("x.HEIC"), "blue", "x.HEIC", "not read", "convert them to PNG or JPEG"),
    "image: AVIF": beside(named("x.avif"), "x.avif", "convert"),
    "image: JPEG XL": beside(named("x.jxl"), "x.jxl", "convert"),
    "image: SVG": beside(named("x.svg"), "x.svg", "convert"),
    "image: a camera's raw file": beside(named("x.CR2"), "x.CR2", "convert"),
    "image: notes beside the images": beside(named("notes.txt")),
    "image: hidden file": beside(named(".x.png")),
    "image: named pipe": beside(pipe, "blue/x.png", "named pipe", "remove it"),
    "image: socket": beside(listening, "blue/x.png", "socket", "remove it"),
    "image: device": beside(linked("x.png", "/dev/zero"), "blue/x.png", "device", "remove it"),
    "image: link to nowhere": beside(linked("x.png", "nowhere"), "blue/x.png", "leads nowhere", "remove it"),
    "image: link to itself": beside(linked("x.png", "x.png"), "blue/x.png", "leads nowhere", "remove it"),
    "image: folder that links to the one above": beside(linked("again", ".."), "blue/again", "link back", "remove it"),
    "image: folder that links to itself": beside(linked("again", "."), "blue/again", "link back", "remove it"),
    "image: folder that is a link": Case(linked_folder),
    "image: folder of another user": unreadable("shapes/blue/more"),
    "image: data set of another user": unreadable("shapes"),
    "image: file of another user": Case(
        unreadable_file, ("shapes: ", "red/000.png cannot be read: Permission denied", "permission to read it")
    ),
    "image: gone since it was planned": Case(gone_since, ("shapes: 5 test images were found, 6 are expected",)),
    "image: named pipe since it was planned": Case(pipe_since, ("blue/001.png", "named pipe", "remove it")),
    "image: named pipe for a list of an official download": Case(pipe_for_a_list, ("is no file but a named pipe",)),
    "image: file name that is a terminal's command": Case(terminal_command, (r"blue/\x1b[2J.png", "none of PNG")),
    "image: file name that is no UTF-8": Case(file_name_of_bytes),
}


@pytest.mark.parametrize("name", IMAGES)
def test_bad_image(place: Workplace, name: str):
    """The encoder sees what a person sees, or the file is named."""
    check(IMAGES[name], place)
