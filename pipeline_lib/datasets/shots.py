"""Real shots: which training images few-shot recognition learns from (paper, section 3.2), and which it may choose on.

Each class's training images are put into an order that depends on the seed, the class's name and their number alone.
The first are the shots, so that M shots are among any larger number of them (as the paper's 1, 2, 4, 8, 16 are read
here); the last are the validation images, which stay what they are when more shots are asked for. Nothing is drawn from
a test split.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.datasets.loaders import open_split
from pipeline_lib.datasets.loaders.split import RealSplit, class_name_of, image_id
from pipeline_lib.errors import UserError
from pipeline_lib.records import DrawnImage, Shots
from pipeline_lib.seeds import derive_seed


def draw_shots(split: RealSplit, spec: Mapping[str, Any], at_least: int | None = None) -> Shots:
    """Draw from the training images that `spec` names (see `units.shots_spec`). Reads no image.

    A class gets `spec["n_validation"]` validation images and `spec["n_shots"]` shots. One that has fewer images than
    both together gets as many shots as are left, but not fewer than `at_least` (default: n_shots): else `UserError`
    names the class, how many images it has and how many are needed.
    """
    n_shots, n_validation = spec["n_shots"], spec["n_validation"]
    needed = n_validation + (n_shots if at_least is None else min(at_least, n_shots))
    positions: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(split.labels):
        positions[label].append(position)
    names = class_name_of(spec)
    _require_enough({name: len(positions[label]) for label, name in names.items()}, needed, n_validation, spec)
    shots: dict[str, list[DrawnImage]] = {}
    validation: dict[str, list[DrawnImage]] = {}
    for label, name in names.items():
        own = positions[label]
        order = np.random.default_rng(derive_seed("shots", spec["seed"], name)).permutation(len(own))
        drawn = [_drawn(split, own[number], spec) for number in order[: min(n_shots, len(own) - n_validation)]]
        shots[name] = drawn
        validation[name] = [_drawn(split, own[number], spec) for number in order[len(own) - n_validation :]]
    return Shots(dataset=spec["dataset"], split=spec["split"], seed=spec["seed"], shots=shots, validation=validation)


def _require_enough(n_images: Mapping[str, int], needed: int, n_validation: int, spec: Mapping[str, Any]) -> None:
    short = {name: count for name, count in n_images.items() if count < needed}
    if short:
        classes = ", ".join(f"{name!r} has {count}" for name, count in islice(short.items(), 5))
        raise UserError(
            f"{spec['dataset']}: {len(short)} classes have fewer than the {needed} training images that few_shot needs "
            f"of each, {needed - n_validation} shots and {n_validation} for validation: {classes}. Add images, or "
            f"lower few_shot.shots or few_shot.validation_per_class"
        )


def _drawn(split: RealSplit, position: int, spec: Mapping[str, Any]) -> DrawnImage:
    source_id = split.source_ids[position]
    return DrawnImage(image_id=image_id(spec, source_id), source_id=source_id, path=split.paths[position])


def refuse_test_images(
    draws: Sequence[Shots], train: RealSplit, spec: Mapping[str, Any], location: Mapping[str, Any]
) -> None:
    """Raise `UserError` naming images of `draws` that are, byte for byte, test images too.

    train, spec, location: the split that was drawn from, and what it was opened with. Looked at are data sets of your
    own, whose test images are all read for it. The package's data sets have disjoint splits by their official lists.
    What is added to the test images after the draw is not seen, nor is an image that was encoded anew.
    """
    if "test" not in location:
        return
    paths = {
        digest: train.paths[position]
        for position in sorted({position for shots in draws for position in positions_of(shots, train)})
        if (digest := _digest(train, position)) is not None
    }
    test = _open_test(spec, location)
    found = [
        f"{paths[digest]} is {test.paths[position]}"
        for position in range(len(test))
        if (digest := _digest(test, position)) is not None and digest in paths
    ]
    if found:
        raise UserError(
            f"{spec['dataset']}: {len(found)} of the test images are among the training images that were drawn: "
            f"{'; '.join(found[:5])}. A test image must never be trained on: remove it from the one or the other"
        )


def _open_test(spec: Mapping[str, Any], location: Mapping[str, Any]) -> RealSplit:
    """The test images of the data set that a train split belongs to."""
    test = {**spec, "split": "test", "n_images": None}
    if "huggingface" in spec:
        test["huggingface"] = {**spec["huggingface"], **location["test"]}
    return open_split(test, {**location, **location["test"]})


def _digest(split: RealSplit, position: int) -> bytes | None:
    """SHA-256 of an image as it comes; None for one that cannot be read, which is named when images are prepared."""
    with suppress(OSError, ValueError):
        raw = split.read(position)
        return hashlib.sha256(raw if isinstance(raw, bytes) else raw.tobytes()).digest()
    return None


def read_shots(path: Path, at_least: int = 0) -> Shots:
    """A draw that was written as JSON. Raises `UserError` naming a class with fewer shots than `at_least`."""
    shots = Shots.model_validate_json(path.read_bytes())
    for name, drawn in shots.shots.items():
        if len(drawn) < at_least:
            raise UserError(
                f"{shots.dataset}: class {name!r} has {len(drawn)} shots in {path}, {at_least} are asked for; add "
                f"training images of it, or lower few_shot.shots"
            )
    return shots


def positions_of(shots: Shots, split: RealSplit) -> list[int]:
    """Where the drawn images are in the split that they were drawn from: class by class, shots, then validation images.

    Raises `UserError` naming images that are not there any more.
    """
    drawn = [image for name in shots.shots for image in (*shots.shots[name], *shots.validation[name])]
    wanted = {image.source_id for image in drawn}
    found = {number: position for position, number in enumerate(split.source_ids) if number in wanted}
    gone = [
        image.path
        for image in drawn
        if image.source_id not in found or split.paths[found[image.source_id]] != image.path
    ]
    if gone:
        raise UserError(
            f"{shots.dataset}: {len(gone)} of the {len(drawn)} training images that seed {shots.seed} drew are not "
            f"there any more: {', '.join(gone[:5])}. Bring back the raw data as it was; or define a data set in "
            f"own_datasets with the same loader, which is known by its files: it draws from what is there"
        )
    return [found[image.source_id] for image in drawn]
