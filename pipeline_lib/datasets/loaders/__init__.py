"""Real images of a split, whatever form they come in, checked against their definition before anything is read."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.datasets.layouts import require_parts
from pipeline_lib.datasets.loaders import cifar, folders, lists, matlab, renderings, tables
from pipeline_lib.datasets.loaders.split import RealSplit
from pipeline_lib.datasets.names import check_names
from pipeline_lib.errors import UserError

log = logging.getLogger(__name__)
# One reader per layout of `layouts.LAYOUTS`: from the parts and the split to its images.
READERS: dict[str, Callable[[dict[str, Path], str], RealSplit]] = {
    reader.__name__: reader
    for reader in (
        cifar.cifar10,
        cifar.cifar100,
        folders.caltech101,
        folders.caltech256,
        folders.imagenet,
        lists.sun397,
        lists.aircraft,
        lists.birdsnap,
        matlab.cars,
        lists.cub,
        matlab.flowers,
        lists.food,
        lists.pets,
        lists.dtd,
        lists.eurosat,
        folders.imagenet_sketch,
        folders.imagenet_r,
    )
}


def open_split(spec: Mapping[str, Any], location: Mapping[str, Any]) -> RealSplit:
    """The images that the `real_images` specs of one split name (see `datasets.units`).

    Raises `UserError` where the data is absent or half unpacked, where its labels are not those of the definition,
    where class names stand at other classes' labels, and for a wrong number of images.
    """
    name = spec["dataset"]
    try:
        split = _read(spec, location)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if "class_folders" in spec:
        split = _check_labels(split, spec)
        check_names(name, spec["class_names"], spec["class_folders"], location.get("renamed", ()), split.official_names)
    if spec["n_images"] is not None and len(split) != spec["n_images"]:
        per_class = Counter(split.labels)
        fewest = min(spec["class_folders"], key=per_class.__getitem__) if "class_folders" in spec else None
        raise UserError(
            f"{name}: {len(split)} {spec['split']} images were found, {spec['n_images']} are expected"
            + (f" ({fewest!r} has the fewest, {per_class[fewest]}). " if fewest is not None else ". ")
            + "Unpack the data again, or mend n_images of the definition"
        )
    return split


def _read(spec: Mapping[str, Any], location: Mapping[str, Any]) -> RealSplit:
    if "fashion_mnist" in spec:
        return renderings.rendering(
            spec["fashion_mnist"], spec["split"], spec["class_names"], location["folder"], location["cache"]
        )
    if "loader" in spec:
        return _official_download(spec["loader"], spec["split"], Path(location["root"]), location["download"])
    if "folder" in spec:
        return folders.own_folder(Path(location["root"]), spec["class_folders"])
    columns = spec["image_column"], spec["label_column"]
    if "parquet" in spec:
        return tables.parquet([Path(file) for file in location["files"]], *columns)
    hub = spec["huggingface"]
    return tables.hugging_face(location["id"], hub["revision"], hub["config"], hub["split"], *columns)


def _official_download(loader: str, split: str, root: Path, download: str) -> RealSplit:
    parts = require_parts(loader, split, root, download)
    try:
        return READERS[loader](parts, split)
    except (LookupError, TypeError, ValueError) as error:  # what lists that contradict each other lead to
        raise UserError(
            f"the files in {root} are damaged or do not belong together ({type(error).__name__}: {error}); unpack the "
            f"download again"
        ) from error


def _check_labels(split: RealSplit, spec: Mapping[str, Any]) -> RealSplit:
    """The split with the definition's labels alone. Raises `UserError` where the data's labels are others."""
    wanted = frozenset(spec["class_folders"])
    absent = sorted(wanted - split.all_labels)
    unknown = [] if spec["subset"] else sorted(split.all_labels - wanted)
    faults = []
    if absent:
        faults.append(f"half unpacked or named otherwise: no images of {_first(absent)} ({len(absent)} classes)")
    if unknown:
        faults.append(f"{_first(unknown)} ({len(unknown)} classes) of the data are not in class_folders")
    if faults:
        raise UserError(
            f"{spec['dataset']}: {'; '.join(faults)}. Unpack the data again; or let class_folders say what the data "
            f"calls each class, and subset: true that other classes are left out"
        )
    if without := wanted.difference(split.labels):
        log.warning("%s: no %s images of %s", spec["dataset"], spec["split"], _first(sorted(without)))
    return split.only(wanted)


def _first(labels: list[str]) -> str:
    return ", ".join(map(repr, labels[:5])) + (", ..." if len(labels) > 5 else "")
