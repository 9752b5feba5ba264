"""Planning real images: shards, keys and errors, before anything is read."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_trees import draw_flat_imagenet, draw_raw_tree
from small_project import REPOSITORY, changed, configured, draw_shapes

from pipeline_lib.config import Config, read_config
from pipeline_lib.datasets.layouts import LAYOUTS, find_parts
from pipeline_lib.datasets.registry import builtin_datasets
from pipeline_lib.datasets.units import REAL_PER_SHARD, RealUnit, real_units, shot_images_spec, shots_spec
from pipeline_lib.digests import DigestCache
from pipeline_lib.errors import UserError
from pipeline_lib.store import key_of

Params = dict[str, Any]


@pytest.fixture
def digests(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "digests.json")


def planned(config: Config, digests: DigestCache, name: str, split: str = "test") -> list[RealUnit]:
    return real_units(config.dataset(name), split, config, digests)


def key(params: Params, digests: DigestCache) -> str:
    """Key of the first shard of `shapes`."""
    return key_of(planned(configured(params), digests, "shapes")[0].spec)


def test_all_data_sets_are_planned_fast_without_their_data(digests: DigestCache):
    """Every split of every data set of the package is planned in well under a second, with no raw data there."""
    config = read_config(REPOSITORY / "params.yaml")
    builtin_datasets.cache_clear()
    started = time.process_time()
    total = 0
    for name, definition in builtin_datasets().items():
        for split in definition.splits:
            units = planned(config, digests, name, split)
            expected = definition.n_images.get(split)
            assert [unit.spec["start"] for unit in units] == list(range(0, expected or 1, REAL_PER_SHARD))
            assert units[-1].spec["stop"] == expected
            total += len(units)
    assert total > 1500
    assert time.process_time() - started < 6


def test_planning_imports_nothing_heavy():
    """Neither torch nor pandas nor Hugging Face `datasets` nor scipy is imported to plan real images."""
    code = (
        "import sys, pipeline_lib.datasets.units, pipeline_lib.datasets.shots, pipeline_lib.datasets.listing; "
        "sys.exit(bool({'torch', 'pandas', 'datasets', 'scipy', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ranges_cover_a_split_once(params: Params, tmp_path: Path, digests: DigestCache):
    """A folder of 2,003 images is three shards, the last of which is short."""
    images = tmp_path / "shapes"
    for number in range(1997):
        (images / "red" / f"link{number:04d}.png").symlink_to(images / "red" / "000.png")
    units = planned(configured(params), digests, "shapes")
    assert [(unit.spec["start"], unit.spec["stop"]) for unit in units] == [(0, 1000), (1000, 2000), (2000, 2003)]
    assert {unit.spec["n_images"] for unit in units} == {2003}


def test_unknown_count_is_one_shard(digests: DigestCache):
    """Birdsnap's count is what the web still has: its split is one shard, whatever its size."""
    [unit] = planned(read_config(REPOSITORY / "params.yaml"), digests, "birdsnap")
    assert (unit.spec["start"], unit.spec["stop"], unit.spec["n_images"]) == (0, None, None)


def test_place_of_the_data_is_no_part_of_the_key(params: Params, tmp_path: Path, digests: DigestCache):
    """The same download, or the same folder, elsewhere has the same keys."""
    before = key(params, digests)
    moved = changed(params, own_datasets__shapes__folder=str(tmp_path / "moved"))
    Path(params["own_datasets"]["shapes"]["folder"]).rename(tmp_path / "moved")
    assert key(moved, digests) == before
    one, other = (configured(changed(moved, data=data)) for data in "ab")
    [(first, second)] = zip(planned(one, digests, "birdsnap"), planned(other, digests, "birdsnap"), strict=True)
    assert first.spec == second.spec
    assert first.location["root"] == "a/birdsnap"
    assert second.location["root"] == "b/birdsnap"


def test_what_determines_the_shards_is_in_the_key(params: Params, tmp_path: Path, digests: DigestCache):
    """Other pixels, names or folders are other shards."""
    folders, names = ("own_datasets__shapes__class_folders", "own_datasets__shapes__class_names")
    keys = {
        key(params, digests),
        key(changed(params, **{folders: ["blue", "red", "green"], names: ["x", "y", "z"]}), digests),
        key(changed(params, **{names: ["a", "b", "c"]}), digests),
    }
    draw_shapes(tmp_path / "other", 2, seed=1)
    keys.add(key(changed(params, own_datasets__shapes__folder=str(tmp_path / "other")), digests))
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("name", "split", "there"),
    [
        ("shapes", "train", "there is test"),
        ("shapes", "validation", "there is test"),
        ("imagenet_r", "train", "there is test"),
        ("cifar10", "validation", "there are test, train"),
        ("objects", "corpus", "there are test, train, validation"),
    ],
)
def test_split_that_is_not_there(params: Params, digests: DigestCache, name: str, split: str, there: str):
    """Asking for a split that a data set does not have names those that it has."""
    with pytest.raises(UserError, match=rf"evaluation\.split: data set {name} has no split '{split}'; {there}"):
        planned(configured(params), digests, name, split)


def test_splits_of_every_download():
    """All downloads have a test split, and all but two a train split."""
    splits = {name: builtin_datasets()[name].splits for name in LAYOUTS}
    assert {name for name, found in splits.items() if found == ("test",)} == {"imagenet_sketch", "imagenet_r"}
    assert set(splits.values()) == {("test",), ("test", "train")}


def test_class_without_images(params: Params, tmp_path: Path, digests: DigestCache):
    """An empty class folder is reported when planned."""
    for file in (tmp_path / "shapes" / "blue").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"shapes: no images in .*blue; put some there, or leave the class out"):
        planned(configured(params), digests, "shapes")


def test_wrong_count_of_own_images(params: Params, digests: DigestCache):
    """A number of images that the definition states is checked when planned."""
    config = configured(changed(params, own_datasets__shapes__n_images={"test": 7}))
    with pytest.raises(UserError, match=r"shapes: 6 test images are there, n_images\.test says 7"):
        planned(config, digests, "shapes")


def test_misordered_own_folders_are_caught_when_planned(params: Params, digests: DigestCache):
    """Your own class names at other classes' folders are an error, unless they are said to be meant."""
    wrong = changed(params, own_datasets__shapes__class_names=["blue", "red", "green"])
    with pytest.raises(UserError, match=r"2 of 3 class names .*'blue' stands at 'red' but resembles 'blue'"):
        planned(configured(wrong), digests, "shapes")
    meant = changed(wrong, own_datasets__shapes__renamed=["blue", "red"])
    assert planned(configured(meant), digests, "shapes")[0].location["renamed"] == ["blue", "red"]


def test_own_copy_of_an_official_download(params: Params, tmp_path: Path, digests: DigestCache):
    """`loader` and `root` name a download that lies elsewhere; names and labels are the package's if not given."""
    tree = draw_raw_tree("food", tmp_path / "food", 2)
    own = {"loader": "food", "root": str(tree.root), "template": "a photo of {}"}
    config = configured(changed(params, own_datasets=params["own_datasets"] | {"my_food": own}))
    definition = config.dataset("my_food")
    assert definition.class_names == builtin_datasets()["food"].class_names
    assert definition.labels == builtin_datasets()["food"].labels
    [unit] = planned(config, digests, "my_food")
    assert unit.location["root"] == str(tree.root)
    assert unit.spec["n_images"] is None


def download_keys(params: Params, digests: DigestCache, root: Path, loader: str, split: str = "test") -> list[str]:
    """Keys of a download that is data of your own."""
    own = {"loader": loader, "root": str(root), "template": "a photo of {}"}
    config = configured(changed(params, own_datasets=params["own_datasets"] | {"mine": own}))
    return [key_of(unit.spec) for unit in planned(config, digests, "mine", split)]


@pytest.mark.parametrize("loader", LAYOUTS)
def test_own_copy_of_a_download_is_known_by_its_files(
    params: Params, tmp_path: Path, digests: DigestCache, loader: str
):
    """Every file that the test split is read from is in the key, and where they lie and how old they are is not."""
    tree = draw_raw_tree(loader, tmp_path / "one", 2)
    before = download_keys(params, digests, tree.root, loader)
    shutil.copytree(tree.root, tmp_path / "two")
    assert download_keys(params, digests, tmp_path / "two", loader) == before
    (tmp_path / "two" / "readme.txt").write_text("not a part")
    assert download_keys(params, digests, tmp_path / "two", loader) == before
    parts = find_parts(LAYOUTS[loader], "test", tree.root)
    for part in filter(None, parts.values()):
        file = part if part.is_file() else next(path for path in sorted(part.rglob("*")) if path.is_file())
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert download_keys(params, digests, tree.root, loader) != before, file
        file.write_bytes(content)
        assert download_keys(params, digests, tree.root, loader) == before, file
        if part.is_file():  # lists and records count by their content
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            assert download_keys(params, digests, tree.root, loader) != before, file
            file.write_bytes(content)
        else:
            file.rename(file.with_stem("other"))
            assert download_keys(params, digests, tree.root, loader) != before, file
            file.with_stem("other").rename(file)


def test_own_copy_of_another_split_and_of_nothing(params: Params, tmp_path: Path, digests: DigestCache):
    """A train image is in the key of the train split alone; a download that is not there can be planned."""
    tree = draw_raw_tree("imagenet", tmp_path / "imagenet", 2)
    test, train = (download_keys(params, digests, tree.root, "imagenet", split) for split in ("test", "train"))
    next((tree.root / "train").rglob("*.JPEG")).write_bytes(b"")
    assert download_keys(params, digests, tree.root, "imagenet") == test
    assert download_keys(params, digests, tree.root, "imagenet", "train") != train
    nothing = download_keys(params, digests, tmp_path / "none", "imagenet")
    assert nothing != test
    shutil.rmtree(tree.root / "val")
    assert download_keys(params, digests, tree.root, "imagenet") == nothing


def test_labels_in_a_folder_count_by_content(params: Params, tmp_path: Path, digests: DigestCache):
    """The devkit is a folder, and its list of labels may be mended without a change of size."""
    tree = draw_flat_imagenet(tmp_path / "imagenet", 2, "devkit")
    before = download_keys(params, digests, tree.root, "imagenet")
    truth = tree.root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text(truth.read_text().translate(str.maketrans("37", "73")))
    assert download_keys(params, digests, tree.root, "imagenet") != before


def test_the_packages_downloads_are_known_without_their_files(params: Params, tmp_path: Path, digests: DigestCache):
    """With the raw data there or deleted, a data set of the package has the same shards."""
    config = configured(changed(params, data=str(tmp_path)))
    before = planned(config, digests, "food")
    draw_raw_tree("food", tmp_path / "food", 2)
    assert planned(config, digests, "food") == before


def test_misordered_names_of_codes_are_caught_when_planned(params: Params, tmp_path: Path, digests: DigestCache):
    """ImageNet-R's folders are codes: names of your own that are one off are caught by the package's names."""
    names = builtin_datasets()["imagenet_r"].class_names
    tree = draw_raw_tree("imagenet_r", tmp_path / "r", 1)
    own = {"loader": "imagenet_r", "root": str(tree.root), "template": "a photo of {}"}
    own |= {"class_names": names[1:] + names[:1], "class_folders": builtin_datasets()["imagenet_r"].labels}
    config = configured(changed(params, own_datasets=params["own_datasets"] | {"mine": own}))
    with pytest.raises(UserError, match="mine: 200 of 200 class names"):
        planned(config, digests, "mine")


def test_some_classes_of_a_download(params: Params, tmp_path: Path, digests: DigestCache):
    """Official labels alone choose classes; their names are the package's, whatever the order."""
    tree = draw_raw_tree("imagenet", tmp_path / "imagenet", 2)
    chosen = {"loader": "imagenet", "root": str(tree.root), "class_folders": ["n01443537", "n01440764"], "subset": True}
    own = params["own_datasets"] | {"fish": chosen | {"template": "a photo of a {}"}}
    config = configured(changed(params, own_datasets=own))
    assert config.dataset("fish").class_names == ["goldfish", "tench"]
    assert planned(config, digests, "fish", "train")[0].spec["class_folders"] == ["n01443537", "n01440764"]


# --- draws of training images -----------------------------------------------------------------------------------------


def draw_keys(params: Params, digests: DigestCache, name: str = "mine", **asked: int) -> tuple[str, str]:
    """Keys of a draw and of the shard of a draw's images."""
    config = configured(params)
    asked = {"seed": 0, "n_shots": 16, "n_validation": 4} | asked
    spec, _ = shots_spec(config.dataset(name), config, digests, **asked)
    return key_of(spec), key_of(shot_images_spec(config.dataset(name), config, digests, "shots/mine/0.json").spec)


@pytest.fixture
def mine(params: Params, tmp_path: Path) -> Params:
    """The small project with a data set `mine` that has test and training images of its own."""
    draw_shapes(tmp_path / "train", 3, seed=1)
    own = {"folder": str(tmp_path / "shapes"), "train_folder": str(tmp_path / "train"), "template": "a photo of a {}"}
    return changed(params, own_datasets=params["own_datasets"] | {"mine": own})


def test_draw_is_the_train_split_and_what_is_asked_for(mine: Params, tmp_path: Path, digests: DigestCache):
    """The spec names the training images, not the test images; the location says where both are."""
    config = configured(mine)
    of_data = (config.dataset("mine"), config, digests)
    spec, location = shots_spec(*of_data, seed=7, n_shots=8, n_validation=2)
    [unit] = real_units(of_data[0], "train", config, digests)
    recipe = {key: value for key, value in unit.spec.items() if key not in ("start", "stop")}
    assert spec == {**recipe, "seed": 7, "n_shots": 8, "n_validation": 2}
    assert (spec["split"], spec["n_images"]) == ("train", 9)
    assert shot_images_spec(*of_data, shots="shots/a.json") == ({**recipe, "shots": "shots/a.json"}, location)
    assert (location["root"], location["test"]) == (str(tmp_path / "train"), {"root": str(tmp_path / "shapes")})


def test_what_determines_a_draw_is_in_its_key(mine: Params, tmp_path: Path, digests: DigestCache):
    """Seed, numbers and training images count; where the images lie and the test images do not."""
    before, of_images = draw_keys(mine, digests)
    asked = [draw_keys(mine, digests, **{name: 3})[0] for name in ("seed", "n_shots", "n_validation")]
    assert len({before, *asked}) == 4
    draw_shapes(tmp_path / "more", 1, seed=5)
    shutil.copy(tmp_path / "more" / "red" / "000.png", tmp_path / "shapes" / "red" / "new.png")
    assert draw_keys(mine, digests) == (before, of_images)
    (tmp_path / "train").rename(tmp_path / "moved")
    moved = changed(mine, own_datasets__mine__train_folder=str(tmp_path / "moved"))
    assert draw_keys(moved, digests) == (before, of_images)
    shutil.copy(tmp_path / "more" / "red" / "000.png", tmp_path / "moved" / "red" / "new.png")
    assert draw_keys(moved, digests)[0] != before
    assert draw_keys(moved, digests)[1] != of_images


def test_training_images_change_no_test_shard(params: Params, mine: Params, digests: DigestCache):
    """Shards of test images that are there stay in use when training images are added to a data set."""
    without = changed(mine, own_datasets__mine__train_folder=...)
    with_them, alone = (planned(configured(one), digests, "mine") for one in (mine, without))
    assert with_them == alone
    hub = {"class_names": ["a", "b"], "template": "{}", "huggingface": {"id": "x/y", "revision": "a" * 40}}
    more = {**hub, "huggingface": {**hub["huggingface"], "train_split": "train"}}
    one, other = (configured(changed(params, own_datasets=params["own_datasets"] | {"h": h})) for h in (hub, more))
    assert planned(one, digests, "h") == planned(other, digests, "h")
    [test], [train] = (planned(other, digests, "h", split) for split in ("test", "train"))
    assert test.spec["huggingface"] == {"id": "x/y", "revision": "a" * 40, "config": None, "split": "test"}
    assert train.spec == {**test.spec, "split": "train", "huggingface": {**test.spec["huggingface"], "split": "train"}}
    assert train.location["test"] == {"split": "test"}


def test_draws_of_the_largest_data_set_are_planned_at_once(digests: DigestCache):
    """ImageNet's training images need not be there, and are not counted, to plan the draws of many seeds."""
    config = read_config(REPOSITORY / "params.yaml")
    definition = config.dataset("imagenet")
    started = time.process_time()
    specs = [shots_spec(definition, config, digests, seed, 16, 4).spec for seed in range(20)]
    assert len({key_of(spec) for spec in specs}) == 20
    assert specs[0]["n_images"] == 1_281_167
    assert time.process_time() - started < 3


NO_TRAIN: dict[str, tuple[dict[str, Any] | None, str]] = {
    "shapes": (None, r"name a folder of them in own_datasets\.shapes\.train_folder"),
    "imagenet_r": (None, "its download is a test split alone"),
    "files": ({"parquet": "x.parquet", "class_names": ["a", "b"]}, r"in own_datasets\.files\.train_parquet"),
    "hub": (
        {"huggingface": {"id": "x/y", "revision": "a" * 40}, "class_names": ["a", "b"]},
        r"in own_datasets\.hub\.huggingface\.train_split",
    ),
}


@pytest.mark.parametrize("name", NO_TRAIN)
def test_data_set_without_training_images(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: DigestCache, name: str
):
    """Both specs are refused with the key, the data set, and how to give training images."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": ["a", "b"]}), "x.parquet")
    own, remedy = NO_TRAIN[name]
    more = {} if own is None else {name: {"template": "a {}", **own}}
    config = configured(changed(params, own_datasets=params["own_datasets"] | more))
    definition = config.dataset(name)
    for plan in (
        lambda: shots_spec(definition, config, digests, 0, 1, 1),
        lambda: shot_images_spec(definition, config, digests, "shots/x.json"),
    ):
        with pytest.raises(UserError, match=rf"few_shot\.datasets: data set {name} has no training images; .*{remedy}"):
            plan()


def test_train_folder_without_a_class(mine: Params, tmp_path: Path, digests: DigestCache):
    """The folder of training images has the same sub-folders as that of the test images; others are an error."""
    (tmp_path / "train" / "blue").rename(tmp_path / "train" / "navy")
    with pytest.raises(UserError, match=r"sub-folders of .*train that belong to no class: 'navy'"):
        draw_keys(mine, digests)
    with pytest.raises(UserError, match=r"mine: no images in .*train/blue; put some there"):
        draw_keys(changed(mine, own_datasets__mine__subset=True), digests)


def test_wrong_count_of_training_images(mine: Params, digests: DigestCache):
    """n_images.train is checked as n_images.test is."""
    with pytest.raises(UserError, match=r"mine: 9 train images are there, n_images\.train says 7"):
        draw_keys(changed(mine, own_datasets__mine__n_images={"train": 7}), digests)
