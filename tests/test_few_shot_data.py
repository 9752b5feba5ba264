"""What a run learns from, of files made by hand: the right images, each with its class and its features."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.classifiers.head import Head
from pipeline_lib.embeddings import write_embeddings
from pipeline_lib.errors import UserError
from pipeline_lib.few_shot_data import batch_norm_data, real_examples, real_filter_of, synthetic_examples
from pipeline_lib.files import file_sha256
from pipeline_lib.records import MANIFEST, DrawnImage, Member, SetReceipt, Shots
from pipeline_lib.shards import encode_image, image_row, write_shard
from pipeline_lib.store import Store

NAMES = ["oak", "elm", "ash"]  # not in the order of the alphabet
# Image numbers: of each class its shots, then its validation images; the classes in another order than in NAMES.
DRAWN = {
    "ash": ([20, 21, 22, 23], [27, 28, 29]),
    "oak": ([0, 1, 2, 3], [7, 8, 9]),
    "elm": ([10, 11, 12, 13], [17, 18, 19]),
}
DRAWN_ORDER = [18, 3, 22, 0, 29, 11, 7, 20, 13, 9, 1, 27, 12, 8, 23, 2, 10, 28, 19, 21, 17]  # of the shards
# Synthetic images of two shards: number, class, whether valid.
SYNTHETIC = [
    [(30, "elm", True), (31, "ash", True), (32, "ash", False), (33, "oak", True)],
    [(34, "ash", True), (35, "elm", True), (36, "ash", True)],
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


# --- files, also for other tests --------------------------------------------------------------------------------------


def at(numbers: Sequence[int]) -> NDArray[np.float16]:
    """The features of some images: image number n is a unit vector at n degrees, as precise as a shard holds it."""
    angles = np.radians(numbers)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)


def place(store: Store, name: str) -> Path:
    path = store.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def put_drawn(store: Store, name: str, drawn: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> str:
    def images(numbers: Sequence[int]) -> list[DrawnImage]:
        return [DrawnImage(image_id=f"i{n}", source_id=n, path=f"{n}.png") for n in numbers]

    shots = {label: images(numbers) for label, (numbers, _) in drawn.items()}
    validation = {label: images(numbers) for label, (_, numbers) in drawn.items()}
    record = Shots(dataset="trees", split="train", seed=0, shots=shots, validation=validation)
    place(store, name).write_text(record.model_dump_json())
    return name


def put_features(store: Store, name: str, images: Sequence[tuple[int, str, bool]]) -> str:
    """A shard of embeddings. images: number, class, whether valid."""
    numbers, classes, valid = (list(column) for column in zip(*images, strict=True))
    columns = {
        "image_id": [f"i{n}" for n in numbers],
        "class_name": classes,
        "prompt": [None] * len(numbers),
        "seed": pa.array([None] * len(numbers), pa.int64()),
        "source_id": pa.array(numbers, pa.int64()),
        "valid": valid,
    }
    write_embeddings(pa.table(columns), at(numbers).astype(np.float32), place(store, name))
    return name


def put_real_features(
    store: Store, name: str, drawn: Mapping[str, tuple[Sequence[int], Sequence[int]]], order: Sequence[int]
) -> str:
    class_of = {number: label for label, parts in drawn.items() for part in parts for number in part}
    return put_features(store, name, [(number, class_of[number], True) for number in order])


def put_set(store: Store, name: str, members: Sequence[str]) -> str:
    units = [Member(path=path, sha256=file_sha256(store.path(path)), n_rows=None) for path in members]
    place(store, name).write_text(SetReceipt(stage="embeddings", members=units).model_dump_json())
    return name


def put_synthetic(store: Store) -> list[str]:
    """The shards of SYNTHETIC."""
    return [put_features(store, f"embeddings/{i}.parquet", images) for i, images in enumerate(SYNTHETIC)]


def put_sets(store: Store) -> list[str]:
    """A set for each of these shards, as a data set has several of them."""
    return [put_set(store, f"embeddings/sets/{i}.json", [path]) for i, path in enumerate(put_synthetic(store))]


def put_manifest(store: Store, name: str, kept: Sequence[int]) -> str:
    """A manifest of SYNTHETIC that keeps the images with these numbers."""
    rows = [
        {
            "image_id": f"i{number}",
            "class_index": NAMES.index(label),
            "prompt": None,
            "seed": number,
            "valid": valid,
            "own_probability": 0.5,
            "predicted_class": 0,
            "max_probability": 0.5,
            "kept": number in kept,
            "reason": "kept" if number in kept else "over_cap",
            "soft_target": None,
        }
        for images in SYNTHETIC
        for number, label, valid in images
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), place(store, name))
    return name


def put_images(store: Store, name: str, numbers: Sequence[int]) -> str:
    """A shard of images: number n has red n."""
    rows = []
    for number in numbers:
        content = encode_image(np.full((2, 2, 3), (number, 255 - number, 7), np.uint8), "png")
        rows.append(image_row(f"i{number}", content, "png", 2, 2, class_name="any", source_id=number))
    write_shard(rows, place(store, name), {})
    return name


# --- real images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n_shots, validation_per_class, shots, validation",
    [
        (1, 3, [0, 10, 20], [7, 17, 27]),
        (2, 3, [0, 1, 10, 11, 20, 21], [7, 8, 17, 18, 27, 28]),
        (2, 1, [0, 1, 10, 11, 20, 21], [7, 17, 27]),
        (4, 3, [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23], [7, 8, 9, 17, 18, 19, 27, 28, 29]),
    ],
)
def test_the_first_shots_and_as_many_validation_images(
    store: Store, n_shots: int, validation_per_class: int, shots: list[int], validation: list[int]
):
    """By image id: the shard has another order than the draw, and the draw other classes first."""
    real = put_real_features(store, "real.parquet", DRAWN, DRAWN_ORDER)
    run = {"shots": n_shots, "drawn": put_drawn(store, "drawn.json", DRAWN), "real": real}
    found = real_examples(store, run, NAMES, validation_per_class)
    for examples, numbers in zip(found, (shots, validation), strict=True):
        np.testing.assert_array_equal(examples.features, at(numbers))
        assert examples.labels.tolist() == [number // 10 for number in numbers]


def test_a_draw_with_fewer_shots_is_refused(store: Store):
    drawn = put_drawn(store, "drawn.json", DRAWN | {"elm": ([10, 11], [17, 18, 19])})
    real = put_real_features(store, "real.parquet", DRAWN, DRAWN_ORDER)
    assert len(real_examples(store, {"shots": 2, "drawn": drawn, "real": real}, NAMES, 3)[0]) == 6
    with pytest.raises(UserError, match=r"class 'elm' has 2 shots .* 3 are asked for"):
        real_examples(store, {"shots": 3, "drawn": drawn, "real": real}, NAMES, 3)


# --- synthetic images -------------------------------------------------------------------------------------------------


def test_a_run_without_synthetic_images(store: Store):
    assert synthetic_examples(store, {"shots": 1, "seed": 0}, NAMES) is None


def test_without_a_manifest_all_valid_images(store: Store):
    examples = synthetic_examples(store, {"synthetic": put_synthetic(store)}, NAMES)
    assert examples is not None
    np.testing.assert_array_equal(examples.features, at([30, 31, 33, 34, 35, 36]))
    assert examples.labels.tolist() == [1, 2, 0, 2, 1, 2]


def test_with_a_manifest_those_that_it_keeps(store: Store):
    run = {"synthetic": put_sets(store), "manifest": put_manifest(store, "manifest.parquet", [31, 33, 35, 36])}
    examples = synthetic_examples(store, run, NAMES)
    assert examples is not None
    np.testing.assert_array_equal(examples.features, at([31, 33, 35, 36]))
    assert examples.labels.tolist() == [2, 0, 1, 2]


def test_real_filter_compares_with_the_shots_asked_for(store: Store):
    """Two classes whose shots and validation images lie at known angles; those not asked for lie where they would
    change everything."""
    drawn = {"elm": ([120, 200, 10], [170, 60]), "oak": ([0, 50, 100], [20, 95])}
    order = [60, 200, 0, 95, 10, 170, 100, 50, 20, 120]
    features = [
        put_features(store, "a.parquet", [(60, "elm", True), (100, "oak", True)]),
        put_features(store, "b.parquet", [(260, "oak", True), (5, "oak", True), (330, "elm", True)]),
    ]
    spec = {
        "class_names": ["oak", "elm"],
        "embeddings": [put_set(store, f"sets/{i}.json", [path]) for i, path in enumerate(features)],
        "real_filter": {
            "quantile": 0.6,
            "validation_per_class": 1,
            "n_shots": 2,
            "shots": put_drawn(store, "drawn.json", drawn),
            "embeddings": put_real_features(store, "real.parquet", drawn, order),
        },
    }
    found = real_filter_of(store, spec, np.array([1, 0, 0, 0, 1]))
    # From each real image to the nearest shot of the other class: oak 120, 70, (validation) 100; elm 70, 150, 120. Of
    # six cosines the quantile 0.6 is the fourth, that of 100 degrees.
    assert found.threshold == pytest.approx(math.cos(math.radians(100)), abs=1e-3)
    # Shots are oak at 0 and 50, elm at 120 and 200.
    assert found.nearest.tolist() == [1, 2, 3, 2, 0]
    expected = np.cos(np.radians([10, 20, 60, 115, 30]))
    np.testing.assert_allclose(found.other_similarity, expected, atol=1e-3)
    assert found.too_close.tolist() == [True, True, True, False, True]


# --- images for the encoder -------------------------------------------------------------------------------------------


class RedReader:
    """An encoder that takes an image as its red value, which is its number; it encodes nothing."""

    device, dtype, batch_size = "cpu", "float32", 4

    def prepare(self, image: Image.Image) -> int:
        return int(np.array(image)[0, 0, 0])

    def encode(self, prepared: Any) -> NDArray[np.float32]:
        raise AssertionError("images are encoded in training")


# Logits of an image at angle a: cos a, sin a, 2 cos a + 3 sin a + 0.5.
HEAD = Head(np.array([[1, 0], [0, 1], [2, 3]]), np.array([0, 0, 0.5]), tuple(NAMES))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_the_shots_with_their_classes(store: Store, workers: int):
    """In the order of the shard, without its validation images and further shots."""
    drawn, images = put_drawn(store, "drawn.json", DRAWN), put_images(store, "images.parquet", DRAWN_ORDER)
    run = {"shots": 2, "seed": 0, "drawn": drawn, "images": [images]}
    prepared, classes, soft = batch_norm_data(store, {"class_names": NAMES}, run, RedReader(), HEAD, workers)
    expected = [number for number in DRAWN_ORDER if number in (0, 1, 10, 11, 20, 21)]
    assert prepared == expected
    assert classes.tolist() == [number // 10 for number in expected] and classes.dtype == np.int64
    assert soft is None


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_kept_with_their_classes_and_soft_targets(store: Store, workers: int):
    """In one order, across shards."""
    kept = [30, 33, 34, 35]
    images = [
        put_images(store, f"images/{i}.parquet", [number for number, _, _ in shard])
        for i, shard in enumerate(SYNTHETIC)
    ]
    run = {"shots": 0, "seed": 0, "manifest": put_manifest(store, "manifest.parquet", kept), "images": images}
    spec = {"class_names": NAMES, "embeddings": put_sets(store)}
    prepared, classes, soft = batch_norm_data(store, spec, run, RedReader(), HEAD, workers)
    assert prepared == kept
    assert classes.tolist() == [1, 0, 2, 1] and classes.dtype == np.int64
    cosine, sine = np.cos(np.radians(kept)), np.sin(np.radians(kept))
    assert soft is not None and soft.dtype == np.float32
    np.testing.assert_allclose(soft, np.stack([cosine, sine, 2 * cosine + 3 * sine + 0.5], axis=1), atol=5e-3)
