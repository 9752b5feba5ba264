"""Downloads with one folder per class: Caltech, ImageNet and its relatives; and a folder of your own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline_lib.datasets.loaders.matlab import load_matlab
from pipeline_lib.datasets.loaders.split import RealSplit, of_files, read_lines, read_table
from pipeline_lib.datasets.own_data import IMAGE_SUFFIXES
from pipeline_lib.errors import UserError
from pipeline_lib.paths import files_below, sub_folders

Parts = dict[str, Path]


def own_folder(root: Path, labels: Sequence[str]) -> RealSplit:
    """Images anywhere below one sub-folder per class, in the order of `labels`."""
    files = [(file, label) for label in labels for file in files_below(root / label, IMAGE_SUFFIXES)]
    return of_files(root, [file for file, _ in files], [label for _, label in files])


def caltech101(parts: Parts, split: str) -> RealSplit:
    """Caltech-101 (Fei-Fei et al., 2004). It has no official split; the released code trains on the first 30 images of
    each class and tests on the others (`Caltech101` in transfer_datasets.py)."""
    return _first_of_each_class(parts["101_ObjectCategories"], split, 30)


def caltech256(parts: Parts, split: str) -> RealSplit:
    """Caltech-256 (Griffin et al., 2007), divided likewise after the first 60 images of each class."""
    return _first_of_each_class(parts["256_ObjectCategories"], split, 60)


def imagenet(parts: Parts, split: str) -> RealSplit:
    """ILSVRC 2012. The validation images are the test split; they lie in folders named by WordNet id, or flat, as in
    the official archive, with the devkit or with Kaggle's solution file beside them."""
    names = _synset_names(parts)
    if split == "train":
        return imagenet_folders(parts["train"], names)
    if sub_folders(parts["val"]):
        return imagenet_folders(parts["val"], names)
    files = _images_in(parts["val"])
    labels = _validation_labels(parts, [file.stem for file in files])
    return of_files(parts["val"], files, labels, official_names=names)


def imagenet_sketch(parts: Parts, split: str) -> RealSplit:
    """ImageNet-Sketch (Wang et al., 2019): a test split alone, folders named by WordNet id."""
    return imagenet_folders(parts["sketch"])


def imagenet_r(parts: Parts, split: str) -> RealSplit:
    """ImageNet-R (Hendrycks et al., 2021): a test split alone, 200 folders named by WordNet id."""
    return imagenet_folders(parts["imagenet-r"])


def imagenet_folders(folder: Path, names: dict[str, str] | None = None) -> RealSplit:
    """All images of the folders, both in alphabetical order."""
    by_class = {name: _images_in(folder / name) for name in sub_folders(folder)}
    files = [file for images in by_class.values() for file in images]
    return of_files(folder, files, [file.parent.name for file in files], official_names=names)


def _first_of_each_class(folder: Path, split: str, n_train: int) -> RealSplit:
    # Counted by the number in the file's name: where one is missing, no test image moves into the train pool.
    files = [
        file
        for name in sub_folders(folder)
        for file in _images_in(folder / name)
        if (int(file.stem.rpartition("_")[2]) <= n_train) == (split == "train")
    ]
    return of_files(folder, files, [file.parent.name for file in files])


def _images_in(folder: Path) -> list[Path]:
    """The images that lie directly in a folder; some downloads have a stray folder beside them."""
    return sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)


def _validation_labels(parts: Parts, stems: Sequence[str]) -> list[str]:
    """WordNet ids of ImageNet's flat validation images, given their names without suffix, sorted."""
    if "LOC_val_solution.csv" in parts:
        # ImageId,PredictionString: the class and its boxes, n03995372 85 1 499 272
        rows = read_table(parts["LOC_val_solution.csv"], 2, ",")[1:]
        of_image = {image: prediction.split()[0] for image, prediction in rows}
        unknown = [stem for stem in stems if stem not in of_image]
        if unknown:
            raise UserError(f"{parts['LOC_val_solution.csv']} says nothing of {len(unknown)} images, as {unknown[0]}")
        return [of_image[stem] for stem in stems]
    if "ILSVRC2012_devkit_t12/data" in parts:
        devkit = parts["ILSVRC2012_devkit_t12/data"]
        path = devkit / "ILSVRC2012_validation_ground_truth.txt"
        wnid_of = {number: wnid for number, wnid, _ in _synsets(devkit / "meta.mat")}
        numbers = [int(line) for line in read_lines(path)]
        # One number per image, in the order of the images' names; the names end in the image's number.
        positions = [int(stem.rsplit("_", 1)[-1]) - 1 for stem in stems]
        if not all(0 <= position < len(numbers) for position in positions):
            raise UserError(f"{path} has {len(numbers)} labels, the images are numbered up to {max(positions) + 1}")
        return [wnid_of[numbers[position]] for position in positions]
    raise UserError(
        f"half unpacked: the images in {parts['val']} lie flat and nothing says what they show; unpack "
        f"ILSVRC2012_devkit_t12.tar.gz beside the folder, put Kaggle's LOC_val_solution.csv there, or sort the images "
        f"into folders named by WordNet id"
    )


def _synset_names(parts: Parts) -> dict[str, str]:
    """ImageNet's own names of the WordNet ids, where a file that has them is there."""
    if "LOC_synset_mapping.txt" in parts:
        return dict(read_table(parts["LOC_synset_mapping.txt"], 2))  # type: ignore[arg-type]
    if "ILSVRC2012_devkit_t12/data" in parts:
        return {wnid: words for _, wnid, words in _synsets(parts["ILSVRC2012_devkit_t12/data"] / "meta.mat")}
    return {}


def _synsets(path: Path) -> list[tuple[int, str, str]]:
    """Number, WordNet id and words of each class in the devkit's meta.mat."""
    synsets = np.atleast_1d(load_matlab(path)["synsets"])
    return [(int(synset["ILSVRC2012_ID"]), str(synset["WNID"]), str(synset["words"])) for synset in synsets]
