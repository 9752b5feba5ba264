"""Parquet files in a data set of one's own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases import LONG, Case, Workplace, check
from pictures import PICTURE, PIXELS, encoded

from pipeline_lib.shards import decode_image

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


def two_columns(place: Workplace) -> None:
    table = pa.table([[PNG] * 4, LABELS, LABELS], names=["image", "label", "label"])
    pq.write_table(table, place.folder / "x.parquet")
    place.real_rows(own_datasets__shapes={"parquet": "x.parquet", "template": "a {}"})


def parquet_bytes(content: bytes) -> Case:
    def act(place: Workplace) -> None:
        (place.folder / "x.parquet").write_bytes(content)
        place.plan(own_datasets__shapes={"parquet": str(place.folder / "x.parquet"), "template": "a {}"})

    return Case(act, ("own_datasets.shapes.parquet", "x.parquet", "no Parquet file"))


def no_parquet(make: Callable[[Path], Any], *words: str, parquet: str = "tables/*") -> Case:
    """A pattern of Parquet files meets something else; `make` gets the folder."""

    def act(place: Workplace) -> None:
        folder = place.folder / "tables"
        folder.mkdir()
        pq.write_table(pa.table({"image": [PNG] * 4, "label": LABELS}), folder / "0.parquet")
        make(folder)
        place.plan(own_datasets__shapes={"parquet": parquet, "template": "a {}"})

    return Case(act, words)


NO_IMAGES = pa.array([], pa.binary())
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def naming(*names: str | None) -> Any:
    """An image column that names files, in Hugging Face's form; None: the bytes are there."""
    rows = [{"bytes": PNG if name is None else None, "path": name or "x.png"} for name in names]
    return pa.array(rows, STRUCT)


def images_beside(place: Workplace) -> None:
    """Images that are named by a path are read, and count for the key; what is not named does not."""
    named = place.folder / "pictures" / "a.png"
    named.parent.mkdir()
    named.write_bytes(PNG)
    pq.write_table(pa.table({"image": naming("pictures/a.png", None, None, None), "label": LABELS}), "x.parquet")
    own = {"parquet": "x.parquet", "template": "a {}"}

    def key() -> str:
        return place.plan(own_datasets__shapes=own).real_images("shapes", "test").key

    assert [row["class_name"] for row in place.real_rows(own_datasets__shapes=own)] == LABELS
    first = key()
    (named.parent / "b.png").write_bytes(PNG)
    assert key() == first
    named.write_bytes(encoded(PICTURE.rotate(90)))
    assert key() != first


def secret(place: Workplace, name: str) -> None:
    """An image outside of the Parquet file's folder."""
    (place.folder / "secret.png").write_bytes(PNG)
    (place.folder / "tables").mkdir()
    table = pa.table({"image": [name, name, name, name], "label": LABELS})
    pq.write_table(table, place.folder / "tables" / "x.parquet")
    place.real_rows(own_datasets__shapes={"parquet": "tables", "template": "a {}"})


def encrypted(folder: Path) -> None:
    (folder / "1.parquet").write_bytes((folder / "0.parquet").read_bytes()[:-4] + b"PARE")


def half_gone(place: Workplace) -> None:
    """The pages of the image column are overwritten; the rest of the file is whole."""
    path = place.folder / "x.parquet"
    pq.write_table(pa.table({"image": [PNG] * 4, "label": LABELS}), path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(PNG[:40], b"\xff" * 40))
    place.real_rows(own_datasets__shapes={"parquet": str(path), "template": "a {}"})


def hugging_face(make: Callable[[Path], Any], *words: str) -> Case:
    """A folder that `datasets` loads; `make` gets it, and the canary."""

    def act(place: Workplace) -> None:
        pytest.importorskip("datasets")
        folder = place.folder / "birds"
        folder.mkdir()
        make(folder)
        own = {"huggingface": {"id": str(folder), "split": "test"}, "class_names": ["a", "b"], "template": "a {}"}
        place.real_rows(own_datasets__shapes=own)

    return Case(act, ("birds", *words))


def script(folder: Path) -> None:
    (folder / "birds.py").write_text(f"open({str(folder.parent / 'it ran')!r}, 'w')\n")


def metadata_beyond(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(PNG)
    rows = pa.table({"image": naming(*["../secret.png"] * 4), "label": LABELS})
    pq.write_table(rows, folder / "test.parquet")


PARQUET = {
    "parquet: images beside it": Case(images_beside),
    "parquet: image in the folder above": Case(
        lambda place: secret(place, "../secret.png"),
        ("x.parquet", "'../secret.png'", "leads out", "put the images beside"),
    ),
    "parquet: image of an absolute path": Case(
        lambda place: secret(place, str(place.folder / "secret.png")), ("x.parquet", "secret.png'", "leads out")
    ),
    "parquet: image by a way round": Case(lambda place: secret(place, "a/../../secret.png"), ("leads out",)),
    "parquet: image that is a device": Case(lambda place: secret(place, "/dev/zero"), ("'/dev/zero'", "leads out")),
    "parquet: image that is the folder": Case(lambda place: secret(place, "."), ("'.'", "a folder", "put the image")),
    "parquet: named pipe": no_parquet(lambda folder: os.mkfifo(folder / "1.parquet"), "1.parquet", "named pipe"),
    "parquet: named pipe in the folder": no_parquet(
        lambda folder: os.mkfifo(folder / "1.parquet"), "1.parquet", "named pipe", parquet="tables"
    ),
    "parquet: folder among the files": no_parquet(lambda folder: (folder / "x").mkdir(), "tables/x", "a folder"),
    "parquet: encrypted": no_parquet(encrypted, "1.parquet", "encrypted"),
    "parquet: pages that are damaged": Case(half_gone, ("shapes: ", "x.parquet/0")),
    "parquet: no rows": parquet("at least two classes", image=NO_IMAGES, label=pa.array([], pa.string())),
    "parquet: no rows, names given": parquet(
        "x.parquet hold no rows", image=NO_IMAGES, label=pa.array([], pa.string()), class_names=["a", "b"]
    ),
    "parquet: no columns": parquet("no column 'label'", "none", image=None, label=None),
    "parquet: negative label": parquet("'-1'", "not in class_folders", label=[0, 1, 0, -1], class_names=["a", "b"]),
    "parquet: label beyond 64 bits": parquet(
        "'18446744073709551615'", label=pa.array([0, 1, 0, 2**64 - 1], pa.uint64()), class_names=["a", "b"]
    ),
    "parquet: label of 10,000 characters": parquet("10000 characters", "at most 200", label=["x" * LONG, "b"] * 2),
    "parquet: label that is a terminal's command": parquet(r"\x1b[2J", "control character", label=["\x1b[2J", "b"] * 2),
    "parquet: booleans for labels": parquet("label_column", "bool", "whole numbers", label=[True, False] * 2),
    "parquet: dates for labels": parquet("label_column", "date", label=pa.array([0, 1, 0, 1], pa.date32())),
    "parquet: two columns of one name": Case(
        two_columns, ("x.parquet has 2 columns named 'label'", "rename all but one")
    ),
    "parquet: row without an image": parquet("x.parquet/2", "NoneType", image=(PNG, PNG, None, PNG)),
    "parquet: lists for images": parquet("x.parquet/0", "list", image=[[PNG]] * 4),
    "parquet: structs of another form": parquet("x.parquet/0", "NoneType", image=[{"pixels": PNG}] * 4),
    "parquet: structs of structs": parquet("x.parquet/0", "dict", image=[{"bytes": {"bytes": PNG}, "path": None}] * 4),
    "parquet: views for images": parquet(image=pa.array([PNG] * 4, pa.binary_view())),
    "parquet: large binary": parquet(image=pa.array([PNG] * 4, pa.large_binary())),
    "hugging face: script": hugging_face(script, "cannot be loaded"),
    "hugging face: image in the folder above": hugging_face(metadata_beyond, "secret.png", "leads out"),
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
    "parquet: paths that lead nowhere": parquet("x.parquet", "'nope.png'", "not there", image=["nope.png"] * 4),
    "parquet: path with NUL": parquet("x.parquet", r"'a\x00b'", "not there", image=["a\0b"] * 4),
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


@pytest.mark.parametrize("name", PARQUET)
def test_bad_table(place: Workplace, name: str):
    """The rows are read as they should be, or the file and column are named."""
    check(PARQUET[name], place)
