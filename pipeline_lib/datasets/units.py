"""Planning of real images, before anything is read: the shards of a split, and the draws of training images.

What determines the images of a split is in `datasets.recipes`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline_lib.config import Config
from pipeline_lib.datasets.recipes import Recipe, recipe_of
from pipeline_lib.datasets.registry import Dataset
from pipeline_lib.digests import DigestCache
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
    recipe = recipe_of(definition, definition.require_split(split, "evaluation.split"), config, digests)
    ranges = _ranges(recipe.spec["n_images"])
    return [RealUnit({**recipe.spec, "start": start, "stop": stop}, recipe.location) for start, stop in ranges]


def shots_spec(
    definition: Dataset, config: Config, digests: DigestCache, seed: int, n_shots: int, n_validation: int
) -> Recipe:
    """The draw of one seed (see `datasets.shots`): its spec, and where the training images are.

    n_shots, n_validation: images per class. One job should make the draws of all seeds: it lists the data once.

    Raises `UserError` for a data set without training images, and as `real_units` does.
    """
    recipe = train_recipe(definition, config, digests)
    return Recipe({**recipe.spec, "seed": seed, "n_shots": n_shots, "n_validation": n_validation}, recipe.location)


def shot_images_spec(definition: Dataset, config: Config, digests: DigestCache, shots: str) -> Recipe:
    """The shard of all images of one draw: its spec, and where the training images are.

    shots: path, relative to the store, of the draw.

    Raises `UserError` as `shots_spec` does.
    """
    recipe = train_recipe(definition, config, digests)
    return Recipe({**recipe.spec, "shots": shots}, recipe.location)


def train_recipe(definition: Dataset, config: Config, digests: DigestCache) -> Recipe:
    """What determines the training images. Raises `UserError` for a data set that has none, saying how to give them."""
    if "train" not in definition.splits:
        raise UserError(
            f"few_shot.datasets: data set {definition.name} has no training images; {_how_to_give(definition)}, or "
            f"leave it out of few_shot.datasets"
        )
    return recipe_of(definition, "train", config, digests)


def _how_to_give(definition: Dataset) -> str:
    own = f"own_datasets.{definition.name}"
    if definition.folder is not None:
        return f"name a folder of them in {own}.train_folder, with the same sub-folders as that of the test images"
    if definition.parquet is not None:
        return f"name files of them in {own}.train_parquet, with the same columns as those of the test images"
    if definition.huggingface is not None:
        return f"name the split that has them in {own}.huggingface.train_split"
    return "its download is a test split alone: define a data set in own_datasets that has others"


def _ranges(n_images: int | None) -> Iterator[tuple[int, int | None]]:
    if n_images is None:
        yield 0, None
        return
    for start in range(0, n_images, REAL_PER_SHARD):
        yield start, min(start + REAL_PER_SHARD, n_images)
