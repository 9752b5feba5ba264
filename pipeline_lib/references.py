"""Real guidance in image shards: the real shots that synthetic images start from (paper, section 3.2 and A.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from PIL import Image

from pipeline_lib.datasets.shots import read_shots
from pipeline_lib.errors import UserError
from pipeline_lib.shards import decode_image
from pipeline_lib.store import Store


class Reference(NamedTuple):
    """A real image that a synthetic one starts from."""

    images: str
    """The image shard that holds it: a path in the store."""
    image_id: str


class References:
    """The references of some shards: which ones, and their images. Each file and each image is read once.

    In memory are the images as they are encoded; they are decoded batch by batch.
    """

    def __init__(self, store: Store):
        self._store = store
        self._encoded: dict[Reference, bytes] = {}
        self._shots = cache(read_shots)

    def of_class(self, guidance: Mapping[str, Any], class_name: str) -> list[Reference]:
        """The first `n_shots` shots of a class in `shots`, a JSON file of `records.Shots`, as images of `images`.

        Raises `UserError` where there are fewer.
        """
        drawn = self._shots(self._store.path(guidance["shots"]), guidance["n_shots"])
        if class_name not in drawn.shots:
            raise UserError(
                f"{self._store.path(guidance['shots'])} has no shots of the class {class_name!r}; it has them of "
                f"{', '.join(map(repr, drawn.shots))}. Run `python -m pipeline_lib verify --store {self._store.root} "
                f"--remove`, then the same command again"
            )
        return [Reference(guidance["images"], shot.image_id) for shot in drawn.shots[class_name][: guidance["n_shots"]]]

    def read(self, references: Iterable[Reference]) -> None:
        """Read those that were not read yet. Raises `UserError` for one that its shard does not hold."""
        missing: defaultdict[str, set[str]] = defaultdict(set)
        for reference in references:
            if reference not in self._encoded:
                missing[reference.images].add(reference.image_id)
        for path, image_ids in missing.items():
            # Only the row groups that may hold them are read.
            wanted = pq.read_table(
                self._store.path(path), columns=["image_id", "image"], filters=[("image_id", "in", image_ids)]
            )
            for row in wanted.to_pylist():
                self._encoded[Reference(path, row["image_id"])] = row["image"]["bytes"]
            if absent := sorted(image_ids - set(wanted["image_id"].to_pylist())):
                raise UserError(
                    f"{self._store.path(path)} does not hold the real images {', '.join(absent[:5])} that real "
                    f"guidance starts from. Run `python -m pipeline_lib verify --store {self._store.root} --remove`, "
                    f"then the same command again"
                )

    def images(self, references: Sequence[Reference]) -> list[Image.Image]:
        """RGB images of references that were read; one that occurs several times is one object."""
        decoded = {reference: decode_image(self._encoded[reference]) for reference in dict.fromkeys(references)}
        return [decoded[reference] for reference in references]
