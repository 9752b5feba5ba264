"""Bad input, one table: each case ends in the right result, or in an error that names culprit and remedy.

None may run code, write outside of the store, or end in another exception than `UserError`.
"""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import ExifTags, Image
from small_project import REPOSITORY, changed, planned

from pipeline_lib import stages
from pipeline_lib.config import read_config
from pipeline_lib.errors import UserError
from pipeline_lib.plan import Plan
from pipeline_lib.shards import decode_image, read_rows

LONG = 10_000
SAFE = set("abcdefghijklmnopqrstuvwxyz0123456789_./-")


@dataclass
class Workplace:
    """A folder with a small project; `canary` is the file that code in a bad input would write."""

    folder: Path
    params: dict[str, Any]
    models: dict[str, Any]

    @property
    def canary(self) -> Path:
        return self.folder / "it ran"

    def config(self, *overlays: Path, **changes: Any) -> Path:
        """params.yaml with changes, as a file."""
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(changed(self.params, **changes), allow_unicode=True), encoding="utf-8")
        return path

    def plan(self, **changes: Any) -> Plan:
        plan = planned(changed(self.params, **changes))
        plan.require_models()
        return plan

    def real_rows(self, **changes: Any) -> list[dict[str, Any]]:
        """The rows of the real images, made."""
        plan = self.plan(**changes)
        real = plan.real_images("shapes", "test")
        stages.real_images(real, plan.store)
        return [row for unit in real.members for row in read_rows(plan.store.path(unit))]


@dataclass(frozen=True)
class Case:
    """`act` makes the bad thing and uses it. It must raise a `UserError` that holds `words`; without words it must
    succeed, and look at the result itself."""

    act: Callable[[Workplace], Any]
    words: tuple[str, ...] = ()


# --- configuration ----------------------------------------------------------------------------------------------------


def overlay(content: str | bytes, *words: str) -> Case:
    """An overlay of this content is read."""

    def act(place: Workplace) -> None:
        path = place.folder / "overlay.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        read_config(place.config(), path)

    return Case(act, words)


def setting(*words: str, **changes: Any) -> Case:
    """The project is planned with these settings."""
    return Case(lambda place: place.plan(**changes), words)


def multiplied(levels: int, merge: bool = False) -> str:
    """YAML whose aliases multiply to 9**levels values."""
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        nine = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{nine}]}}" if merge else f"[{nine}]"))
    return "\n".join(lines)


CONFIGURATION = {
    "yaml: 1e-3": overlay("tuning: {learning_rate: 1e-3}", "tuning.learning_rate", "'1e-3'", "write it as 0.001"),
    "yaml: on for a name": overlay("study: on", "study", "True", "put it in quotes"),
    "yaml: no for a class": overlay(
        "own_datasets: {shapes: {class_names: [a, no, c]}}", "own_datasets.shapes: class_names.1: False", "in quotes"
    ),
    "yaml: off for a key": overlay("off: 1", "False", "no key"),
    "yaml: null for a key": overlay("images: {null: 1}", "images", "None", "no key"),
    "yaml: octal number": overlay("seed: 010", "overlay.yaml, line 1", "010", "octal number 8", "write 8"),
    "yaml: number to base 60": overlay("seed: 1:30", "line 1", "1:30", "base 60", "quotes"),
    "yaml: date": overlay("study: 2024-01-31", "line 1", "2024-01-31", "date", "quotes"),
    "yaml: impossible date": overlay("study: 2024-13-45", "line 1", "2024-13-45", "date", "quotes"),
    "yaml: key twice": overlay("seed: 1\nstudy: x\nseed: 2", "overlay.yaml, line 3", "'seed'", "line 1", "remove"),
    "yaml: nested key twice": overlay("images: {steps: 1, steps: 2}", "line 1, column 20", "'steps'", "remove"),
    "yaml: tab": overlay("images:\n\tsteps: 3", "overlay.yaml", "line 2", "indent with blanks"),
    "yaml: empty file": overlay("", "overlay.yaml", "mapping of sections", "an empty file"),
    "yaml: nothing but a remark": overlay("# images: {steps: 3}", "overlay.yaml", "an empty file"),
    "yaml: list": overlay("- images", "overlay.yaml", "mapping of sections", "list"),
    "yaml: two documents": overlay("seed: 1\n---\nseed: 2", "overlay.yaml", "single document"),
    "yaml: Latin-1": overlay("study: café".encode("latin-1"), "overlay.yaml", "save it as UTF-8"),
    "yaml: UTF-16": overlay("study: x".encode("utf-16"), "overlay.yaml", "save it as UTF-8"),
    "yaml: byte order mark": overlay("\ufeffstudy: x"),
    "yaml: NUL": overlay("study: a\0b", "overlay.yaml", "special characters"),
    "yaml: code": overlay(
        "study: !!python/object/apply:os.system [\"touch 'it ran'\"]", "overlay.yaml", "python/object"
    ),
    "yaml: alias": overlay("models: {sentences: &x a/b, generator: *x}"),
    "yaml: unknown alias": overlay("study: *x", "overlay.yaml", "undefined alias 'x'"),
    "yaml: alias of itself": overlay("images: &x {steps: *x}", "line 1", "holds itself", "write it out"),
    "yaml: bomb of aliases": overlay(multiplied(8), "overlay.yaml, line", "1,000,000 values", "write it out"),
    "yaml: bomb of merges": overlay(multiplied(8, merge=True), "overlay.yaml, line", "1,000,000 values"),
    "yaml: small bomb": overlay("study: &x [1]\n" + multiplied(6), "a5: unknown key", "study: [1] is not allowed"),
    "yaml: a thousand brackets": overlay("a: " + "[" * 5000, "overlay.yaml", "nested too deeply"),
    "yaml: number of 5,000 digits": overlay("seed: " + "9" * 5000, "overlay.yaml", "correct the value"),
    "yaml: folder": Case(lambda place: read_config(place.folder), ("cannot be read", "name a YAML file")),
    "seed beyond 64 bits": setting("seed", "9223372036854775808", "less than", seed=2**63),
    "seed that is text": setting("seed", "'7'", "write it as 7", seed="7"),
    "a milliard images": setting("images.per_class", "1000000000", "1000000", images__per_class=10**9),
    "an image of a milliard pixels": setting("images.height", "less than or equal to 8192", images__height=8 * 10**6),
    "infinity as text": setting("tuning.weight_decay", "'1e400'", "valid number", tuning__weight_decay="1e400"),
    "negative prompt without end": setting("images.negative_prompt", "1000 char", images__negative_prompt="x" * LONG),
    "unknown key": setting("images.stepps", "unknown key", "steps", images__stepps=3),
    "store with NUL": setting("store", r"'a\x00b'", "NUL", store="a\0b"),
    "store that is a file": Case(
        lambda place: place.plan(store=str(place.config())), ("store", "is a file", "a folder")
    ),
    "store of too long a name": setting("store", "5000 bytes", "shorten it", store="x" * 5000),
    "generator of too long a name": setting("models.generator", "shorten it", models__generator="./" + "x" * 5000),
    "Fashion-MNIST of too long a name": setting("fashion_mnist", "does not exist", fashion_mnist="x" * 5000),
    "image folder of too long a name": setting(
        "own_datasets.shapes.folder", "does not exist", own_datasets__shapes__folder="x" * 5000
    ),
    "class folder with NUL": setting(
        "own_datasets.shapes", r"'a\x00'", "NUL", own_datasets__shapes__class_folders=["a\0", "blue", "green"]
    ),
    "class folder of 500 characters": setting(
        "own_datasets.shapes", "500 bytes", "shorten", own_datasets__shapes__class_folders=["x" * 500, "blue", "green"]
    ),
    "few-shot: one seed": setting("few_shot.seeds", "[1]", "at least 2", few_shot__seeds=[1]),
    "few-shot: seed that is a boolean": setting("few_shot.seeds.0", "True", few_shot__seeds=[True, 2]),
    "few-shot: shots in disorder": setting("few_shot.shots", "ascending order: [1, 2]", few_shot__shots=[2, 1]),
    "few-shot: no shots": setting("few_shot.shots", "[]", "at least 1", few_shot__shots=[]),
    "few-shot: a start for one of two": setting(
        "few_shot", "real_guidance.starts", "[0.5]", "one for each", few_shot__real_guidance__starts=[0.5]
    ),
    "few-shot: start above 1": setting(
        "few_shot.real_guidance.starts.0", "1.5", "equal to 1", few_shot__real_guidance__starts=[1.5, 0.5]
    ),
    "few-shot: quantile 0": setting(
        "few_shot.real_filter.quantile", "greater than 0", few_shot__real_filter__quantile=0
    ),
    "few-shot: unknown data set": setting("few_shot.datasets", "'x'", "known are", few_shot__datasets=["x"]),
    "few-shot: no training images": setting(
        "few_shot.datasets", "shapes", "train_folder", few_shot__datasets=["shapes"]
    ),
    "few-shot: list for a data set": setting("few_shot.datasets.0", "['x']", few_shot__datasets=[["x"]]),
    "few-shot: nothing": setting("few_shot", "None", few_shot=None),
    "few-shot: unknown key": setting("few_shot.coop.epoch", "unknown key", "epochs", few_shot__coop__epoch=3),
}

# --- class names and templates ----------------------------------------------------------------------------------------


def class_name(name: Any, *words: str) -> Case:
    """A class of this name: its prompt is written and its images carry the name, or it is refused."""

    def act(place: Workplace) -> None:
        names = [name, "b", "c"]
        found = place.real_rows(own_datasets__shapes__class_names=names, prompts__strategy="basic")
        plan = place.plan(own_datasets__shapes__class_names=names, prompts__strategy="basic")
        assert [row["class_name"] for row in found] == [name, name, "b", "b", "c", "c"]
        prompts = next(job for job in plan.jobs.values() if job.spec["stage"] == "prompts")
        stages.STAGES["prompts"](prompts, plan.store)
        texts = [row["prompt"] for unit in prompts.members for row in read_rows(plan.store.path(unit))]
        assert texts == [f"a photo of a {name}", "a photo of a b", "a photo of a c"]
        assert not {character for job in plan.jobs.values() for character in job.path} - SAFE

    return Case(act, words)


def class_names(*words: str, names: list[str]) -> Case:
    return setting("own_datasets.shapes", "class_names", *words, own_datasets__shapes__class_names=names)


def template(text: str, *words: str) -> Case:
    return setting("own_datasets.shapes", *words, own_datasets__shapes__template=text)


def folder_of_bytes(place: Workplace) -> None:
    images = place.folder / "named"
    for name in ("caf\udce9", "tea"):  # the byte E9 alone
        shutil.copytree(place.folder / "shapes" / "red", images / name)
    place.plan(own_datasets__shapes={"folder": str(images), "template": "a {}"})


NAMES = {
    "name: Chinese": class_name("猫 & 犬"),
    "name: right to left": class_name("قطة שלום"),
    "name: emoji": class_name("👩‍👩‍👧 🏳️‍🌈"),
    "name: slash": class_name("a/b"),
    "name: the folder above": class_name("../../.."),
    "name: quotes": class_name('"it\'s" `a`'),
    "name: leading dash": class_name("-rf --force"),
    "name: shell": class_name("$(touch 'it ran'); touch 'it ran'"),
    "name: braces": class_name("{name} {{}} %s"),
    "name: percent and backslash": class_name("C:\\%TEMP%|<b>"),
    "name: 200 characters": class_name("x" * 200),
    "name: 500 characters": class_name("x" * 500, "500 characters", "at most 200", "shorten it"),
    "name: NUL": class_name("a\0b", r"'a\x00b'", "control character", "remove it"),
    "name: new line": class_name("a\nb", r"'a\nb'", "control character"),
    "name: line separator": class_name("a\u2028b", r"'a\u2028b'", "control character"),
    "name: empty": class_name("", "number 1", "is empty", "name the class"),
    "name: blank": class_name(" \t ", "number 1"),
    "name: invisible": class_name("\u200b\u202e", r"\u200b", "is empty"),
    "name: half a character": class_name("caf\udce9", "caf", "not Unicode", "rename"),
    "name: number": class_name(7, "own_datasets.shapes: class_names.0: 7", "put it in quotes"),
    "name: twice after folding case": class_names("'Straße'", "'STRASSE'", names=["Straße", "b", "STRASSE"]),
    "name: twice after folding width": class_names("'ａｂ'", "'ab'", names=["ａｂ", "x", "ab"]),
    "name: folder that is no UTF-8": Case(folder_of_bytes, ("caf", "not Unicode", "rename the folder")),
    "template: 10,000 characters": template("a {}" + "x" * LONG, "10004 characters", "at most 300", "shorten it"),
    "template: nothing": template("", "''", "{} exactly once"),
    "template: twice": template("a {} and a {}", "'a {} and a {}'", "{} exactly once"),
    "template: number": template("a {0}", "'a {0}'", "{} exactly once"),
    "template: attribute": template("a {} {a.__class__}", "no other brace"),
    "template: braces in braces": template("a {{}}", "'a {{}}'", "no other brace"),
    "template: one brace": template("a {} }", "'a {} }'", "no other brace"),
}

# --- images -----------------------------------------------------------------------------------------------------------

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


def file_name_of_bytes(place: Workplace) -> None:
    folder = place.folder / "shapes" / "blue"
    (folder / "000.png").rename(folder / "\udce9.png")  # the byte E9 alone
    assert [row["image"]["path"] for row in place.real_rows()][2:4] == ["blue/001.png", r"blue/\xe9.png"]


def frames(image_format: str) -> bytes:
    options = {"lossless": True} if image_format == "WEBP" else {}
    return encoded(Image.new("RGB", (30, 20), (10, 20, 30)), image_format, save_all=True, duration=100,
                   append_images=[Image.new("RGB", (30, 20), (200, 0, 0))], **options)  # fmt: skip


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
    "image: file name that is no UTF-8": Case(file_name_of_bytes),
}

# --- Parquet ----------------------------------------------------------------------------------------------------------

PNG = encoded(PICTURE)
LABELS = ["a", "b", "a", "b"]


def parquet(
    *words: str, image: Any = (PNG,) * 4, label: Any = LABELS, metadata: bytes | None = None, **keys: Any
) -> Case:
    """A data set of one Parquet file with these columns (None: none). It is read as it should be, or refused."""

    def act(place: Workplace) -> None:
        columns = {name: column for name, column in (("image", image), ("label", label)) if column is not None}
        table = pa.table({name: pa.array(c) if isinstance(c, tuple) else c for name, c in columns.items()})
        if metadata is not None:
            table = table.replace_schema_metadata({b"huggingface": metadata})
        pq.write_table(table, place.folder / "x.parquet")
        own = {"parquet": str(place.folder / "x.parquet"), "template": "a {}", **keys}
        found = place.real_rows(own_datasets__shapes=own)
        assert [row["class_name"] for row in found] == LABELS
        assert (np.asarray(decode_image(found[3]["image"]["bytes"])) == PIXELS).all()

    return Case(act, words)


def two_files(place: Workplace) -> None:
    folder = place.folder / "two"
    folder.mkdir()
    pq.write_table(pa.table({"image": [PNG, PNG], "label": ["a", "b"]}), folder / "0.parquet")
    pq.write_table(pa.table({"image": [PNG, PNG], "label": [0, 1]}), folder / "1.parquet")
    place.plan(own_datasets__shapes={"parquet": str(folder), "template": "a {}"})


def parquet_bytes(content: bytes) -> Case:
    def act(place: Workplace) -> None:
        (place.folder / "x.parquet").write_bytes(content)
        place.plan(own_datasets__shapes={"parquet": str(place.folder / "x.parquet"), "template": "a {}"})

    return Case(act, ("own_datasets.shapes.parquet", "x.parquet", "no Parquet file"))


def unreadable_when_run(place: Workplace) -> None:
    """A file that need not be read to plan."""
    (place.folder / "x.parquet").write_bytes(b"no Parquet")
    own = {"parquet": "x.parquet", "template": "a {}", "class_names": ["a", "b"], "class_folders": ["a", "b"]}
    place.real_rows(own_datasets__shapes=own | {"subset": True})


PARQUET = {
    "parquet: text, seen when it is read": Case(
        unreadable_when_run, ("shapes: x.parquet", "no Parquet file", "write it")
    ),
    "parquet: other columns": parquet("no column 'label'", "it has 'image'", label=None),
    "parquet: no image column": parquet("x.parquet has no column 'image'", "it has 'label'", image=None),
    "parquet: labels with a fraction": parquet("label_column", "double", "whole numbers", label=[0.5, 1.0, 0.5, 1.0]),
    "parquet: lists for labels": parquet("label_column", "list", "text or whole", label=[["a"], ["b"]] * 2),
    "parquet: row without a label": parquet("label_column", "without a label", label=["a", None, "a", "b"]),
    "parquet: empty label": parquet("class name number 1", "is empty", label=["", "b", "", "b"]),
    "parquet: label without a name": parquet("'7'", "not in class_folders", label=[0, 1, 0, 7], class_names=["a", "b"]),
    "parquet: one class": parquet("at least two classes", label=["a"] * 4),
    "parquet: numbers for images": parquet("x.parquet/0", "int", image=[1, 2, 3, 4]),
    "parquet: nothing for images": parquet("x.parquet/0", "NoneType", image=pa.nulls(4)),
    "parquet: paths that lead nowhere": parquet("x.parquet/0", "nope.png", image=["nope.png"] * 4),
    "parquet: path with NUL": parquet("x.parquet/0", "null", image=["a\0b"] * 4),
    "parquet: text and numbers": Case(two_files, ("label_column", "string", "int64", "write the same in all files")),
    "parquet: 0 bytes": parquet_bytes(b""),
    "parquet: text": parquet_bytes(b"image,label\n"),
    "parquet: cut off": parquet_bytes(b"PAR1" + b"x" * 100),
    "parquet: dictionaries": parquet(label=pa.array(LABELS).dictionary_encode()),
    "parquet: views": parquet(label=pa.array(LABELS, pa.string_view())),
    "parquet: binary of one size": parquet(image=pa.array([PNG] * 4, pa.binary(len(PNG)))),
    "parquet: metadata that are no JSON": parquet(metadata=b"\xff{"),
    "parquet: metadata of another form": parquet(metadata=b'{"info": {"features": []}}'),
    "parquet: class names that are numbers": parquet(
        "class_names: missing",
        label=[0, 1, 0, 1],
        metadata=b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2]}}}}',
    ),
}

# --- checkpoints ------------------------------------------------------------------------------------------------------


class Payload:
    """Code in a pickle: unpickling writes the canary."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def lying(content: bytes, edit: Callable[[dict[str, Any], str], None]) -> bytes:
    """safetensors whose header was edited; `edit` gets the header and the name of its first tensor."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    edit(header, min(name for name in header if name != "__metadata__"))
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + size :]


def _beyond(header: dict[str, Any], name: str) -> None:
    header[name]["data_offsets"] = [0, 10**15]


def _gigantic(header: dict[str, Any], name: str) -> None:
    header[name]["shape"] = [10**6, 10**9]


def _renamed(header: dict[str, Any], name: str) -> None:
    header["another." + name] = header.pop(name)


def _not_a_number(content: bytes) -> bytes:
    from safetensors.torch import load, save

    weights = load(content)
    name = next(name for name, weight in weights.items() if weight.is_floating_point())
    weights[name].view(-1)[0] = float("nan")
    return save(weights, metadata={"format": "pt"})


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "0 bytes": lambda _: b"",
    "cut off": lambda content: content[:-100],
    "text": lambda _: b"version https://git-lfs.github.com/spec/v1\n",
    "header of 4 exabytes": lambda content: struct.pack("<Q", 2**62) + content[8:],
    "offsets beyond the end": lambda content: lying(content, _beyond),
    "gigantic shape": lambda content: lying(content, _gigantic),
    "another architecture": lambda content: lying(content, _renamed),
    "not a number": _not_a_number,
}
CLIP_FILE = "open_clip_model.safetensors"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def encoder_folder(place: Workplace, edit: Callable[[Path], None]) -> str:
    source = place.models["encoders"][0]["model"].removeprefix("local-dir:")
    folder = shutil.copytree(source, place.folder / "models" / "bad encoder")
    edit(folder)
    return f"local-dir:{folder}"


def encoder(edit: Callable[[Path, Workplace], None], *words: str) -> Case:
    """An encoder whose folder was edited is loaded."""

    def act(place: Workplace) -> None:
        pytest.importorskip("open_clip")
        from pipeline_lib.clip_models import load_clip

        load_clip(encoder_folder(place, lambda folder: edit(folder, place)), None, None)

    return Case(act, ("models.encoders", "bad encoder", *words))


def generator(edit: Callable[[Path, Workplace], None], *words: str) -> Case:
    """A generator whose folder was edited is loaded."""

    def act(place: Workplace) -> None:
        torch = pytest.importorskip("torch")
        from pipeline_lib.generators.folders import pipeline_folder
        from pipeline_lib.generators.loading import load_pipeline

        folder = shutil.copytree(place.models["generator"], place.folder / "models" / "bad generator")
        edit(folder, place)
        load_pipeline(pipeline_folder(str(folder), None), torch.float32)

    return Case(act, ("models.generator", "bad generator", *words))


def damaged(file: str, damage: Callable[[bytes], bytes]) -> Callable[[Path, Workplace], None]:
    return lambda folder, _: (folder / file).write_bytes(damage((folder / file).read_bytes())) and None


def pickled(file: str, instead: str) -> Callable[[Path, Workplace], None]:
    """A pickle with code in place of the weights."""

    def edit(folder: Path, place: Workplace) -> None:
        import torch

        (folder / instead).unlink()
        torch.save({"state_dict": Payload(place.canary)}, folder / file)

    return edit


def disguised(folder: Path, place: Workplace) -> None:
    (folder / CLIP_FILE).write_bytes(pickle.dumps(Payload(place.canary)))


def index(**entries: Any) -> Callable[[Path, Workplace], None]:
    """Other entries of model_index.json."""

    def edit(folder: Path, place: Workplace) -> None:
        (folder / "evil.py").write_text(f"open({str(place.canary)!r}, 'w')\nclass Evil: pass\n")
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return edit


def long_prompt(place: Workplace) -> None:
    pytest.importorskip("open_clip")
    from pipeline_lib.encoders import Encoder

    encoder = Encoder(place.models["encoders"][0]["model"], None, 8, device="cpu")
    assert len(encoder.text(["a photo of a cat"])) == 1
    encoder.text(["a photo of a cat", "a photo of a " + "x" * LONG])


def longest_whole_prompt(place: Workplace) -> None:
    """The longest prompt that fits is taken as it is; one token more is refused."""
    pytest.importorskip("open_clip")
    from pipeline_lib.clip_models import load_clip

    _, _, tokenizer = load_clip(place.models["encoders"][0]["model"], None, None)
    words = len(tokenizer(["x"])[0]) - 2  # beside start and end
    assert (tokenizer(["x " * words])[0] != 0).sum() >= words
    with pytest.raises(UserError, match="would be cut"):
        tokenizer(["x " * (words + 1)])


def long_generator_prompt(place: Workplace) -> None:
    pytest.importorskip("diffusers")
    from pipeline_lib.generators import load_generator

    settings = {"steps": 1, "guidance_scale": 2.0, "negative_prompt": "", "scheduler": None, "height": None}
    settings |= {"width": None, "dtype": "float32"}
    drawn = load_generator(place.models["generator"], None, settings, device="cpu", compile=False).generate(
        ["x " * (LONG // 2)], [0]
    )
    assert drawn.shape[0] == 1 and np.isfinite(drawn).all()


CHECKPOINTS = {
    **{f"encoder: {name}": encoder(damaged(CLIP_FILE, damage)) for name, damage in DAMAGES.items()},
    "encoder: a pickle with code": encoder(pickled("open_clip_pytorch_model.bin", CLIP_FILE), "could run code"),
    "encoder: a pickle named safetensors": encoder(disguised, "get this one again"),
    "encoder: configuration that is no JSON": encoder(damaged("open_clip_config.json", lambda _: b"{"), "config"),
    "encoder: configuration of another form": encoder(damaged("open_clip_config.json", lambda _: b"[]"), "model_cfg"),
    **{f"generator: {name}": generator(damaged(UNET_FILE, damage), "unet") for name, damage in DAMAGES.items()},
    "generator: a pickle with code": generator(
        pickled("unet/diffusion_pytorch_model.bin", UNET_FILE), "can run code", "is refused", "convert it"
    ),
    "generator: a module of its own": generator(index(unet=["evil", "Evil"]), "unet", "'evil'", "not imported"),
    "generator: a module of Python's": generator(index(unet=["os", "system"]), "unet", "'os'", "not imported"),
    "generator: no such class": generator(index(unet=["diffusers", "Nope"]), "unet", "Nope"),
    "generator: class by a file": generator(index(_class_name=["evil.py", "Evil"]), "names no pipeline class"),
    "generator: pipeline of another kind": generator(index(_class_name="AudioLDMPipeline"), "AudioLDMPipeline"),
    "generator: index that is no JSON": generator(damaged("model_index.json", lambda _: b"\xff{"), "not JSON"),
    "generator: index of brackets": generator(damaged("model_index.json", lambda _: b"[" * 10**5), "not JSON"),
    "generator: configuration that is no JSON": generator(damaged("unet/config.json", lambda _: b"{"), "unet"),
    "generator: impossible configuration": generator(
        damaged("unet/config.json", lambda content: json.dumps(json.loads(content) | {"norm_num_groups": 0}).encode()),
        "unet",
    ),
    "prompt: 10,000 characters for the encoder": Case(
        long_prompt, ("models.encoders", "the prompt 'a photo of a xxx", "would be cut", "shorten the class name")
    ),
    "prompt: as long as the encoder reads": Case(longest_whole_prompt),
    "prompt: 10,000 characters for the generator": Case(long_generator_prompt),
}

CASES = CONFIGURATION | NAMES | IMAGES | PARQUET | CHECKPOINTS


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(params: dict[str, Any], tiny_models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Workplace(tmp_path, params, tiny_models)


@pytest.mark.parametrize("name", CASES)
def test_bad_input(place: Workplace, name: str):
    """The right result, or a `UserError` with these words; nothing runs that is not ours."""
    case = CASES[name]
    if case.words:
        with pytest.raises(UserError) as caught:
            case.act(place)
        message = str(caught.value)
        missing = [word for word in case.words if word not in message]
        assert not missing, f"{missing} not in: {message}"
        assert len(message) < 3000
        assert "Traceback" not in message
    else:
        case.act(place)
    assert not place.canary.exists()


def test_there_are_enough_cases():
    """Issue 5 asks for 80."""
    assert len(CASES) >= 80


def python(place: Workplace, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=place.folder, env=environment, capture_output=True, text=True, check=False
    )


def stage(name: str, **changes: Any) -> Callable[[Workplace], list[str]]:
    """The command of a stage of the project with these changes, as a rule runs it."""

    def command(place: Workplace) -> list[str]:
        plan = planned(changed(place.params, **changes))
        plan.store.write_specs(plan.jobs.values())
        job = next(job for job in plan.jobs.values() if job.spec["stage"] == name)
        spec = plan.store.root / "specs" / f"{job.short_key}.json"
        out = str(plan.store.path(job))
        return ["-m", "pipeline_lib", name, "--spec", str(spec), "--out", out, "--store", str(plan.store.root)]

    return command


def of_configuration(text: str) -> Callable[[Workplace], list[str]]:
    def command(place: Workplace) -> list[str]:
        (place.folder / "overlay.yaml").write_text(text, encoding="utf-8")
        return ["-m", "pipeline_lib", "plan", "--params", str(place.config()), "--overlay", "overlay.yaml"]

    return command


def of_snakemake(**changes: Any) -> Callable[[Workplace], list[str]]:
    def command(place: Workplace) -> list[str]:
        place.config(**changes)
        snakefile = str(REPOSITORY / "Snakefile")
        return ["-m", "snakemake", "-n", "-s", snakefile, "--directory", str(place.folder), "--cores", "1"]

    return command


def of_image(place: Workplace) -> list[str]:
    (place.folder / "shapes" / "blue" / "000.png").write_bytes(encoded(PICTURE, "EPS"))
    return stage("real_images")(place)


def of_parquet(place: Workplace) -> list[str]:
    (place.folder / "x.parquet").write_bytes(b"PAR1")
    return of_configuration('own_datasets: {birds: {parquet: x.parquet, template: "a {}"}}')(place)


def of_encoder(place: Workplace) -> list[str]:
    edit = pickled("open_clip_pytorch_model.bin", CLIP_FILE)
    model = encoder_folder(place, lambda folder: edit(folder, place))
    return stage("heads", models__encoders=[{"name": "clip", "model": model}])(place)


def of_long_prompt(place: Workplace) -> list[str]:
    encoders, names = place.models["encoders"], ["猫" * 200, "b", "c"]
    return stage("heads", models__encoders=encoders, own_datasets__shapes__class_names=names)(place)


COMMANDS: dict[str, tuple[Callable[[Workplace], list[str]], tuple[str, ...]]] = {
    "configuration": (of_configuration("seed: 1\nseed: 2\n"), ("overlay.yaml, line 2", "'seed'", "remove")),
    "class name": (
        of_configuration('own_datasets: {shapes: {class_names: ["a\\0", b, c]}}'),
        ("own_datasets.shapes: class_names", r"'a\x00'", "remove it"),
    ),
    "template": (
        of_configuration('own_datasets: {shapes: {template: "a {x}"}}'),
        ("own_datasets.shapes", "'a {x}'", "{} exactly once"),
    ),
    "workflow": (
        of_snakemake(few_shot__shots=[2, 1], seed=2**64, store="a\0b"),
        ("few_shot.shots", "ascending", "seed: 18446744073709551616", "store", "NUL"),
    ),
    "image": (of_image, ("blue/000.png", "none of PNG", "replace or remove")),
    "parquet": (of_parquet, ("own_datasets.birds.parquet", "x.parquet", "no Parquet file")),
    "checkpoint": (of_encoder, ("models.encoders", "could run code", "safetensors")),
    "prompt": (of_long_prompt, ("models.encoders", "a photo of a 猫", "shorten the class name")),
}


@pytest.mark.parametrize("family", COMMANDS)
def test_commands_end_in_a_message(place: Workplace, family: str):
    """Of each family one, as a person meets it: status 1, culprit and remedy, no traceback, nothing written outside of
    the store."""
    make, words = COMMANDS[family]
    command = make(place)
    before = _outside(place)
    done = python(place, *command)
    assert done.returncode == 1, done.stderr
    printed = done.stdout + done.stderr  # a dry run of Snakemake prints errors to stdout
    missing = [word for word in words if word not in printed]
    assert not missing, f"{missing} not in: {printed}"
    assert "Traceback" not in printed
    assert not place.canary.exists()
    assert _outside(place) == before


def _outside(place: Workplace) -> set[str]:
    """All there is but the store, and Snakemake's bookkeeping."""
    return {
        path.relative_to(place.folder).as_posix()
        for path in place.folder.rglob("*")
        if not {"store", ".snakemake"}.intersection(path.relative_to(place.folder).parts)
    }
