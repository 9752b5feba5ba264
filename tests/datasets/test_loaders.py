"""Every loader reads a tree laid out as the official download unpacks: labels, order, counts, and what can be wrong."""

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_trees import CLASSES, RawTree, Shown, draw, draw_flat_imagenet, draw_raw_tree
from small_project import changed, configured

from pipeline_lib.datasets.layouts import LAYOUTS, find_parts
from pipeline_lib.datasets.loaders import READERS, open_split
from pipeline_lib.datasets.loaders.split import RealSplit
from pipeline_lib.datasets.units import RealUnit, real_units
from pipeline_lib.digests import DigestCache
from pipeline_lib.errors import UserError

Params = dict[str, Any]
SPLITS = [(name, split) for name in CLASSES for split in LAYOUTS[name].parts]


def units(params: Params, tree: RawTree, split: str = "test", **changes: Any) -> list[RealUnit]:
    """The planned shards of a drawn tree."""
    own = {"drawn": tree.definition(**changes)}
    config = configured(changed(params, own_datasets=params["own_datasets"] | own))
    return real_units(config.dataset("drawn"), split, config, DigestCache(tree.root.parent / "digests.json"))


def opened(params: Params, tree: RawTree, split: str = "test", **changes: Any) -> RealSplit:
    """The split of a drawn tree, with a definition that may be changed."""
    unit = units(params, tree, split, **changes)[0]
    return open_split(unit.spec, unit.location)


def colour(split: RealSplit, index: int) -> np.ndarray:
    """What an image shows, int [3]."""
    raw = split.read(index)
    pixels = raw if isinstance(raw, np.ndarray) else np.asarray(Image.open(io.BytesIO(raw)))
    return pixels[pixels.shape[0] // 2, pixels.shape[1] // 2].astype(int)


def refusal(params: Params, tree: RawTree, split: str = "test", **changes: Any) -> str:
    """What the user is told."""
    with pytest.raises(UserError) as caught:
        opened(params, tree, split, **changes)
    return str(caught.value)


def test_there_is_a_reader_and_a_tree_for_every_layout():
    """The layouts, the readers and the trees drawn here are of the same 17 data sets."""
    assert set(READERS) == set(LAYOUTS) == set(CLASSES)
    assert len(LAYOUTS) == 17


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_labels_belong_to_their_images(params: Params, tmp_path: Path, name: str, split: str):
    """Every image shows the colour of the class that its label names, and of its split."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    images = opened(params, tree, split)
    assert len(images) == tree.n_images[split] == len(set(images.paths))
    assert set(images.labels) == set(tree.classes)
    assert len(set(Counter(images.labels).values())) == 1
    for index, label in enumerate(images.labels):
        shown = Shown(label, list(tree.classes).index(label), split, 0)
        assert np.abs(colour(images, index)[:2] - shown.colour[:2]).max() <= 1, images.paths[index]


@pytest.mark.parametrize("name", [name for name in CLASSES if "train" in LAYOUTS[name].parts])
def test_splits_are_disjoint(params: Params, tmp_path: Path, name: str):
    """No path is in both splits, and together they have all images."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    if name in ("cars", "imagenet"):  # each split has a folder of its own, and numbers of its own
        return
    test, train = (set(opened(params, tree, split).paths) for split in ("test", "train"))
    assert not test & train
    assert len(test | train) == sum(tree.n_images.values())


def test_records_keep_the_order_of_the_file(params: Params, tmp_path: Path):
    """CIFAR's images are numbered as in the files, across the five training batches."""
    tree = draw_raw_tree("cifar10", tmp_path / "cifar10", 4)
    images = opened(params, tree, "train")
    assert list(images.source_ids) == list(range(12))
    content = b"".join((tree.root / "cifar-10-batches-bin" / f"data_batch_{n}.bin").read_bytes() for n in range(1, 6))
    labels = [list(tree.classes)[content[record * 3073]] for record in range(12)]
    assert images.labels == labels
    assert images.paths[0] == "data_batch_1.bin/0"


def test_pixels_of_a_record_are_planes(params: Params, tmp_path: Path):
    """A CIFAR record holds red, green and blue planes of rows: checked on one that has no symmetry."""
    base = tmp_path / "cifar10"
    draw_raw_tree("cifar10", base, 1)
    planes = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    (base / "test_batch.bin").write_bytes(b"\x01" + planes.tobytes())
    (base / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    tree = RawTree("cifar10", base, CLASSES["cifar10"], {"test": 1})
    pixels = opened(params, tree).read(0)
    assert isinstance(pixels, np.ndarray)
    for row, column in ((0, 0), (0, 31), (31, 0), (5, 17)):
        assert pixels[row, column].tolist() == [planes[channel, row, column] for channel in range(3)]


@pytest.mark.parametrize("name", ["aircraft", "cars", "dtd", "flowers", "food", "pets"])
@pytest.mark.parametrize("split", ["test", "train"])
def test_same_images_and_labels_as_torchvision(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str
):
    """Where torchvision reads the layout too, it finds the same files with the same labels."""
    theirs = pytest.importorskip("torchvision.datasets")
    # The small trees cannot have the official files' MD5 sums.
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    root = tmp_path / "root"
    tree = draw_raw_tree(name, root / name, 4)
    for link in ("flowers-102", "oxford-iiit-pet", "stanford_cars"):
        (root / link).symlink_to(root / name)
    both = ("train", "val") if split == "train" else ("test",)
    found = {
        "aircraft": lambda: [theirs.FGVCAircraft(root / name, "trainval" if split == "train" else "test")],
        "cars": lambda: [theirs.StanfordCars(root, split)],
        "dtd": lambda: [theirs.DTD(root.parent, part) for part in both],
        "flowers": lambda: [theirs.Flowers102(root, part) for part in both],
        "food": lambda: [theirs.Food101(root / name, split)],
        "pets": lambda: [theirs.OxfordIIITPet(root, "trainval" if split == "train" else "test")],
    }
    if name == "dtd":  # torchvision adds dtd/dtd to the root
        (root.parent / "dtd").symlink_to(root / name)
    expected = []
    for data in found[name]():
        files = getattr(data, "_image_files", None) or getattr(data, "_images", None) or [f for f, _ in data._samples]
        numbers = getattr(data, "_labels", None) or [number for _, number in data._samples]
        if name == "flowers":
            labels = [str(number + 1) for number in numbers]
        elif name == "pets":  # its class names are written otherwise; its numbers are those of the annotations
            labels = [list(tree.classes)[number] for number in numbers]
        else:
            labels = [data.classes[number] for number in numbers]
        expected += [(Path(file).name, label) for file, label in zip(files, labels, strict=True)]
    images = opened(params, tree, split)
    ours = [(Path(path).name, label) for path, label in zip(images.paths, images.labels, strict=True)]
    assert sorted(ours) == sorted(expected)
    if name != "food":  # torchvision reads Food-101's lists by class
        assert ours == expected


@pytest.mark.parametrize("name", ["caltech101", "caltech256", "eurosat"])
def test_same_classes_as_torchvision(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """Where torchvision knows no split, both splits together have its images per class."""
    theirs = pytest.importorskip("torchvision.datasets")
    classes = CLASSES[name] | ({"BACKGROUND_Google": "background"} if name == "caltech101" else {})
    tree = draw_raw_tree(name, tmp_path / name, 4, classes=classes)
    if name == "eurosat":
        data = theirs.EuroSAT(tmp_path)
        expected = Counter(data.classes[number] for number in data.targets)
    else:
        data = (theirs.Caltech101 if name == "caltech101" else theirs.Caltech256)(tmp_path)
        expected = Counter(data.categories[number] for number in data.y)
    ours = Counter(label for split in ("test", "train") for label in opened(params, tree, split).labels)
    ours.pop("BACKGROUND_Google", None)  # torchvision leaves it out
    assert ours == expected


def test_first_images_of_a_class_are_caltechs_train_split(params: Params, tmp_path: Path):
    """Caltech has no official split: as in the released code, the first 30 (60) images of a class are trained on."""
    for name, n_train in (("caltech101", 30), ("caltech256", 60)):
        tree = draw_raw_tree(name, tmp_path / name, 2)
        train, test = opened(params, tree, "train"), opened(params, tree, "test")
        assert set(Counter(train.labels).values()) == {n_train}
        for label in tree.classes:
            last = max(path for path, of in zip(train.paths, train.labels, strict=True) if of == label)
            assert all(path > last for path, of in zip(test.paths, test.labels, strict=True) if of == label)


@pytest.mark.parametrize("beside", ["devkit", "kaggle"])
def test_flat_imagenet(params: Params, tmp_path: Path, beside: str):
    """ImageNet's validation images may lie flat, with the devkit or Kaggle's solution beside them."""
    tree = draw_flat_imagenet(tmp_path / "imagenet", 4, beside)
    images = opened(params, tree)
    assert len(images) == 12
    for index, label in enumerate(images.labels):
        assert abs(colour(images, index)[0] - Shown(label, list(tree.classes).index(label), "test", 0).colour[0]) <= 1
    assert images.official_names["n01440764"] == "tench, other name"


def test_flat_imagenet_without_labels(params: Params, tmp_path: Path):
    """Flat images alone show nothing of their classes: the message says what to put beside them."""
    tree = draw_flat_imagenet(tmp_path / "imagenet", 4, "nothing")
    message = refusal(params, tree)
    assert "half unpacked" in message
    assert "ILSVRC2012_devkit_t12.tar.gz" in message


@pytest.mark.parametrize("beside", ["devkit", "kaggle"])
def test_names_that_belong_to_other_codes_are_caught(params: Params, tmp_path: Path, beside: str):
    """WordNet ids resemble no name; the raw data's own words for them give a shifted list away."""
    tree = draw_flat_imagenet(tmp_path / "imagenet", 4, beside)
    [unit] = units(params, tree)
    names = list(tree.classes.values())
    with pytest.raises(UserError) as caught:
        open_split({**unit.spec, "class_names": [*names[1:], names[0]]}, unit.location)
    message = str(caught.value)
    assert "3 of 3 class names" in message
    assert "'tabby cat' stands at 'tench, other name'" in message


def test_images_that_birdsnaps_script_did_not_find(params: Params, tmp_path: Path):
    """Images gone from the web are left out; the others keep their numbers."""
    tree = draw_raw_tree("birdsnap", tmp_path / "birdsnap", 4)
    whole = opened(params, tree)
    (tree.root / "birdsnap" / "download" / "images" / whole.paths[1]).unlink()
    images = opened(params, tree, n_images={"test": None})
    assert len(images) == 11
    assert list(images.source_ids) == [0, *range(2, 12)]
    assert "11 test images were found, 12 are expected" in refusal(params, tree)


def test_half_a_list_is_not_enough(params: Params, tmp_path: Path):
    """A malformed line of an official list is named."""
    tree = draw_raw_tree("cub", tmp_path / "cub", 2)
    path = tree.root / "CUB_200_2011" / "image_class_labels.txt"
    path.write_text("1 1\n2\n")
    message = refusal(params, tree)
    assert str(path) in message
    assert "entry 2, '2'" in message


# --- what can be wrong with the raw data ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_absent_data_is_named_with_what_to_do(params: Params, tmp_path: Path, name: str, split: str):
    """Without raw data the message names the folder, what to download, and how it must lie in this data folder."""
    config = configured(changed(params, data=str(tmp_path / "raw"), datasets=["shapes"]))
    definition = configured(changed(params, datasets=["shapes", name], data=str(tmp_path / "raw"))).dataset(name)
    unit = real_units(definition, split, config, DigestCache(tmp_path / "digests.json"))[0]
    with pytest.raises(UserError) as caught:
        open_split(unit.spec, unit.location)
    message = str(caught.value)
    assert message.startswith(f"{name}: the raw data is not there")
    assert str(tmp_path / "raw" / name) in message
    assert "http" in message
    assert "DATA/" not in message


def test_absent_root_of_your_own(params: Params, tmp_path: Path):
    """A download that lies elsewhere is planned without its data, too; reading names the root that is missing."""
    tree = RawTree("food", tmp_path / "nowhere", CLASSES["food"], {"test": 6})
    assert f"the raw data is not there: {tmp_path / 'nowhere'} is missing or empty" in refusal(params, tree)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_missing_part_is_named(params: Params, tmp_path: Path, name: str, split: str):
    """A download that is unpacked but for one part is reported as half unpacked, with the part."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    for part, path in find_parts(LAYOUTS[name], split, tree.root).items():
        if path is None or part not in LAYOUTS[name].parts[split]:
            continue
        aside = tmp_path / "aside"
        path.rename(aside)
        (tree.root / "readme").touch()  # the folder is not empty
        message = refusal(params, tree, split)
        assert "half unpacked" in message
        assert part in message
        aside.rename(path)
    assert len(opened(params, tree, split)) == tree.n_images[split]


@pytest.mark.parametrize(("name", "split"), [(n, s) for n, s in SPLITS if n not in ("cifar10", "cifar100", "birdsnap")])
def test_missing_images_are_counted_and_named(params: Params, tmp_path: Path, name: str, split: str):
    """An image that a list names, or that makes the count, is missing: nothing is read."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    path = opened(params, tree, split).paths[-1]
    other_folders = {"test": {"train", "cars_train"}, "train": {"val", "cars_test"}}[split]
    [file] = [
        file
        for file in tree.root.rglob(Path(path).name)
        if file.as_posix().endswith(path) and other_folders.isdisjoint(file.relative_to(tree.root).parts)
    ]
    file.unlink()
    total = tree.n_images[split]
    if name.startswith(("caltech", "imagenet")):  # their folders list nothing: the count tells
        assert f"{total - 1} {split} images were found, {total} are expected" in refusal(params, tree, split)
    else:
        message = refusal(params, tree, split, n_images={split: None})
        assert f"half unpacked: 1 of {total} images are missing, the first ones are {path}" in message


def test_truncated_records(params: Params, tmp_path: Path):
    """A CIFAR file that ends inside a record is damaged."""
    tree = draw_raw_tree("cifar100", tmp_path / "cifar100", 4)
    path = tree.root / "cifar-100-binary" / "test.bin"
    path.write_bytes(path.read_bytes()[:-7])
    message = refusal(params, tree)
    assert str(path) in message
    assert "not a whole number of records of 3074 bytes" in message


def test_pickled_cifar_is_not_read(params: Params, tmp_path: Path):
    """The Python version holds pickles; who has it is told to get the other one."""
    root = tmp_path / "cifar10"
    (root / "cifar-10-batches-py").mkdir(parents=True)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    tree = RawTree("cifar10", root, CLASSES["cifar10"], {"test": 1})
    message = refusal(params, tree)
    assert "cifar-10-batches-py" in message
    assert "binary version" in message


CONTRADICTIONS = {
    "cub": ("CUB_200_2011/classes.txt", b"1 001.Black_footed_Albatross\n"),
    "eurosat": ("split_zhou_EuroSAT.json", b'{"train": []}'),
    "caltech101": ("101_ObjectCategories/accordion/copy.jpg", b"x"),
    "cars": ("cars_test_annos_withlabels.mat", None),
    "aircraft": ("fgvc-aircraft-2013b/data/images_variant_test.txt", b"\xff\xfe"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_lists_that_do_not_belong_together(params: Params, tmp_path: Path, name: str):
    """Lists that contradict each other, and files that do not belong, are the user's business, not a traceback."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    path, content = CONTRADICTIONS[name]
    (tree.root / path).write_bytes(content or (tree.root / "devkit" / "cars_meta.mat").read_bytes())
    message = refusal(params, tree)
    assert "damaged" in message
    assert str(tree.root) in message


def test_damaged_matlab_file(params: Params, tmp_path: Path):
    """A MATLAB file that cannot be read is named."""
    tree = draw_raw_tree("flowers", tmp_path / "flowers", 4)
    (tree.root / "setid.mat").write_bytes(b"damaged")
    assert "setid.mat cannot be read as a MATLAB file" in refusal(params, tree)


@pytest.mark.parametrize("name", CLASSES)
def test_wrong_count_is_refused(params: Params, tmp_path: Path, name: str):
    """Another number of images than the definition's is an error with both numbers."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    message = refusal(params, tree, n_images={"test": 13})
    assert "12 test images were found, 13 are expected" in message


@pytest.mark.parametrize("name", CLASSES)
def test_class_that_is_not_there(params: Params, tmp_path: Path, name: str):
    """A class of the definition that the data does not have is named."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    names, labels = list(tree.classes.values()), list(tree.classes)
    message = refusal(params, tree, class_names=[*names, "quokka"], class_folders=[*labels, "quokka"])
    assert "no images of 'quokka' (1 classes)" in message


@pytest.mark.parametrize("name", CLASSES)
def test_class_that_is_not_listed(params: Params, tmp_path: Path, name: str):
    """A class of the data that the definition does not have is an error, unless a subset is asked for."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    (left_out, *labels), names = list(tree.classes), list(tree.classes.values())[1:]
    fewer = {"class_names": names, "class_folders": labels}
    assert f"{left_out!r} (1 classes) of the data are not in class_folders" in refusal(params, tree, **fewer)
    images = opened(params, tree, **fewer, subset=True, n_images={"test": 8})
    assert set(images.labels) == set(labels)
    whole = opened(params, tree)
    assert [whole.labels[number] for number in images.source_ids] == images.labels
    for index, number in enumerate(images.source_ids):
        assert (colour(images, index) == colour(whole, number)).all()


WORDS = [name for name in CLASSES if name not in ("imagenet", "imagenet_sketch", "imagenet_r", "flowers")]


@pytest.mark.parametrize("name", WORDS)
def test_shuffled_folders_are_caught(params: Params, tmp_path: Path, name: str):
    """Class folders that are out of step with the class names are an error that names the pairs."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    labels = list(tree.classes)
    for shuffled in (labels[1:] + labels[:1], labels[::-1], random.Random(0).sample(labels, len(labels))):
        if shuffled != labels:
            message = refusal(params, tree, class_folders=shuffled)
            assert "class names do not stand at their own folders or labels" in message
            assert "stands at" in message
            assert "same order" in message


def test_names_that_are_meant_can_be_said(params: Params, tmp_path: Path):
    """Names that belong to other folders on purpose are listed in `renamed`."""
    tree = draw_raw_tree("food", tmp_path / "food", 2)
    swapped = {"class_names": ["apple pie", "waffles", "churros"]}
    assert "2 of 3 class names" in refusal(params, tree, **swapped)
    assert len(opened(params, tree, **swapped, renamed=["apple pie", "waffles"])) == 6


def test_layout_in_a_folder_of_its_own(params: Params, tmp_path: Path):
    """An archive unpacked into a folder of its own, as torchvision does, is found as well."""
    for name in ("caltech101", "flowers", "pets"):
        draw_raw_tree(name, tmp_path / name / "unpacked", 2)
        n_test = draw_raw_tree(name, tmp_path / f"{name}_plain", 2).n_images["test"]
        tree = RawTree(name, tmp_path / name, CLASSES[name], {"test": n_test})
        assert len(opened(params, tree)) == n_test


def test_stray_files_are_no_classes(params: Params, tmp_path: Path):
    """Files beside the class folders and hidden folders are no classes; nested folders of Caltech are not read."""
    tree = draw_raw_tree("imagenet_r", tmp_path / "imagenet_r", 2)
    draw(tree.root / "imagenet-r" / ".cache" / "x.jpg", Shown("x", 0, "test", 0))
    assert len(opened(params, tree)) == 6
