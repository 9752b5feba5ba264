"""Real shots as the start of synthetic images: which ones, read once, and what is said where they are not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline_lib.datasets.shots import read_shots
from pipeline_lib.errors import UserError
from pipeline_lib.records import IMAGES_PER_ROW_GROUP
from pipeline_lib.references import Reference, References
from pipeline_lib.shards import encode_image, image_row, write_shard
from pipeline_lib.store import Store

SHOTS, IMAGES = "shots.json", "images.parquet"
N_IMAGES = 3 * IMAGES_PER_ROW_GROUP
GUIDANCE = {"start": 0.5, "n_shots": 2, "shots": SHOTS, "images": IMAGES}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With three shots of the class "a/b", and a shard of three row groups of which the images are one each."""
    drawn = [{"image_id": name(100 * number), "source_id": number, "path": f"{number}.png"} for number in range(3)]
    record = {"dataset": "d", "split": "train", "seed": 0, "shots": {"a/b": drawn}, "validation": {}}
    (tmp_path / SHOTS).write_text(json.dumps(record))
    write_shard(
        (
            image_row(
                name(n), encode_image(np.full((2, 2, 3), n % 256, np.uint8), "png"), "png", 2, 2, class_name="a/b"
            )
            for n in range(N_IMAGES)
        ),
        tmp_path / IMAGES,
        {},
    )
    return Store(tmp_path)


def name(number: int) -> str:
    return f"d-train-{number:06d}"


def test_the_first_shots_are_the_references(store: Store):
    """As many as are asked for, in their order."""
    for n_shots in (1, 2, 3):
        found = References(store).of_class({**GUIDANCE, "n_shots": n_shots}, "a/b")
        assert found == [Reference(IMAGES, name(100 * number)) for number in range(n_shots)]


def test_too_few_shots(store: Store):
    """The message names the class, how many there are and are asked for, the file, and the key to change."""
    with pytest.raises(UserError, match=r"'a/b' has 3 shots in .*shots\.json, 4 are asked for.*few_shot\.shots"):
        References(store).of_class({**GUIDANCE, "n_shots": 4}, "a/b")


def test_an_unknown_class(store: Store):
    """The message names the file, the class and those that are there, and the command that mends a store."""
    with pytest.raises(UserError, match=r"shots\.json has no shots of the class 'b'; it has them of 'a/b'.*verify"):
        References(store).of_class(GUIDANCE, "b")


def test_images_are_those_of_their_ids(store: Store):
    """RGB, in the order that is asked for, from any row group; an image that occurs twice is one object."""
    references = References(store)
    wanted = [Reference(IMAGES, name(number)) for number in (299, 7, 299, 110)]
    references.read(wanted)
    images = references.images(wanted)
    assert [image.getpixel((1, 1)) for image in images] == [(43, 43, 43), (7, 7, 7), (43, 43, 43), (110, 110, 110)]
    assert images[0] is images[2]


def test_files_are_read_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Shots for all classes and shards, images for all batches; more of a shard's are read when they are asked for."""
    read: list[str] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(path: Path, *arguments: Any, **options: Any) -> Any:
            read.append(path.name)
            return function(path, *arguments, **options)

        return noting

    monkeypatch.setattr("pipeline_lib.references.read_shots", noted(read_shots))
    monkeypatch.setattr(pq, "read_table", noted(pq.read_table))
    references = References(store)
    for _ in range(3):
        first = references.of_class(GUIDANCE, "a/b")
        references.read(first)
        references.images(first)
    assert read == [SHOTS, IMAGES]
    references.read([*first, Reference(IMAGES, name(5))])
    assert read == [SHOTS, IMAGES, IMAGES]
    assert references.images([Reference(IMAGES, name(5))])[0].getpixel((0, 0)) == (5, 5, 5)


def test_an_image_that_is_not_in_its_shard(store: Store):
    """The message names the file and the image, and the command that mends a store."""
    with pytest.raises(UserError, match=r"images\.parquet does not hold the real images d-train-000300 .*verify"):
        References(store).read([Reference(IMAGES, name(0)), Reference(IMAGES, name(300))])


def test_row_groups_without_a_wanted_image_are_not_read(store: Store):
    """Else every job would read all shots of all classes. Here the last row group is damaged."""
    path = store.path(IMAGES)
    group = pq.ParquetFile(path).metadata.row_group(2)
    columns = [group.column(number) for number in range(group.num_columns)]
    start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
    stop = start + sum(column.total_compressed_size for column in columns)
    content = path.read_bytes()
    path.write_bytes(content[:start] + bytes(stop - start) + content[stop:])
    References(store).read([Reference(IMAGES, name(3)), Reference(IMAGES, name(150))])
    with pytest.raises(OSError):
        References(store).read([Reference(IMAGES, name(250))])
