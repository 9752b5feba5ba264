"""Real shots: nested, apart from validation images, never from test, and in shards with their own bytes."""

import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_trees import CLASSES, draw_raw_tree
from small_project import changed, configured, draw_shapes

from pipeline_lib.datasets.layouts import LAYOUTS
from pipeline_lib.datasets.loaders import open_split
from pipeline_lib.datasets.loaders.split import RealSplit
from pipeline_lib.datasets.preparation import prepare, prepare_shots
from pipeline_lib.datasets.shots import draw_shots, positions_of, read_shots, refuse_test_images
from pipeline_lib.datasets.units import real_units, shot_images_spec, shots_spec
from pipeline_lib.digests import DigestCache
from pipeline_lib.errors import UserError
from pipeline_lib.graph import Graph
from pipeline_lib.records import IMAGES, DrawnImage, Shots
from pipeline_lib.sets import make_set
from pipeline_lib.shards import decode_image, read_rows

Params = dict[str, Any]
Draw = dict[str, list[DrawnImage]]
WITH_TRAIN = [name for name in CLASSES if "train" in LAYOUTS[name].parts]


def listed(sizes: dict[str, int], seed: int = 0) -> RealSplit:
    """A train split with so many images of each label, in any order; to read one is an error."""
    labels = [label for label, size in sizes.items() for _ in range(size)]
    np.random.default_rng(seed).shuffle(labels)

    def read(index: int) -> bytes:
        raise AssertionError(f"image {index} was read")

    numbers = [3 * index + 1 for index in range(len(labels))]  # numbers of a source have gaps
    return RealSplit(
        labels, [f"{label}/{n}.png" for label, n in zip(labels, numbers, strict=True)], read, numbers, frozenset(sizes)
    )


def recipe(sizes: dict[str, int], seed: int = 0, n_shots: int = 2, n_validation: int = 1) -> dict[str, Any]:
    names = {"class_names": [f"a {label}" for label in sizes], "class_folders": list(sizes)}
    return {"dataset": "d", "split": "train", **names, "seed": seed, "n_shots": n_shots, "n_validation": n_validation}


def drawn(sizes: dict[str, int], **keys: int) -> Shots:
    return draw_shots(listed(sizes), recipe(sizes, **keys))


def numbers(draw: Draw) -> dict[str, list[int]]:
    return {name: [image.source_id for image in images] for name, images in draw.items()}


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_fewer_shots_are_a_part_of_more():
    """The 1-shot image is the first of the 2, and so on to 16; the validation images are the same beside each."""
    sizes = {"cat": 25, "dog": 20, "owl": 400}
    most = drawn(sizes, n_shots=16, n_validation=4)
    assert {len(images) for images in most.shots.values()} == {16}
    for n_shots in (1, 2, 4, 8):
        fewer = drawn(sizes, n_shots=n_shots, n_validation=4)
        assert fewer.shots == {name: images[:n_shots] for name, images in most.shots.items()}
        assert fewer.validation == most.validation


@settings(deadline=None)  # of time: the machine may be busy
@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(8, 40), min_size=1),
    seed=st.integers(0, 10**9),
    n_shots=st.integers(1, 5),
    n_validation=st.integers(1, 3),
)
def test_every_draw(sizes: dict[str, int], seed: int, n_shots: int, n_validation: int):
    """Whatever is asked for: distinct images of the own class, shots apart from validation, fewer a part of more."""
    split = listed(sizes)
    label_of = dict(zip(split.source_ids, split.labels, strict=True))
    draw = draw_shots(split, recipe(sizes, seed, n_shots, n_validation))
    fewer = draw_shots(split, recipe(sizes, seed, 1, n_validation))
    assert list(draw.shots) == list(draw.validation) == [f"a {label}" for label in sizes]
    for label in sizes:
        shots, validation = draw.shots[f"a {label}"], draw.validation[f"a {label}"]
        assert (len(shots), len(validation)) == (n_shots, n_validation)
        assert len({image.source_id for image in (*shots, *validation)}) == n_shots + n_validation
        assert {label_of[image.source_id] for image in (*shots, *validation)} == {label}
        assert fewer.shots[f"a {label}"] == shots[:1]
        assert fewer.validation[f"a {label}"] == validation


def test_whole_class_is_divided():
    """Where there are just as many images as are asked for, each is a shot or a validation image."""
    sizes = {"cat": 7, "dog": 7}
    split, draw = listed(sizes), drawn(sizes, n_shots=4, n_validation=3)
    everything = Counter(n for part in (draw.shots, draw.validation) for own in numbers(part).values() for n in own)
    assert everything == Counter(split.source_ids)


def test_draws_stay_what_they_are():
    """The beginning and the end of NumPy 2's PCG64 permutations of each class, whose seed is the first 63 bits of
    SHA-256 of "str:5:shotsint:1:3str:5:a cat" (worked out apart from the package). Others would be other shots of the
    same spec."""
    draw = drawn({"cat": 12, "dog": 12}, seed=3, n_shots=4, n_validation=2)
    assert numbers(draw.shots) == {"a cat": [37, 52, 22, 34], "a dog": [43, 70, 40, 25]}
    assert numbers(draw.validation) == {"a cat": [10, 16], "a dog": [7, 19]}


def test_each_seed_draws_for_itself():
    """Another seed is another draw, the same one is the same; two classes are not drawn alike."""
    sizes = {"cat": 200, "dog": 200}
    draws = [drawn(sizes, seed=seed, n_shots=16, n_validation=4) for seed in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
    common = [
        {image.source_id for image in draws[0].shots[name]} & {image.source_id for image in draws[1].shots[name]}
        for name in draws[0].shots
    ]
    assert all(len(shared) < 8 for shared in common)
    split = listed(sizes)
    ranks = []
    for name, label in (("a cat", "cat"), ("a dog", "dog")):
        own = [number for number, of in zip(split.source_ids, split.labels, strict=True) if of == label]
        ranks.append([own.index(number) for number in numbers(draws[0].shots)[name]])
    assert ranks[0] != ranks[1]


def test_every_image_is_drawn_equally_often():
    """Over 3,000 seeds, ten images are each a class's first shot and its only validation image about 300 times."""
    split, sizes = listed({"cat": 10}), {"cat": 10}
    counts = np.zeros((2, 10))
    place = {number: index for index, number in enumerate(split.source_ids)}
    for seed in range(3000):
        draw = draw_shots(split, recipe(sizes, seed, n_shots=1, n_validation=1))
        counts[0, place[draw.shots["a cat"][0].source_id]] += 1
        counts[1, place[draw.validation["a cat"][0].source_id]] += 1
    chi_squared = ((counts - 300) ** 2 / 300).sum(axis=1)
    assert (chi_squared < 27.9).all(), chi_squared  # the 0.1% point of 9 degrees of freedom


def test_a_class_is_drawn_whatever_the_others():
    """More classes, fewer, or the same in another order: a class's images are the same."""
    split = listed({"cat": 20, "dog": 30, "owl": 25})
    whole = draw_shots(split, recipe({"cat": 20, "dog": 30, "owl": 25}, n_shots=8, n_validation=4))
    for labels in (("dog", "cat"), ("owl", "dog", "cat"), ("cat",)):
        other = draw_shots(split, recipe(dict.fromkeys(labels, 0), n_shots=8, n_validation=4))
        assert list(other.shots) == [f"a {label}" for label in labels]
        for name in other.shots:
            assert other.shots[name] == whole.shots[name]
            assert other.validation[name] == whole.validation[name]


def test_class_with_too_few_images():
    """The message names the class, how many images it has, and what is asked for."""
    sizes = {"cat": 19, "dog": 20, "owl": 0}
    with pytest.raises(UserError) as caught:
        drawn(sizes, n_shots=16, n_validation=4)
    message = str(caught.value)
    assert "d: 2 classes have fewer than the 20 training images that few_shot needs of each" in message
    assert "16 shots and 4 for validation: 'a cat' has 19, 'a owl' has 0" in message
    assert "few_shot.shots or few_shot.validation_per_class" in message


def test_small_class_may_have_fewer_shots():
    """Where fewer shots do, a class gives what it has; validation images are never given up for shots."""
    sizes = {"cat": 6, "dog": 40}
    split = listed(sizes)
    draw = draw_shots(split, recipe(sizes, n_shots=16, n_validation=4), at_least=2)
    assert {name: len(images) for name, images in draw.shots.items()} == {"a cat": 2, "a dog": 16}
    assert {len(images) for images in draw.validation.values()} == {4}
    assert set(numbers(draw.shots)["a cat"]).isdisjoint(numbers(draw.validation)["a cat"])
    with pytest.raises(UserError, match=r"1 classes have fewer than the 7 .*3 shots and 4 .*'a cat' has 6"):
        draw_shots(split, recipe(sizes, n_shots=16, n_validation=4), at_least=3)
    more = draw_shots(split, recipe(sizes, n_shots=1, n_validation=4), at_least=30)  # never more than are asked for
    assert {len(images) for images in more.shots.values()} == {1}


def test_written_draw_is_read_back(tmp_path: Path):
    """JSON and back; who needs more shots than a class has is told."""
    sizes = {"cat": 6, "dog": 40}
    draw = draw_shots(listed(sizes), recipe(sizes, n_shots=16, n_validation=4), at_least=1)
    path = tmp_path / "draw.json"
    path.write_text(draw.model_dump_json(indent=1))
    assert read_shots(path) == read_shots(path, at_least=2) == draw
    with pytest.raises(UserError, match=r"d: class 'a cat' has 2 shots in .*draw\.json, 4 are asked for"):
        read_shots(path, at_least=4)


def test_a_large_split_is_drawn_from_in_no_time():
    """300,000 images of 1,000 classes: listed once, not once per class."""
    sizes = {f"{number:04d}": 300 for number in range(1000)}
    split = listed(sizes)
    started = time.process_time()
    draw = draw_shots(split, recipe(sizes, n_shots=16, n_validation=4))
    assert len(positions_of(draw, split)) == 20_000
    assert time.process_time() - started < 10


# --- from a data set to shards ----------------------------------------------------------------------------------------


class Study:
    """The draws of a few seeds from a data set, and the shards of their images."""

    def __init__(self, params: Params, name: str, seeds: Sequence[int] = (0,), n_shots: int = 2, n_validation: int = 1):
        self.config = configured(params)
        self.definition = self.config.dataset(name)
        self.graph = Graph(Path(self.config.store))
        self.store = self.graph.store
        digests = DigestCache(self.store.root / "digests.json")
        of_data = (self.definition, self.config, digests)
        specs = [shots_spec(*of_data, seed, n_shots, n_validation) for seed in seeds]
        self.shots = [self.graph.unit("shots", name, spec, suffix=".json", location=at) for spec, at in specs]
        self.images = [
            self.graph.unit("real_images", f"{name}.shots", spec, location=at, inputs=[shots.path])
            for shots in self.shots
            for spec, at in [shot_images_spec(*of_data, shots.path)]
        ]
        self.whole = [
            self.graph.unit("real_images", f"{name}.train", unit.spec, location=unit.location)
            for unit in real_units(self.definition, "train", self.config, digests)
        ]

    def draw(self) -> list[Shots]:
        """Draw, look for test images, write; as the stage does."""
        spec, location = self.shots[0].spec, self.shots[0].location
        split = open_split(spec, location)
        draws = [draw_shots(split, unit.spec) for unit in self.shots]
        refuse_test_images(draws, split, spec, location)
        for unit, draw in zip(self.shots, draws, strict=True):
            with self.store.making(unit) as path:
                path.write_text(draw.model_dump_json(indent=1))
        return draws

    def prepare(self) -> list[list[dict[str, Any]]]:
        """Rows of the shard of each draw."""
        split = open_split(self.images[0].spec, self.images[0].location)
        made = self.graph.set("real_images", "shots", self.images)
        make_set(made, self.store, lambda units: prepare_shots(split, units, self.store))
        return [list(read_rows(self.store.path(unit))) for unit in self.images]

    def prepare_whole(self) -> dict[str, dict[str, Any]]:
        """Rows of the whole train split, by image id."""
        prepare(open_split(self.whole[0].spec, self.whole[0].location), self.whole, self.store)
        return {row["image_id"]: row for unit in self.whole for row in read_rows(self.store.path(unit))}


def own(params: Params, **keys: Any) -> Params:
    """The small project with a data set `mine`."""
    return changed(params, own_datasets=params["own_datasets"] | {"mine": {"template": "a photo of a {}", **keys}})


def with_folder(params: Params, tmp_path: Path, n: int = 6) -> Params:
    train = draw_shapes(tmp_path / "train", n, seed=1)
    return own(params, folder=str(tmp_path / "shapes"), train_folder=str(train))


def encoded(number: int) -> bytes:
    """A PNG that no other number has."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (number % 256, 7 * number % 256, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(path: Path, images: dict[str, range]) -> None:
    """Parquet with so many images of each label, in turns, as bytes."""
    rows = [(label, encoded(number)) for label, own in images.items() for number in own]
    rows = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [image for _, image in rows], "label": [label for label, _ in rows]})
    pq.write_table(table, path, row_group_size=4)


def with_parquet(params: Params, tmp_path: Path) -> Params:
    write_table(tmp_path / "test.parquet", {"robin": range(3), "wren": range(10, 13)})
    write_table(tmp_path / "more" / "train.parquet", {"robin": range(20, 26), "wren": range(30, 36)})
    return own(params, parquet=str(tmp_path / "test.parquet"), train_parquet=str(tmp_path / "more" / "*.parquet"))


def with_hub(params: Params, tmp_path: Path) -> Params:
    """A local data set whose splits are `test` and `train`."""
    pytest.importorskip("datasets")
    write_table(tmp_path / "hub" / "test.parquet", {"robin": range(3), "wren": range(10, 13)})
    write_table(tmp_path / "hub" / "train.parquet", {"robin": range(20, 26), "wren": range(30, 36)})
    hub = {"id": str(tmp_path / "hub"), "train_split": "train"}
    return own(params, huggingface=hub, class_names=["wren", "robin"])


OWN_KINDS: dict[str, Callable[[Params, Path], Params]] = {
    "folder": with_folder,
    "parquet": with_parquet,
    "huggingface": with_hub,
}


def test_shard_of_a_draw(params: Params, tmp_path: Path):
    """Class by class in the order of the class names, shots first; the schema, the spec, the files' own bytes."""
    names = {"class_names": ["blue box", "red box", "green box"], "class_folders": ["blue", "red", "green"]}
    params = changed(
        with_folder(params, tmp_path),
        own_datasets__mine__class_names=names["class_names"],
        own_datasets__mine__class_folders=names["class_folders"],
    )
    study = Study(params, "mine", n_shots=3, n_validation=2)
    [draw], [rows] = study.draw(), study.prepare()
    expected = [(name, image) for name in names["class_names"] for image in (*draw.shots[name], *draw.validation[name])]
    assert len(rows) == 15
    found = [
        (row["class_name"], DrawnImage(image_id=row["image_id"], source_id=row["source_id"], path=row["image"]["path"]))
        for row in rows
    ]
    assert found == expected
    for row in rows:
        assert row["image"]["bytes"] == (tmp_path / "train" / row["image"]["path"]).read_bytes()
        assert row["image"]["path"].startswith(row["class_name"].split()[0])
        assert (row["width"], row["height"], row["valid"], row["prompt"]) == (24, 24, True, None)
    schema = pq.read_schema(study.store.path(study.images[0]))
    assert schema.equals(IMAGES)
    assert json.loads(schema.metadata[b"pipeline_lib"])["shots"] == study.shots[0].path
    record = study.store.record(study.images[0])
    assert record is not None and record.details["n_images"] == 18
    assert [made_from.path for made_from in record.inputs] == [study.shots[0].path]


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_own_training_images(params: Params, tmp_path: Path, kind: str):
    """Folder, Parquet and Hugging Face: drawn images are named as in the whole train split, with its bytes; none of
    them is a test image."""
    study = Study(OWN_KINDS[kind](params, tmp_path), "mine", seeds=(0, 1, 2), n_shots=3, n_validation=2)
    study.draw()
    whole = study.prepare_whole()
    digests = DigestCache(tmp_path / "d.json")
    test = [
        open_split(unit.spec, unit.location) for unit in real_units(study.definition, "test", study.config, digests)
    ]
    tested = {split.read(index) for split in test for index in range(len(split))}
    assert tested
    for rows in study.prepare():
        assert len(rows) == 5 * len(study.definition.class_names)
        for row in rows:
            assert row == whole[row["image_id"]]
            assert row["image"]["bytes"] not in tested


@pytest.mark.parametrize("name", WITH_TRAIN)
def test_shots_of_a_download_are_training_images(params: Params, tmp_path: Path, name: str):
    """The drawn images of each of the 15 show their class and the colour of the train split, never of test."""
    tree = draw_raw_tree(name, tmp_path / name, 4)
    study = Study(changed(params, own_datasets=params["own_datasets"] | {"mine": tree.definition()}), "mine", (0, 1))
    study.draw()
    whole = study.prepare_whole()
    for rows in study.prepare():
        assert [row["class_name"] for row in rows] == [of for of in tree.classes.values() for _ in range(3)]
        assert len({row["image_id"] for row in rows}) == len(rows)
        for row in rows:
            assert row == whole[row["image_id"]]
            red, green, _ = decode_image(row["image"]["bytes"]).getpixel((8, 8))
            assert abs(red - (20 + 3 * list(tree.classes.values()).index(row["class_name"]))) <= 1
            assert abs(green - 180) <= 1, "a test image was drawn"


def files_of(draw: Shots, tmp_path: Path) -> set[Path]:
    """The drawn files of the data set of `with_folder`."""
    images = [image for part in (draw.shots, draw.validation) for own in part.values() for image in own]
    return {tmp_path / "train" / image.path for image in images}


def test_only_drawn_images_are_read(params: Params, tmp_path: Path):
    """Damaged images that were not drawn do no harm: nobody reads them."""
    study = Study(with_folder(params, tmp_path), "mine")
    [draw] = study.draw()
    for file in set((tmp_path / "train").rglob("*.png")) - files_of(draw, tmp_path):
        file.write_bytes(b"damaged")
    assert len(study.prepare()[0]) == 9


def test_damaged_shots_are_named_once(params: Params, tmp_path: Path):
    """A damaged image that several seeds drew is one file; draws without it become shards all the same."""
    study = Study(with_folder(params, tmp_path), "mine", seeds=range(6))
    holders: dict[str, list[int]] = {}
    for number, draw in enumerate(study.draw()):
        for image in (*draw.shots["red"], *draw.validation["red"]):
            holders.setdefault(image.path, []).append(number)
    path = next(path for path, of in holders.items() if 2 <= len(of) < 6)
    (tmp_path / "train" / path).write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"mine: 1 files in .*train cannot be read as images: {path} \("):
        study.prepare()
    without = [number for number, unit in enumerate(study.images) if study.store.is_complete(unit)]
    assert without == [number for number in range(6) if number not in holders[path]]


def test_raw_data_that_changed_since_the_draw(params: Params, tmp_path: Path):
    """Birdsnap's images go from the web: a drawn image that is gone is named, and no other takes its place."""
    tree = draw_raw_tree("birdsnap", tmp_path / "birdsnap", 6)
    definition = tree.definition(n_images={"test": None, "train": None})
    study = Study(changed(params, own_datasets=params["own_datasets"] | {"mine": definition}), "mine")
    [draw] = study.draw()
    path = draw.shots["Ovenbird"][1].path
    (tree.root / "birdsnap" / "download" / "images" / path).unlink()
    with pytest.raises(UserError, match=rf"mine: 1 of the 9 training images that seed 0 drew .* {path}\. Bring back"):
        study.prepare()


def test_another_image_under_a_drawn_number(params: Params):
    """A number that stands for another path now is not the image that was drawn."""
    sizes = {"cat": 6, "dog": 6}
    split, draw = listed(sizes), drawn(sizes)
    assert [split.source_ids[position] for position in positions_of(draw, split)] == [
        image.source_id for name in draw.shots for image in (*draw.shots[name], *draw.validation[name])
    ]
    renamed = RealSplit(
        split.labels, [f"x{path}" for path in split.paths], split.read, split.source_ids, split.all_labels
    )
    with pytest.raises(UserError, match="d: 6 of the 6 training images that seed 0 drew are not there any more"):
        positions_of(draw, renamed)


# --- never from test --------------------------------------------------------------------------------------------------


def leak(params: Params, tmp_path: Path, kind: str) -> tuple[Params, str]:
    """A study one of whose training images of each class is a test image too, and what the message says of one."""
    if kind == "folder":
        params = with_folder(params, tmp_path, 2)
        for name in ("red", "blue", "green"):
            shutil.copy(tmp_path / "shapes" / name / "001.png", tmp_path / "train" / name / "a.png")
        return params, "red/a.png is red/001.png"
    if kind == "parquet":
        params = with_parquet(params, tmp_path)
        write_table(tmp_path / "more" / "train.parquet", {"robin": range(3, 0, -1), "wren": range(30, 33)})
        return params, "train.parquet/"
    params = with_hub(params, tmp_path)
    hub = {"id": str(tmp_path / "hub"), "split": "test[:50%]", "train_split": "test"}
    return changed(params, own_datasets__mine__huggingface=hub), "test/"


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_test_image_among_the_drawn_ones(params: Params, tmp_path: Path, kind: str):
    """A training image that is a test image, copied or by an overlapping split, is refused when it is drawn."""
    params, said = leak(params, tmp_path, kind)
    study = Study(params, "mine")
    with pytest.raises(UserError, match="among the training images that were drawn") as caught:
        study.draw()
    assert said in str(caught.value)
    assert "A test image must never be trained on" in str(caught.value)
    assert not study.store.is_complete(study.shots[0])


def test_test_image_that_was_not_drawn(params: Params, tmp_path: Path):
    """A copy of a test image that no seed draws is trained on by nobody."""
    params = with_folder(params, tmp_path)
    [draw] = Study(params, "mine").draw()
    spare = next(path for path in sorted((tmp_path / "train").rglob("*.png")) if path not in files_of(draw, tmp_path))
    shutil.copy(tmp_path / "shapes" / "red" / "000.png", spare)
    assert Study(params, "mine").draw() == [draw]


def test_test_images_that_cannot_be_read(params: Params, tmp_path: Path):
    """They are named when they are prepared; drawing passes over them, and finds the copy behind them."""
    params, _ = leak(params, tmp_path, "parquet")
    table = pq.read_table(tmp_path / "test.parquet")
    images: list[bytes | None] = table["image"].to_pylist()
    images[0] = None
    pq.write_table(table.set_column(0, "image", pa.array(images, pa.binary())), tmp_path / "test.parquet")
    with pytest.raises(UserError, match="among the training images that were drawn"):
        Study(params, "mine").draw()


def test_downloads_need_not_be_read_to_draw(params: Params, tmp_path: Path):
    """Official splits are disjoint by their lists: no image of a download is read when shots are drawn."""
    tree = draw_raw_tree("food", tmp_path / "food", 4)
    for file in tree.root.rglob("*.jpg"):
        file.write_bytes(b"same")
    study = Study(changed(params, own_datasets=params["own_datasets"] | {"mine": tree.definition()}), "mine")
    assert len(study.draw()[0].shots) == 3
