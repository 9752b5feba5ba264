"""What determines the images of a split, and where they are, before anything is read.

Your own images are known by their content, which is hashed when planned. So is an official download that you defined
yourself (`own_datasets` with `loader`): another root, or mended files, are other shards. There its images count by
their paths and sizes (see `datasets.fingerprints`), and it must stay where it is.

The data sets that come with the package are known by their definition (labels, counts) alone: a plan of the whole study
can be looked at anywhere, and once the shards are there the raw data may be deleted. The price: shards that were made
stay, whatever happens to the raw data. Their records say what they were made from (`details`), and the list of data
sets says where that is no longer what is there.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_lib.config import Config
from pipeline_lib.datasets.fingerprints import raw_fingerprint
from pipeline_lib.datasets.names import check_names
from pipeline_lib.datasets.own_data import (
    DATA_SUFFIXES,
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    named_images,
    parquet_files,
    parquet_rows,
)
from pipeline_lib.datasets.registry import Dataset, HuggingFace, Split, official_names
from pipeline_lib.digests import DigestCache
from pipeline_lib.errors import UserError
from pipeline_lib.paths import files_below, sub_folders


class Recipe(NamedTuple):
    """The part of a spec that determines the images of a split, and where to find what it names."""

    spec: dict[str, Any]
    location: dict[str, Any]


def recipe_of(definition: Dataset, split: Split, config: Config, digests: DigestCache) -> Recipe:
    """The recipe of a split that there is. `n_images` is None where it is not known before the images are listed.

    Raises `UserError` for class names that stand at other classes' folders, and for own images that are missing.
    """
    if definition.name in config.own_datasets:  # the raw data's own names are looked at when it is read
        official = official_names(definition.loader)
        check_names(definition.name, definition.class_names, definition.labels, definition.renamed, official)
    expected = definition.n_images.get(split)
    try:
        source, location, found = _source(definition, split, config, digests)
    except ValueError as error:
        raise UserError(f"{definition.name}: {error}") from None
    except OSError as error:  # gone since the configuration was read, or of another user
        raise UserError(
            f"{definition.name}: {error.filename} cannot be read: {error.strerror}; put it there, or give this user "
            f"the permission to read it"
        ) from None
    if None not in (expected, found) and expected != found:
        raise UserError(
            f"{definition.name}: {found} {split} images are there, n_images.{split} says {expected}; mend the one or "
            f"the other"
        )
    spec = {
        "dataset": definition.name,
        "split": split,
        "class_names": definition.class_names,
        "n_images": found if expected is None else expected,
        **source,
    }
    return Recipe(spec, {**location, "renamed": definition.renamed})


# What a spec says of where the images come from, where that is here, and their number if it can be seen.
_Source = tuple[dict[str, Any], dict[str, Any], int | None]


def _source(definition: Dataset, split: Split, config: Config, digests: DigestCache) -> _Source:
    """The source of a split. Of training images of your own the location says under `test` where the test images are,
    which they must not be (see `datasets.shots`)."""
    if definition.fashion_mnist is not None:
        location = {"folder": config.fashion_mnist, "cache": config.data}
        return {"fashion_mnist": definition.fashion_mnist}, location, None
    labels: dict[str, Any] = {"class_folders": definition.labels, "subset": definition.subset}
    if definition.loader is not None:
        raw = raw_folder(definition, config)
        spec = {"loader": definition.loader, **labels}
        if definition.name in config.own_datasets:
            spec["content"] = raw_fingerprint(definition.loader, split, Path(raw), digests)
        return spec, {"root": raw, "download": how_to_get(definition, config)}, None
    if definition.folder is not None:
        return _own_folder(definition, definition.folder, split, labels, digests)
    labels |= {"image_column": definition.image_column, "label_column": definition.label_column}
    if definition.parquet is not None:
        return _own_parquet(definition, definition.parquet, split, labels, digests)
    hub = definition.huggingface
    assert hub is not None  # exactly one of the five is given
    return {"huggingface": _hub_spec(hub, split, digests), **labels}, _hub_location(hub, split), None


def _hub_spec(hub: HuggingFace, split: Split, digests: DigestCache) -> dict[str, Any]:
    spec = {
        "revision": hub.revision,
        "config": hub.config,
        "split": hub.train_split if split == "train" else hub.split,
    }
    if not hub.is_local:
        return {"id": hub.id, **spec}
    return {**spec, "content": digests.files(Path(hub.id), files_below(Path(hub.id), DATA_SUFFIXES))}


def _hub_location(hub: HuggingFace, split: Split) -> dict[str, Any]:
    return {"id": hub.id, "test": {"split": hub.split}} if split == "train" else {"id": hub.id}


def _own_folder(
    definition: Dataset, folder: str, split: Split, labels: dict[str, Any], digests: DigestCache
) -> _Source:
    location: dict[str, Any] = {"root": folder}
    if split == "train":
        location = {"root": definition.train_folder, "test": location}
    root, folders = Path(location["root"]), definition.folders()
    left_out = [name for name in sub_folders(root) if Path(name) not in folders]
    if left_out and not definition.subset:
        raise UserError(
            f"own_datasets.{definition.name}: sub-folders of {root} that belong to no class: "
            f"{', '.join(map(repr, left_out[:5]))} ({len(left_out)} in all); add them to class_names, name them in "
            f"class_folders, or write subset: true to leave their images out"
        )
    files = [path for name in folders for path in _images_of_class(root / name)]
    return {"folder": digests.files(root, files), **labels}, location, len(files)


def _own_parquet(
    definition: Dataset, pattern: str, split: Split, labels: dict[str, Any], digests: DigestCache
) -> _Source:
    where, key = f"own_datasets.{definition.name}", "parquet"
    files = parquet_files(pattern, where)
    location: dict[str, Any] = {"files": [str(file) for file in files]}
    if split == "train":
        key = "train_parquet"
        files = parquet_files(definition.train_parquet or "", where, key)
        location = {"files": [str(file) for file in files], "test": location}
    n_rows = None if definition.subset else sum(parquet_rows(file, where, key) for file in files)
    if n_rows == 0:
        raise ValueError(f"{where}.{key}: {', '.join(map(str, files[:5]))} hold no rows; name files with images")
    root = Path(os.path.commonpath([file.parent for file in files]))
    spec = {"parquet": digests.files(root, files), **labels}
    if named := sorted({image for file in files for image in named_images(file, definition.image_column, where, key)}):
        spec["named_images"] = digests.files(root, named)
    return spec, location, n_rows


def _images_of_class(folder: Path) -> list[Path]:
    files = files_below(folder, IMAGE_SUFFIXES | UNREAD_SUFFIXES)
    if unread := [file for file in files if file.suffix.lower() in UNREAD_SUFFIXES]:
        raise ValueError(
            f"{len(unread)} pictures in {folder} are in a format that is not read, as {unread[0].name}; convert them "
            f"to PNG or JPEG, or remove them"
        )
    if not files:
        raise ValueError(f"no images in {folder}; put some there, or leave the class out")
    return files


def raw_folder(definition: Dataset, config: Config) -> str:
    """Where an official download is expected."""
    return definition.root or str(Path(config.data) / definition.name)


def how_to_get(definition: Dataset, config: Config) -> str:
    """What to download and how it must lie, with the configuration's data folder in it."""
    return re.sub(r"\bDATA\b", lambda _: config.data, definition.download)
