"""Your own data in Parquet files, or in any form that Hugging Face `datasets` loads."""

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_project import changed, configured, draw_shapes, planned

from pipeline_lib import stages
from pipeline_lib.datasets.registry import Dataset, read_datasets
from pipeline_lib.datasets.units import real_units
from pipeline_lib.digests import DigestCache
from pipeline_lib.errors import UserError
from pipeline_lib.shards import decode_image, read_rows

Params = dict[str, Any]
COLOURS = {"robin": (200, 30, 30), "wren": (30, 200, 30), "owl": (30, 30, 200)}
NAMES = ["robin", "wren", "owl"]
_PNG_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, labels: list[str], *, kind: str = "text", columns: tuple[str, str] = ("image", "label")):
    """Birds in Parquet: labels as "text", "dictionary", "numbers", or "named" numbers (Hugging Face's ClassLabel)."""
    images = pa.array([{"bytes": png(COLOURS[label]), "path": None} for label in labels], _PNG_STRUCT)
    numbers = pa.array([NAMES.index(label) for label in labels], pa.int64())
    arrays = {"text": pa.array(labels), "dictionary": pa.array(labels).dictionary_encode()}
    table = pa.table({columns[0]: images, columns[1]: arrays.get(kind, numbers)})
    if kind == "named":
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": NAMES, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


def birds(**keys: Any) -> dict[str, Any]:
    return {"template": "a photo of a {}", **keys}


def defined(**keys: Any) -> Dataset:
    return read_datasets({"birds": birds(**keys)}, "own_datasets")["birds"]


def made(params: Params, **keys: Any) -> list[dict[str, Any]]:
    """The rows of the shards made from your own data."""
    plan = planned(changed(params, own_datasets=params["own_datasets"] | {"birds": birds(**keys)}))
    real = plan.real_images("birds", "test")
    stages.real_images(real, plan.store)
    return [row for unit in real.members for row in read_rows(plan.store.path(unit))]


def assert_true_colours(rows: list[dict[str, Any]], labels: list[str]) -> None:
    """Rows are those of `labels`, each with its image."""
    assert [row["class_name"] for row in rows] == labels
    assert [row["source_id"] for row in rows] == list(range(len(labels)))
    for row in rows:
        assert decode_image(row["image"]["bytes"]).getpixel((2, 2)) == COLOURS[row["class_name"]]


# --- Parquet ----------------------------------------------------------------------------------------------------------

LABELS = ["wren", "robin", "owl", "owl", "wren"]


@pytest.mark.parametrize("kind", ["text", "dictionary", "named"])
@pytest.mark.parametrize("form", ["file", "pattern", "folder"])
def test_two_lines_are_enough_for_parquet(params: Params, tmp_path: Path, kind: str, form: str):
    """A path, a pattern or a folder, and a template: the class names are the labels' own."""
    write_parquet(tmp_path / "birds" / "0.parquet", LABELS[:3], kind=kind)
    write_parquet(tmp_path / "birds" / "1.parquet", LABELS[3:], kind=kind)
    if form == "file":
        write_parquet(tmp_path / "birds.parquet", LABELS, kind=kind)
    place = {"file": "birds.parquet", "pattern": "birds/*.parquet", "folder": "birds"}[form]
    rows = made(params, parquet=str(tmp_path / place))
    assert_true_colours(rows, LABELS)
    expected = NAMES if kind == "named" else sorted(NAMES)
    assert defined(parquet=str(tmp_path / place)).class_names == expected


def test_bytes_in_plain_columns_of_other_names(params: Params, tmp_path: Path):
    """The columns may have other names, and the images may be plain bytes."""
    table = pa.table({"picture": [png(COLOURS[label]) for label in LABELS], "species": LABELS})
    pq.write_table(table, tmp_path / "birds.parquet")
    keys = {"image_column": "picture", "label_column": "species"}
    assert_true_colours(made(params, parquet=str(tmp_path / "birds.parquet"), **keys), LABELS)


def test_paths_are_relative_to_the_file(params: Params, tmp_path: Path):
    """A column of paths names files beside the Parquet file."""
    for label, colour in COLOURS.items():
        (tmp_path / "birds").mkdir(exist_ok=True)
        (tmp_path / "birds" / f"{label}.png").write_bytes(png(colour))
    images = pa.array([{"bytes": None, "path": f"{label}.png"} for label in LABELS], _PNG_STRUCT)
    pq.write_table(pa.table({"image": images, "label": LABELS}), tmp_path / "birds" / "x.parquet")
    assert_true_colours(made(params, parquet=str(tmp_path / "birds")), LABELS)


def test_numbers_need_names(params: Params, tmp_path: Path):
    """Numbers without names are refused; class_names name them in the order of the numbers."""
    path = tmp_path / "birds.parquet"
    write_parquet(path, LABELS, kind="numbers")
    with pytest.raises(ValueError, match=r"own_datasets\.birds\.class_names: missing; .* are numbers without names"):
        defined(parquet=str(path))
    assert_true_colours(made(params, parquet=str(path), class_names=NAMES), LABELS)
    with pytest.raises(UserError, match=r"'2' \(1 classes\) of the data are not in class_folders"):
        made(params, parquet=str(path), class_names=NAMES[:2])


def test_named_numbers_are_bound_by_name(params: Params, tmp_path: Path):
    """Class names in another order than the file's take their own images: labels are bound by name, not by place."""
    path = tmp_path / "birds.parquet"
    write_parquet(path, LABELS, kind="named")
    assert_true_colours(made(params, parquet=str(path), class_names=sorted(NAMES)), LABELS)


def test_hidden_labels_are_no_class(params: Params, tmp_path: Path):
    """Test splits on the hub may have -1 for every label; that is no class, in particular not the last one."""
    path = tmp_path / "birds.parquet"
    write_parquet(path, LABELS, kind="named")
    table = pq.read_table(path)
    hidden = table.set_column(1, "label", pa.array([-1] * 5, pa.int64()))
    pq.write_table(hidden.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(UserError, match=r"'-1' \(1 classes\) of the data are not in class_folders"):
        made(params, parquet=str(path))


def test_misordered_labels_are_caught(params: Params, tmp_path: Path):
    """class_folders out of step with class_names are an error when planned."""
    write_parquet(tmp_path / "birds.parquet", LABELS)
    with pytest.raises(UserError, match="3 of 3 class names"):
        made(params, parquet=str(tmp_path / "birds.parquet"), class_names=NAMES, class_folders=["wren", "owl", "robin"])


def test_subset_of_the_labels(params: Params, tmp_path: Path):
    """Other classes are left out where a subset is asked for; images keep their numbers."""
    write_parquet(tmp_path / "birds.parquet", LABELS)
    rows = made(params, parquet=str(tmp_path / "birds.parquet"), class_names=["owl", "wren"], subset=True)
    assert [(row["source_id"], row["class_name"]) for row in rows] == [(0, "wren"), (2, "owl"), (3, "owl"), (4, "wren")]


def test_damaged_image_in_a_table(params: Params, tmp_path: Path):
    """A row whose bytes are no image is named by its number; so is one that has none."""
    images = [png(COLOURS["robin"]), b"damaged", None, png(COLOURS["owl"])]
    table = pa.table({"image": images, "label": ["robin", "wren", "owl", "owl"]})
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=1)
    with pytest.raises(UserError) as caught:
        made(params, parquet=str(tmp_path / "*.parquet"))
    message = str(caught.value)
    assert "4 files cannot be read as images" in message
    assert all(f"{place} (" in message for place in ("a.parquet/1", "a.parquet/2", "b.parquet/1", "b.parquet/2"))


def test_content_is_in_the_key(params: Params, tmp_path: Path):
    """Other rows are other shards; the same files elsewhere are the same."""
    keys = set()
    for place, labels in (("a", LABELS), ("b", LABELS), ("c", LABELS[::-1])):
        write_parquet(tmp_path / place / "x.parquet", labels)
        own = {"birds": birds(parquet=str(tmp_path / place))}
        config = configured(changed(params, own_datasets=params["own_datasets"] | own))
        [unit] = real_units(config.dataset("birds"), "test", config, DigestCache(tmp_path / "d.json"))
        assert (unit.spec["start"], unit.spec["stop"]) == (0, 5)
        keys.add(json.dumps(unit.spec, sort_keys=True))
    assert len(keys) == 2


BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "no such file": ({"parquet": "none.parquet"}, r"own_datasets\.birds\.parquet: 'none\.parquet' names no file"),
    "empty pattern": ({"parquet": "none/*.parquet"}, "names no file that is there"),
    "no Parquet": ({"parquet": "text.parquet"}, r"text\.parquet is no Parquet file that can be read"),
    "no such label column": (
        {"parquet": "birds.parquet", "label_column": "species"},
        r"own_datasets\.birds\.label_column: .* has no column 'species'; it has 'image', 'label'",
    ),
    "labels that are images": (
        {"parquet": "birds.parquet", "label_column": "image"},
        "holds struct.*; text or whole numbers are needed",
    ),
    "rows without a label": ({"parquet": "holes.parquet"}, "has rows without a label"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_parquet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """What is wrong with the files is told when the configuration is read."""
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "birds.parquet", LABELS)
    (tmp_path / "text.parquet").write_text("text")
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": ["robin", None]}), tmp_path / "holes.parquet")
    keys, pattern = BAD_FILES[name]
    with pytest.raises(ValueError, match=pattern):
        defined(**keys)


def test_missing_image_column(params: Params, tmp_path: Path):
    """A column of images that is not there is named with those that are."""
    write_parquet(tmp_path / "birds.parquet", LABELS)
    with pytest.raises(UserError, match=r"has no column 'photo'; it has 'image', 'label'"):
        made(params, parquet=str(tmp_path / "birds.parquet"), image_column="photo")


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def test_local_parquet_data_set(params: Params, tmp_path: Path):
    """A folder that `datasets` loads, with its own split and names of columns."""
    pytest.importorskip("datasets")
    write_parquet(tmp_path / "hub" / "data" / "test-00000.parquet", LABELS, kind="named", columns=("img", "fine"))
    keys = {"image_column": "img", "label_column": "fine", "class_names": NAMES}
    assert_true_colours(made(params, huggingface={"id": str(tmp_path / "hub")}, **keys), LABELS)


def test_local_image_folder(params: Params, tmp_path: Path):
    """The imagefolder form: files in folders per class; images are stored as they are."""
    pytest.importorskip("datasets")
    draw_shapes(tmp_path / "hub" / "test", 3)
    rows = made(params, huggingface={"id": str(tmp_path / "hub")}, class_names=["red", "blue", "green"])
    assert len(rows) == 9
    by_class = {name: [row for row in rows if row["class_name"] == name] for name in ("red", "blue", "green")}
    for name, own in by_class.items():
        originals = {file.read_bytes() for file in (tmp_path / "hub" / "test" / name).iterdir()}
        assert {row["image"]["bytes"] for row in own} == originals


def test_split_that_the_data_set_does_not_have(params: Params, tmp_path: Path):
    """An unknown split of a data set is reported with those that it has."""
    pytest.importorskip("datasets")
    draw_shapes(tmp_path / "hub" / "test", 1)
    hub = {"id": str(tmp_path / "hub"), "split": "holdout"}
    with pytest.raises(UserError, match=r'Unknown split "holdout".*test'):
        made(params, huggingface=hub, class_names=["red", "blue", "green"])


def test_hub_that_cannot_be_reached(params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Without the hub the message comes soon, and says how to get the data set by other means."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    started = time.perf_counter()
    with pytest.raises(UserError) as caught:
        made(params, huggingface={"id": "someone/birds", "revision": "a" * 40}, class_names=NAMES)
    message = str(caught.value)
    assert "someone/birds: the data set cannot be loaded" in message
    assert f"hf download someone/birds --repo-type dataset --revision {'a' * 40} --local-dir FOLDER" in message
    assert time.perf_counter() - started < 30


BAD_HUB: dict[str, tuple[dict[str, Any], list[str]]] = {
    "not pinned": ({"huggingface": {"id": "someone/birds"}}, ["huggingface: revision", "'someone/birds'", "pin it"]),
    "a branch": ({"huggingface": {"id": "someone/birds", "revision": "main"}}, ["huggingface.revision", "pattern"]),
    "no such folder": ({"huggingface": {"id": "./none"}}, ["huggingface: id", "'./none' does not exist"]),
    "no class names": (
        {"huggingface": {"id": "someone/birds", "revision": "a" * 40}, "class_names": ...},
        ["class_names", "Field required"],
    ),
    "two sources": (
        {"huggingface": {"id": "someone/birds", "revision": "a" * 40}, "fashion_mnist": "scene"},
        ["exactly one of", "given: fashion_mnist, huggingface"],
    ),
    "no source": ({}, ["exactly one of", "given: none"]),
    "unknown loader": ({"loader": "mnist"}, ["loader: 'mnist' is not known", "cifar10"]),
    "root without a loader": ({"fashion_mnist": "scene", "root": "."}, ["root: it belongs to loader"]),
    "a label twice": ({"fashion_mnist": "scene", "class_folders": ["a", "b", "a"]}, ["'a' stands for more than one"]),
    "renamed stranger": ({"fashion_mnist": "scene", "renamed": ["eagle"]}, ["renamed: 'eagle' is not among"]),
    "count of no split": (
        {"huggingface": {"id": "a/b", "revision": "a" * 40}, "n_images": {"train": 3}},
        ["n_images: there is no split 'train'; there are test"],
    ),
    "test images to train on": (
        {"huggingface": {"id": "a/b", "revision": "a" * 40, "split": "x", "train_split": "x"}},
        ["huggingface: train_split: 'x' is the split with the test images"],
    ),
    "a train folder for a download": (
        {"loader": "food", "train_folder": "."},
        ["train_folder: it belongs to folder; leave it out"],
    ),
    "train files for garments": (
        {"fashion_mnist": "scene", "train_parquet": "x.parquet"},
        ["train_parquet: it belongs to parquet; leave it out"],
    ),
    "no such train folder": (
        {"folder": ".", "train_folder": "./none"},
        ["birds.train_folder: the folder './none' does not exist; name the folder of the training images"],
    ),
    "no images": ({"fashion_mnist": "scene", "n_images": {"test": 0}}, ["n_images", "greater than or equal to 1"]),
}


@pytest.mark.parametrize("name", BAD_HUB)
def test_bad_definition_is_named(name: str):
    """What is wrong with a definition is told with its key and value."""
    keys, words = BAD_HUB[name]
    keys = {"class_names": NAMES} | keys
    with pytest.raises(ValueError, match=r"own_datasets\.birds") as caught:
        defined(**{key: value for key, value in keys.items() if value is not ...})
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


# --- training images --------------------------------------------------------------------------------------------------


def test_splits_of_your_own(tmp_path: Path):
    """Training images make a split `train`, of each kind that can have them."""
    draw_shapes(tmp_path / "a", 1)
    draw_shapes(tmp_path / "b", 1, seed=1)
    write_parquet(tmp_path / "test.parquet", LABELS)
    write_parquet(tmp_path / "train.parquet", LABELS)
    hub = {"id": "someone/birds", "revision": "a" * 40}
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"folder": str(tmp_path / "a")}, {"train_folder": str(tmp_path / "b")}),
        ({"parquet": str(tmp_path / "test.parquet")}, {"train_parquet": str(tmp_path / "train.parquet")}),
        ({"huggingface": hub, "class_names": NAMES}, {"huggingface": {**hub, "train_split": "train"}}),
    ]
    for keys, more in kinds:
        assert defined(**keys).splits == ("test",)
        assert defined(**{**keys, **more}).splits == ("test", "train")


def test_folder_of_test_images_to_train_on(tmp_path: Path):
    """The folder of the test images is refused under whatever name."""
    draw_shapes(tmp_path / "a", 1)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for train in (tmp_path / "a", tmp_path / "link", tmp_path / "a" / ".." / "a"):
        with pytest.raises(ValueError, match=r"own_datasets\.birds\.train_folder: .* never be trained on"):
            defined(folder=str(tmp_path / "a"), train_folder=str(train))


def test_parquet_of_test_images_to_train_on(tmp_path: Path):
    """A pattern that names a file of the test images among others is refused with the file."""
    for name in ("test", "train"):
        write_parquet(tmp_path / "birds" / f"{name}.parquet", LABELS)
    test = str(tmp_path / "birds" / "test.parquet")
    defined(parquet=test, train_parquet=str(tmp_path / "birds" / "train*.parquet"))
    for train in (test, str(tmp_path / "birds"), str(tmp_path / "*" / "*.parquet")):
        with pytest.raises(ValueError, match=rf"own_datasets\.birds\.train_parquet: .* trained on: {test}; name"):
            defined(parquet=test, train_parquet=train)


def test_train_parquet_that_is_not_there(tmp_path: Path):
    """The key is named."""
    write_parquet(tmp_path / "birds.parquet", LABELS)
    with pytest.raises(ValueError, match=r"own_datasets\.birds\.train_parquet: 'no\*\.parquet' names no file"):
        defined(parquet=str(tmp_path / "birds.parquet"), train_parquet="no*.parquet")


def test_arrays_of_large_text(params: Params, tmp_path: Path):
    """pandas and polars write large_string and large_binary: these are read too."""
    images = pa.array([png(COLOURS[label]) for label in LABELS], pa.large_binary())
    table = pa.table({"image": images, "label": pa.array(LABELS, pa.large_string())})
    pq.write_table(table, tmp_path / "birds.parquet")
    rows = made(params, parquet=str(tmp_path / "birds.parquet"))
    assert_true_colours(rows, LABELS)
    assert np.unique([row["width"] for row in rows]).tolist() == [6]
