"""How the official downloads lie on disk, as data: which parts each split of each needs.

A part is a file or folder by its last names, found in the root or up to two folders deeper: an archive may have been
unpacked in place or into a folder of its own (as torchvision does). Knows names only; what is in the files is read by
`datasets.loaders`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.paths import sub_folders

_DEPTH = 2  # folders below the root in which a part is looked for


@dataclass(frozen=True)
class Layout:
    """What an official download unpacks to.

    `parts` are needed, per split; `optional` are read where they are there; `hints` say of what people have instead
    why it does not do.
    """

    parts: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()
    hints: Mapping[str, str] = field(default_factory=dict)


_NO_PICKLES = "the Python version consists of pickles, which can run code and are not read: get the binary version"
_CUB = ("classes.txt", "image_class_labels.txt", "images.txt", "train_test_split.txt", "images")
_BIRDSNAP = ("images.txt", "test_images.txt", "download/images")
_FLOWERS = ("imagelabels.mat", "setid.mat", "jpg")
_EUROSAT = ("split_zhou_EuroSAT.json", "2750")
_CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))

LAYOUTS: dict[str, Layout] = {
    "cifar10": Layout(
        {"test": ("batches.meta.txt", "test_batch.bin"), "train": ("batches.meta.txt", *_CIFAR10_TRAIN)},
        hints={"cifar-10-batches-py": _NO_PICKLES},
    ),
    "cifar100": Layout(
        {"test": ("fine_label_names.txt", "test.bin"), "train": ("fine_label_names.txt", "train.bin")},
        hints={"cifar-100-python": _NO_PICKLES},
    ),
    "caltech101": Layout({"test": ("101_ObjectCategories",), "train": ("101_ObjectCategories",)}),
    "caltech256": Layout({"test": ("256_ObjectCategories",), "train": ("256_ObjectCategories",)}),
    # The validation images lie in folders per class, or flat beside the devkit or Kaggle's solution file.
    "imagenet": Layout(
        {"test": ("val",), "train": ("train",)},
        optional=("LOC_val_solution.csv", "ILSVRC2012_devkit_t12/data", "LOC_synset_mapping.txt"),
    ),
    "sun397": Layout({"test": ("Testing_01.txt", "SUN397"), "train": ("Training_01.txt", "SUN397")}),
    "aircraft": Layout(
        {
            "test": ("data/images_variant_test.txt", "data/images"),
            "train": ("data/images_variant_trainval.txt", "data/images"),
        }
    ),
    "birdsnap": Layout({"test": _BIRDSNAP, "train": _BIRDSNAP}),
    "cars": Layout(
        {
            "test": ("devkit/cars_meta.mat", "cars_test_annos_withlabels.mat", "cars_test"),
            "train": ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train"),
        }
    ),
    "cub": Layout({"test": _CUB, "train": _CUB}),
    "flowers": Layout({"test": _FLOWERS, "train": _FLOWERS}),
    "food": Layout({"test": ("meta/test.txt", "images"), "train": ("meta/train.txt", "images")}),
    "pets": Layout({"test": ("annotations/test.txt", "images"), "train": ("annotations/trainval.txt", "images")}),
    "dtd": Layout(
        {"test": ("labels/test1.txt", "images"), "train": ("labels/train1.txt", "labels/val1.txt", "images")}
    ),
    "eurosat": Layout({"test": _EUROSAT, "train": _EUROSAT}),
    "imagenet_sketch": Layout({"test": ("sketch",)}),
    "imagenet_r": Layout({"test": ("imagenet-r",)}),
}


def find_parts(layout: Layout, split: str, root: Path) -> dict[str, Path | None]:
    """Where each part of a split is below `root`, None for one that is missing; then the optional parts."""
    wanted = dict.fromkeys((*layout.parts[split], *layout.optional))
    found: dict[str, Path | None] = dict(wanted)
    for folder in _folders(root):
        for part in wanted:
            if found[part] is None and (folder / part).exists():
                found[part] = folder / part
        if None not in found.values():
            break
    return found


def require_parts(loader: str, split: str, root: Path, download: str) -> dict[str, Path]:
    """The parts that are there. Raises `UserError` naming the needed ones that are not, and what to do."""
    layout = LAYOUTS[loader]
    remedy = f"What to get, and how it must lie below {root}: {download}" if download else ""
    if not root.is_dir() or not any(root.iterdir()):
        raise UserError(f"the raw data is not there: {root} is missing or empty. {remedy}".rstrip())
    found = find_parts(layout, split, root)
    missing = [part for part in layout.parts[split] if found[part] is None]
    if missing:
        raise UserError(
            f"the raw data is half unpacked: {', '.join(missing)} of the {split} split not found in {root} or "
            f"up to {_DEPTH} folders deeper.{hints(layout, root)} {remedy}".rstrip()
        )
    return {part: path for part, path in found.items() if path is not None}


def hints(layout: Layout, root: Path) -> str:
    """What there is to say of files that people have instead of the needed ones."""
    return "".join(f" {part}: {hint}." for part, hint in layout.hints.items() if (root / part).exists())


def _folders(root: Path) -> Iterator[Path]:
    """`root` and the visible folders below it, nearest first."""
    level = [root] if root.is_dir() else []
    yield from level
    for _ in range(_DEPTH):
        level = [folder / name for folder in level for name in sub_folders(folder)]
        yield from level
