"""The list of data sets says of each what is there, what is missing, and what to do."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from raw_trees import CLASSES, draw_raw_tree
from small_project import changed, configured, draw_shapes, planned

from pipeline_lib import stages
from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.datasets.listing import describe_datasets
from pipeline_lib.datasets.registry import builtin_datasets
from pipeline_lib.datasets.units import REAL_PER_SHARD

Params = dict[str, Any]


def entries(params: Params) -> dict[str, str]:
    """What is said of each data set, by name, in one line."""
    found: dict[str, list[str]] = {}
    for line in describe_datasets(configured(params)):
        if not line.startswith(" "):
            current = found.setdefault(line.split()[0], [])
        current.append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}


@pytest.fixture
def params(params: Params, tmp_path: Path) -> Params:
    return changed(params, data=str(tmp_path / "raw"))


def test_every_data_set_is_listed(params: Params):
    """All that come with the package and your own, with task, classes, counts and licence; lines are short."""
    found = entries(params)
    assert set(builtin_datasets()) | {"shapes"} <= set(found)
    assert "(in this study)" in found["shapes"]
    assert "(in this study)" not in found["pets"]
    assert "fine-grained; 37 classes; test images: 3,669; train images: 3,680; licence: CC BY-SA 4.0" in found["pets"]
    assert "test images: as many as there are" in found["birdsnap"]
    assert all(len(line) <= 120 for line in describe_datasets(configured(params)))


def test_missing_raw_data_comes_with_what_to_do(params: Params, tmp_path: Path):
    """Of a download that is not there: where it is expected and where to get it, in terms of this data folder."""
    found = entries(params)
    for name in CLASSES:
        assert f"MISSING; it is expected in {tmp_path / 'raw' / name}" in found[name]
        assert "To do:" in found[name]
        assert "http" in found[name]


@pytest.mark.parametrize("name", CLASSES)
def test_raw_data_that_is_there_whole_or_half(params: Params, tmp_path: Path, name: str):
    """A whole tree is there; without one part it is half there, and the part is named."""
    tree = draw_raw_tree(name, tmp_path / "raw" / name, 2)
    assert f"raw data: there, in {tree.root}" in entries(params)[name]
    part = next(path for path in sorted(tree.root.rglob("*")) if path.name in PARTS[name])
    part.rename(tmp_path / "aside")
    (tree.root / "readme").touch()
    said = entries(params)[name]
    assert "HALF THERE" in said
    assert f"missing: {PARTS[name][part.name]} of the" in said


PARTS = {
    "cifar10": {"test_batch.bin": "test_batch.bin"},
    "cifar100": {"test.bin": "test.bin"},
    "caltech101": {"101_ObjectCategories": "101_ObjectCategories"},
    "caltech256": {"256_ObjectCategories": "256_ObjectCategories"},
    "imagenet": {"val": "val"},
    "sun397": {"Testing_01.txt": "Testing_01.txt"},
    "aircraft": {"images_variant_test.txt": "data/images_variant_test.txt"},
    "birdsnap": {"images": "download/images"},
    "cars": {"cars_test_annos_withlabels.mat": "cars_test_annos_withlabels.mat"},
    "cub": {"train_test_split.txt": "train_test_split.txt"},
    "flowers": {"jpg": "jpg"},
    "food": {"test.txt": "meta/test.txt"},
    "pets": {"annotations": "annotations/test.txt"},
    "dtd": {"labels": "labels/test1.txt"},
    "eurosat": {"split_zhou_EuroSAT.json": "split_zhou_EuroSAT.json"},
    "imagenet_sketch": {"sketch": "sketch"},
    "imagenet_r": {"imagenet-r": "imagenet-r"},
}


def test_prepared_shards_are_counted(params: Params, tmp_path: Path):
    """Shards in the store are counted against those that are planned."""
    for number in range(REAL_PER_SHARD):
        (tmp_path / "shapes" / "red" / f"link{number:04d}.png").symlink_to(tmp_path / "shapes" / "red" / "000.png")
    assert "shards: test 0 of 2" in entries(params)["shapes"]
    plan = planned(params)
    real = plan.real_images("shapes", "test")
    stages.real_images(real, plan.store)
    assert "shards: test 2 of 2" in entries(params)["shapes"]
    plan.store.remove(real.members[0].path)
    assert "shards: test 1 of 2" in entries(params)["shapes"]


def test_splits_that_each_data_set_has(params: Params, tmp_path: Path):
    """Train images are counted where there are any, and of your own it is said where they are."""
    draw_shapes(tmp_path / "train", 1, seed=1)
    hub = {"id": "x/y", "revision": "a" * 40, "train_split": "training"}
    more = {
        "mine": {"folder": str(tmp_path / "shapes"), "train_folder": str(tmp_path / "train"), "template": "{}"},
        "hub": {"huggingface": hub, "class_names": ["a", "b"], "template": "{}"},
    }
    found = entries(changed(params, own_datasets=params["own_datasets"] | more))
    assert "test images: 10,000; train images: 5,000; validation images: 5,000" in found["objects"]
    assert "train images" not in found["imagenet_r"] + found["shapes"]
    assert "train images: as many as there are" in found["mine"]
    said = f"raw data: your own, in {tmp_path / 'shapes'}; training images: {tmp_path / 'train'}"
    assert said.replace(" ", "") in found["mine"].replace(" ", "")  # long paths are wrapped
    assert "fetched when it is needed; training images: split training" in found["hub"]
    assert "shards: test 0 of 1" in found["mine"]
    (tmp_path / "train" / "blue" / "000.png").unlink()
    found = entries(changed(params, own_datasets=params["own_datasets"] | more))
    assert "cannot be made: mine: no images in" in found["mine"]


def test_own_data_that_cannot_be_planned_is_no_traceback(params: Params, tmp_path: Path):
    """An empty class folder is said where the shards would be; the others are listed all the same."""
    for file in (tmp_path / "shapes" / "blue").iterdir():
        file.unlink()
    found = entries(params)
    assert "cannot be made: shapes: no images in" in found["shapes"]
    assert "sun397" in found


def test_fashion_mnist_is_there_or_fetched(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The miniature's data set needs nothing done."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    assert "not there yet; fetched when it is needed" in entries(params)["objects"]
    (tmp_path / "raw" / "fashion-mnist").mkdir(parents=True)
    assert f"there, in {tmp_path / 'raw' / 'fashion-mnist'}" in entries(params)["objects"]


def test_listing_is_quick(params: Params):
    """It looks at layouts and records, at no image."""
    started = time.process_time()
    assert len(list(describe_datasets(configured(params)))) > 80
    assert time.process_time() - started < 10


def test_shards_made_from_other_files_are_pointed_out(params: Params, tmp_path: Path):
    """Shards of the package's data sets stay when the raw data changes or goes; the list says where it has changed."""
    definition = builtin_datasets()["birdsnap"]
    names = dict(zip(definition.labels, definition.class_names, strict=True))
    tree = draw_raw_tree("birdsnap", tmp_path / "raw" / "birdsnap", 1, classes=names)
    plan = planned(params)
    stages.real_images(plan.real_images("birdsnap", "test"), plan.store)
    assert "shards: test 1 of 1" in entries(params)["birdsnap"]
    assert "OTHER FILES" not in entries(params)["birdsnap"]
    next((tree.root / "birdsnap" / "download" / "images" / next(iter(names))).iterdir()).unlink()
    said = entries(params)["birdsnap"]
    assert "shards: test 1 of 1. The test shards were made from OTHER FILES than" in said
    assert "they were 500 images then" in said
    assert "own_datasets with loader: birdsnap" in said
    shutil.rmtree(tree.root)
    assert "shards: test 1 of 1" in entries(params)["birdsnap"]
    assert "OTHER FILES" not in entries(params)["birdsnap"]
