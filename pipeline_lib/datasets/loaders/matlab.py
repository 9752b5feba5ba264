"""Downloads whose labels are MATLAB files: Stanford Cars and Oxford Flowers."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.datasets.loaders.split import RealSplit, of_files
from pipeline_lib.errors import UserError

Parts = dict[str, Path]


def cars(parts: Parts, split: str) -> RealSplit:
    """Stanford Cars (Krause et al., 2013); labels are the names in the devkit's cars_meta.mat."""
    names = [str(name) for name in np.atleast_1d(load_matlab(parts["devkit/cars_meta.mat"])["class_names"])]
    annotations = "cars_test_annos_withlabels.mat" if split == "test" else "devkit/cars_train_annos.mat"
    rows = np.atleast_1d(load_matlab(parts[annotations])["annotations"])
    folder = parts[f"cars_{split}"]
    numbers = [int(row["class"]) for row in rows]
    if not all(1 <= number <= len(names) for number in numbers):
        raise UserError(f"{parts[annotations]} has class numbers beyond the {len(names)} names of cars_meta.mat")
    files = [folder / str(row["fname"]) for row in rows]
    return of_files(folder, files, [names[number - 1] for number in numbers], all_labels=frozenset(names))


def flowers(parts: Parts, split: str) -> RealSplit:
    """Oxford Flowers 102 (Nilsback and Zisserman, 2008); labels are "1" to "102", the download has no names.

    Train and validation images together are the train pool.
    """
    sets = load_matlab(parts["setid.mat"])
    keys = ("tstid",) if split == "test" else ("trnid", "valid")
    numbers = [int(number) for key in keys for number in np.atleast_1d(sets[key])]
    labels = np.atleast_1d(load_matlab(parts["imagelabels.mat"])["labels"])
    if numbers and max(numbers) > len(labels):
        raise UserError(f"{parts['imagelabels.mat']} has {len(labels)} labels, setid.mat names image {max(numbers)}")
    files = [parts["jpg"] / f"image_{number:05d}.jpg" for number in numbers]
    return of_files(parts["jpg"], files, [str(int(labels[number - 1])) for number in numbers])


def load_matlab(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file. Raises `UserError` for a damaged one, and where scipy is not installed."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(f"{path} needs scipy to be read: pip install scipy") from None
    try:
        return dict(loadmat(path, squeeze_me=True))
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(f"{path} cannot be read as a MATLAB file ({error}); unpack or download it again") from None
