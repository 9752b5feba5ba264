"""Small trees laid out as the official downloads unpack, for every loader.

Every image is of one colour that tells its class and its split, so that a test can see from the pixels whether a label
belongs to its image. Lists are shuffled: their order, not the alphabet's, is what a loader must keep.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# A few official labels of each download with their class names; not in alphabetical order.
CLASSES: dict[str, dict[str, str]] = {
    "cifar10": {"airplane": "airplane", "automobile": "automobile", "bird": "bird"},
    "cifar100": {"apple": "apple", "aquarium_fish": "aquarium fish", "baby": "baby"},
    "caltech101": {"yin_yang": "yin and yang symbol", "Faces_easy": "face", "accordion": "accordion"},
    "caltech256": {"056.dog": "dog", "001.ak47": "AK-47", "257.clutter": "clutter"},
    "imagenet": {"n01440764": "tench", "n02123045": "tabby cat", "n01443537": "goldfish"},
    "sun397": {"/c/cabin/outdoor": "outdoor cabin", "/a/abbey": "abbey", "/b/bakery/shop": "bakery shop"},
    "aircraft": {"Boeing 737-300": "Boeing 737-300", "707-320": "707-320", "F-16A/B": "F-16A/B"},
    "birdsnap": {"Blue_Jay": "Blue Jay", "Wilsons_Warbler": "Wilson's Warbler", "Ovenbird": "Ovenbird"},
    "cars": {
        "BMW M3 Coupe 2012": "2012 BMW M3 Coupe",
        "AM General Hummer SUV 2000": "2000 AM General Hummer SUV",
        "Ram C/V Cargo Van Minivan 2012": "2012 Ram C/V Cargo Van Minivan",
    },
    "cub": {
        "002.Laysan_Albatross": "Laysan Albatross",
        "001.Black_footed_Albatross": "Black footed Albatross",
        "200.Common_Yellowthroat": "Common Yellowthroat",
    },
    "flowers": {"21": "fire lily", "3": "canterbury bells", "102": "blackberry lily"},
    "food": {"waffles": "waffles", "apple_pie": "apple pie", "churros": "churros"},
    "pets": {"Sphynx": "Sphynx", "american_bulldog": "American Bulldog", "Abyssinian": "Abyssinian"},
    "dtd": {"zigzagged": "zigzagged", "banded": "banded", "cobwebbed": "cobwebbed"},
    "eurosat": {"SeaLake": "sea or lake", "AnnualCrop": "annual crop land", "Forest": "forest"},
    "imagenet_sketch": {"n02123045": "tabby cat", "n01440764": "tench", "n01443537": "goldfish"},
    "imagenet_r": {"n02123045": "tabby cat", "n01443537": "goldfish", "n01484850": "great white shark"},
}
_TEST_ONLY = ("imagenet_sketch", "imagenet_r")
_FIRST_IMAGES_TRAIN = {"caltech101": 30, "caltech256": 60}  # per class; the layout has no lists


@dataclass(frozen=True)
class Shown:
    """One image to draw."""

    label: str
    class_index: int
    split: str
    number: int

    @property
    def colour(self) -> tuple[int, int, int]:
        """What the image shows: class, split and number."""
        return (20 + 3 * self.class_index % 231, 60 if self.split == "test" else 180, 10 + 5 * (self.number % 45))


@dataclass(frozen=True)
class RawTree:
    """What was drawn: labels in the order of the class indices, and the number of images per split."""

    loader: str
    root: Path
    classes: dict[str, str]
    n_images: dict[str, int]

    def definition(self, **changes: Any) -> dict[str, Any]:
        """The section of `own_datasets` that describes the tree."""
        return {
            "loader": self.loader,
            "root": str(self.root),
            "class_names": list(self.classes.values()),
            "class_folders": list(self.classes),
            "n_images": dict(self.n_images),
            "template": "a photo of a {}",
        } | changes


def draw_raw_tree(
    name: str,
    folder: Path,
    n_per_class: int,
    n_classes: int | None = None,
    classes: dict[str, str] | None = None,
) -> RawTree:
    """Write the raw data of a data set as its official download unpacks into `folder`.

    Args:
        n_per_class: images per class and split (the train split of Caltech has what the loader counts off: 30 or 60).
        n_classes: the first so many of `classes`; default: all.
        classes: official label -> class name; default: three of the data set's.
    """
    chosen = dict(list((classes or CLASSES[name]).items())[:n_classes])
    splits = ("test",) if name in _TEST_ONLY else ("test", "train")
    n_train = _FIRST_IMAGES_TRAIN.get(name, n_per_class)
    images = [
        Shown(label, index, split, number)
        for split in splits
        for number in range(n_train if split == "train" else n_per_class)
        for index, label in enumerate(chosen)
    ]
    random.Random(0).shuffle(images)
    folder.mkdir(parents=True, exist_ok=True)
    _DRAWERS[name](folder, images, chosen)
    n_images = {split: sum(image.split == split for image in images) for split in splits}
    return RawTree(name, folder, chosen, n_images)


def draw(path: Path, image: Shown, size: tuple[int, int] = (20, 16)) -> None:
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, image.colour).save(path, "PNG" if path.suffix == ".png" else "JPEG", quality=95)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _of(images: list[Shown], split: str) -> list[Shown]:
    return [image for image in images if image.split == split]


def _record(image: Shown, label_bytes: list[int]) -> bytes:
    planes = np.repeat(np.array(image.colour, np.uint8), 32 * 32)
    return bytes(label_bytes) + planes.tobytes()


def _cifar10(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    base = folder / "cifar-10-batches-bin"
    base.mkdir()
    _write(base / "batches.meta.txt", [*classes, ""])
    records = {split: [_record(i, [i.class_index]) for i in _of(images, split)] for split in ("test", "train")}
    (base / "test_batch.bin").write_bytes(b"".join(records["test"]))
    for number in range(5):
        (base / f"data_batch_{number + 1}.bin").write_bytes(b"".join(records["train"][number::5]))


def _cifar100(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    base = folder / "cifar-100-binary"
    base.mkdir()
    _write(base / "fine_label_names.txt", [*classes, ""])
    for split in ("test", "train"):
        # The coarse label comes first; a reader that takes it for the fine one gets another class.
        records = [_record(i, [(i.class_index + 1) % len(classes), i.class_index]) for i in _of(images, split)]
        (base / f"{split}.bin").write_bytes(b"".join(records))


def _caltech(folder: Path, images: list[Shown], classes: dict[str, str], base: str, pattern: str) -> None:
    for index, label in enumerate(classes):
        own = [image for image in images if image.class_index == index]
        # The first images of a class are its train split.
        ordered = sorted(own, key=lambda image: (image.split == "test", image.number))
        for number, image in enumerate(ordered, 1):
            draw(folder / base / label / pattern.format(index=index + 1, number=number), image)


def _caltech101(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    _caltech(folder, images, classes, "101_ObjectCategories", "image_{number:04d}.jpg")


def _caltech256(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    _caltech(folder, images, classes, "256_ObjectCategories", "{index:03d}_{number:04d}.jpg")
    stray = folder / "256_ObjectCategories" / next(iter(classes)) / "greg"  # the official archive has such folders
    draw(stray / "001_0001.jpg", images[0])


def _imagenet(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    for number, image in enumerate(images):
        if image.split == "train":
            draw(folder / "train" / image.label / f"{image.label}_{number}.JPEG", image)
        else:
            draw(folder / "val" / image.label / f"ILSVRC2012_val_{number:08d}.JPEG", image)


def draw_flat_imagenet(folder: Path, n_per_class: int, beside: str) -> RawTree:
    """ImageNet's validation images as the official archive has them: flat, with the devkit ("devkit") or Kaggle's
    solution file ("kaggle") beside them, or neither ("nothing")."""
    from scipy.io import savemat

    classes = CLASSES["imagenet"]
    images = [Shown(label, index, "test", n) for n in range(n_per_class) for index, label in enumerate(classes)]
    random.Random(0).shuffle(images)
    for number, image in enumerate(images, 1):
        draw(folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", image)
    ids = {label: 7 * index + 3 for index, label in enumerate(classes)}  # the devkit's numbers are in no order
    if beside == "devkit":
        devkit = folder / "ILSVRC2012_devkit_t12" / "data"
        _write(devkit / "ILSVRC2012_validation_ground_truth.txt", [str(ids[image.label]) for image in images])
        synsets = np.array(
            [(ids[label], label, f"{name}, other name") for label, name in classes.items()],
            dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)],
        )
        savemat(devkit / "meta.mat", {"synsets": synsets})
    if beside == "kaggle":
        rows = [f"ILSVRC2012_val_{number:08d},{image.label} 1 2 3 4" for number, image in enumerate(images, 1)]
        _write(folder / "LOC_val_solution.csv", ["ImageId,PredictionString", *reversed(rows)])
        _write(folder / "LOC_synset_mapping.txt", [f"{label} {name}, other name" for label, name in classes.items()])
    return RawTree("imagenet", folder, classes, {"test": len(images)})


def _sun397(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    names = {image: f"{image.label}/sun_{image.split}{image.number:04d}.jpg" for image in images}
    for image, name in names.items():
        draw(folder / f"SUN397{name}", image)
    for split, listed in (("test", "Testing_01.txt"), ("train", "Training_01.txt")):
        _write(folder / listed, [names[image] for image in _of(images, split)])


def _aircraft(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    data = folder / "fgvc-aircraft-2013b" / "data"
    ids = {image: f"{90000 - number:07d}" for number, image in enumerate(images)}
    for image, name in ids.items():
        draw(data / "images" / f"{name}.jpg", image)
    _write(data / "variants.txt", sorted(classes))
    for split, listed in (("test", "test"), ("train", "trainval")):
        rows = [f"{ids[image]} {image.label}" for image in _of(images, split)]
        _write(data / f"images_variant_{listed}.txt", rows)


def _birdsnap(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    base = folder / "birdsnap"
    ids = {label: str(5 + index) for index, label in enumerate(classes)}
    species = [f"{ids[label]}\t{name}\tLatinus latinus\t{label}" for label, name in classes.items()]
    _write(base / "species.txt", ["id\tcommon\tscientific\tdir", *species])
    paths = {image: f"{image.label}/{number}.jpg" for number, image in enumerate(images)}
    rows = [f"http://x/{n}.jpg\tmd5\t{path}\t{ids[image.label]}\t1\t2" for n, (image, path) in enumerate(paths.items())]
    _write(base / "images.txt", ["url\tmd5\tpath\tspecies_id\tbb_x1\tbb_y1", *rows])
    _write(base / "test_images.txt", ["path", *(paths[image] for image in _of(images, "test"))])
    for image, path in paths.items():
        draw(base / "download" / "images" / path, image)


def _cars(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    from scipy.io import savemat

    (folder / "devkit").mkdir()
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(list(classes), object)})
    for split, file in (("test", "cars_test_annos_withlabels.mat"), ("train", "devkit/cars_train_annos.mat")):
        rows = []
        for number, image in enumerate(_of(images, split), 1):
            draw(folder / f"cars_{split}" / f"{number:05d}.jpg", image)
            rows.append((1, 2, image.class_index + 1, f"{number:05d}.jpg"))
        fields = [("bbox_x1", object), ("bbox_y1", object), ("class", object), ("fname", object)]
        savemat(folder / file, {"annotations": np.array(rows, fields)})


def _cub(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    base = folder / "CUB_200_2011"
    names = {image: f"{image.label}/bird_{number:04d}.jpg" for number, image in enumerate(images)}
    for image, name in names.items():
        draw(base / "images" / name, image)
    _write(base / "classes.txt", [f"{index} {label}" for index, label in enumerate(classes, 1)])
    _write(base / "images.txt", [f"{n} {name}" for n, name in enumerate(names.values(), 1)])
    _write(base / "image_class_labels.txt", [f"{n} {image.class_index + 1}" for n, image in enumerate(names, 1)])
    _write(base / "train_test_split.txt", [f"{n} {int(image.split == 'train')}" for n, image in enumerate(names, 1)])


def _flowers(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    from scipy.io import savemat

    for number, image in enumerate(images, 1):
        draw(folder / "jpg" / f"image_{number:05d}.jpg", image)
    savemat(folder / "imagelabels.mat", {"labels": np.array([int(image.label) for image in images])})
    train = [number for number, image in enumerate(images, 1) if image.split == "train"]
    test = [number for number, image in enumerate(images, 1) if image.split == "test"]
    half = len(train) // 2
    sets = {"tstid": np.array(test), "trnid": np.array(train[:half]), "valid": np.array(train[half:])}
    savemat(folder / "setid.mat", sets)


def _food(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    base = folder / "food-101"
    names = {image: f"{image.label}/{1000 + number}" for number, image in enumerate(images)}
    for image, name in names.items():
        draw(base / "images" / f"{name}.jpg", image)
    for split in ("test", "train"):
        listed = _of(images, split)
        _write(base / "meta" / f"{split}.txt", [names[image] for image in listed])
        by_class = {label: [names[image] for image in listed if image.label == label] for label in classes}
        (base / "meta" / f"{split}.json").write_text(json.dumps(by_class))


def _pets(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    names = {image: f"{image.label}_{number}" for number, image in enumerate(images)}
    for image, name in names.items():
        draw(folder / "images" / f"{name}.jpg", image)
    for split, listed in (("test", "test"), ("train", "trainval")):
        rows = [f"{names[image]} {image.class_index + 1} 1 1" for image in _of(images, split)]
        _write(folder / "annotations" / f"{listed}.txt", rows)


def _dtd(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    base = folder / "dtd"
    names = {image: f"{image.label}/{image.label}_{number:04d}.jpg" for number, image in enumerate(images)}
    for image, name in names.items():
        draw(base / "images" / name, image)
    train, test = _of(images, "train"), _of(images, "test")
    half = len(train) // 2
    for listed, chosen in (("test1", test), ("train1", train[:half]), ("val1", train[half:])):
        _write(base / "labels" / f"{listed}.txt", [names[image] for image in chosen])


def _eurosat(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    names = {image: f"{image.label}/{image.label}_{number + 1}.jpg" for number, image in enumerate(images)}
    for image, name in names.items():
        draw(folder / "2750" / name, image)
    train = _of(images, "train")
    half = len(train) // 2
    lists = {"train": train[:half], "val": train[half:], "test": _of(images, "test")}
    rows = {key: [[names[i], i.class_index, i.label] for i in chosen] for key, chosen in lists.items()}
    (folder / "split_zhou_EuroSAT.json").write_text(json.dumps(rows))


def _imagenet_sketch(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    for number, image in enumerate(images):
        draw(folder / "sketch" / image.label / f"sketch_{number}.JPEG", image)


def _imagenet_r(folder: Path, images: list[Shown], classes: dict[str, str]) -> None:
    for number, image in enumerate(images):
        draw(folder / "imagenet-r" / image.label / f"art_{number}.jpg", image)
    _write(folder / "imagenet-r" / "README.txt", ["ImageNet-R"])


_DRAWERS: dict[str, Callable[[Path, list[Shown], dict[str, str]], None]] = {
    name: globals()[f"_{name}"] for name in CLASSES
}
