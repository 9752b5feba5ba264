"""Planning of real images: the shards of a split, before anything is read.

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.config import Config
from pipeline_lib.datasets.fingerprints import raw_fingerprint
from pipeline_lib.datasets.names import check_names
from pipeline_lib.datasets.own_data import DATA_SUFFIXES, IMAGE_SUFFIXES, parquet_files, parquet_rows, sub_folders
from pipeline_lib.datasets.registry import Dataset, official_names
from pipeline_lib.digests import DigestCache, files_below
from pipeline_lib.errors import UserError

REAL_PER_SHARD = 1000


@dataclass(frozen=True)
class RealUnit:
    """One shard of a split: what determines its bytes, and where to find what it is made from.

    `spec["start"]` and `spec["stop"]` are positions in the split; `stop` is None, and the shard holds the whole split,
    where the number of images is not known before they are read.
    """

    spec: dict[str, Any]
    location: dict[str, Any]


def real_units(definition: Dataset, split: str, config: Config, digests: DigestCache) -> list[RealUnit]:
    """The shards of one split, `REAL_PER_SHARD` images each. One job should make them all: it lists the data once.

    Raises `UserError` for a split that is not there, for class names that stand at other classes' folders, and for own
    images that are missing.
    """
    split = definition.require_split(split, "evaluation.split")
    if definition.name in config.own_datasets:  # the raw data's own names are looked at when it is read
        official = official_names(definition.loader)
        check_names(definition.name, definition.class_names, definition.labels, definition.renamed, official)
    expected = definition.n_images.get(split)
    try:
        source, location, found = _source(definition, split, config, digests)
    except (ValueError, OSError) as error:  # files that were there when the configuration was read
        raise UserError(f"{definition.name}: {error}") from None
    if None not in (expected, found) and expected != found:
        raise UserError(
            f"{definition.name}: {found} {split} images are there, n_images.{split} says {expected}; mend the one or "
            f"the other"
        )
    n_images = found if expected is None else expected
    recipe = {
        "dataset": definition.name,
        "split": split,
        "class_names": definition.class_names,
        "n_images": n_images,
        **source,
    }
    location |= {"renamed": definition.renamed}
    return [RealUnit({**recipe, "start": start, "stop": stop}, location) for start, stop in _ranges(n_images)]


def _ranges(n_images: int | None) -> Iterator[tuple[int, int | None]]:
    if n_images is None:
        yield 0, None
        return
    for start in range(0, n_images, REAL_PER_SHARD):
        yield start, min(start + REAL_PER_SHARD, n_images)


def _source(
    definition: Dataset, split: str, config: Config, digests: DigestCache
) -> tuple[dict[str, Any], dict[str, Any], int | None]:
    """What a spec says of where the images come from, where that is here, and their number if it can be seen."""
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
        root = Path(definition.folder)
        folders = definition.folders()
        left_out = [name for name in sub_folders(root) if Path(name) not in folders]
        if left_out and not definition.subset:
            raise UserError(
                f"own_datasets.{definition.name}: sub-folders of {root} that belong to no class: "
                f"{', '.join(map(repr, left_out[:5]))} ({len(left_out)} in all); add them to class_names, name them in "
                f"class_folders, or write subset: true to leave their images out"
            )
        files = [path for name in folders for path in _images_of_class(root / name)]
        return {"folder": digests.files(root, files), **labels}, {"root": definition.folder}, len(files)
    labels |= {"image_column": definition.image_column, "label_column": definition.label_column}
    if definition.parquet is not None:
        where = f"own_datasets.{definition.name}"
        files = parquet_files(definition.parquet, where)
        n_rows = None if definition.subset else sum(parquet_rows(file, where) for file in files)
        spec = {"parquet": digests.files(Path(os.path.commonpath([file.parent for file in files])), files), **labels}
        return spec, {"files": [str(file) for file in files]}, n_rows
    hub = definition.huggingface
    assert hub is not None  # exactly one of the five is given
    if not hub.is_local:
        return {"huggingface": hub.model_dump(), **labels}, {"id": hub.id}, None
    files = files_below(Path(hub.id), DATA_SUFFIXES)
    content = {**hub.model_dump(exclude={"id"}), "content": digests.files(Path(hub.id), files)}
    return {"huggingface": content, **labels}, {"id": hub.id}, None


def _images_of_class(folder: Path) -> list[Path]:
    files = files_below(folder, IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"no images in {folder}; put some there, or leave the class out")
    return files


def raw_folder(definition: Dataset, config: Config) -> str:
    """Where an official download is expected."""
    return definition.root or str(Path(config.data) / definition.name)


def how_to_get(definition: Dataset, config: Config) -> str:
    """What to download and how it must lie, with the configuration's data folder in it."""
    return re.sub(r"\bDATA\b", lambda _: config.data, definition.download)
