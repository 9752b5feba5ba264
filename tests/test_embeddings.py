"""Features of shards: the same whatever batches, threads and memory; written as they come; read back in order."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from small_project import SHAPES, changed, own_dataset, planned, small_params

from pipeline_lib import stages
from pipeline_lib.embeddings import COPIED, make_embeddings, read_embeddings, read_selected, write_embeddings
from pipeline_lib.errors import UserError
from pipeline_lib.records import embeddings_schema
from pipeline_lib.sets import member_paths
from pipeline_lib.shards import encode_image, image_row, write_shard
from pipeline_lib.store import Artifact, Store


def columns(names: list[str], valid: list[bool] | None = None, first: int = 0) -> pa.Table:
    n = len(names)
    return pa.table(
        {
            "image_id": [f"i{number}" for number in range(first, first + n)],
            "class_name": names,
            "prompt": [None] * n,
            "seed": pa.array(range(n), pa.int64()),
            "source_id": pa.array([None] * n, pa.int64()),
            "valid": valid or [True] * n,
        }
    )


class FakeEncoder:
    """Features are an image's mean colour and 1; notes what it is asked, and can hold only so many images."""

    device, dtype = "cpu", "float32"

    def __init__(self, batch_size: int, room: int = 1000):
        self.batch_size, self._room = batch_size, room
        self.sizes: list[int] = []
        self.n_prepared = 0
        self.threads: set[int] = set()
        self._lock = threading.Lock()

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        with self._lock:
            self.n_prepared += 1
            self.threads.add(threading.get_ident())
        return np.array(image, np.float32).mean(axis=(0, 1)) / 255

    def encode(self, prepared: Any) -> NDArray[np.float32]:
        self.sizes.append(len(prepared))
        if len(prepared) > self._room:
            raise MemoryError
        return np.array([[*colour, 1] for colour in prepared], np.float32)


def shards(store: Store, *sizes: int) -> list[Artifact]:
    """Units to embed, of shards with so many images, each image of a colour of its own."""
    units, number = [], 0
    for index, size in enumerate(sizes):
        shard = Artifact("images/x", {"stage": "images", "shard": index}, ".parquet")
        rows = []
        for _ in range(size):
            pixels = np.full((4, 4, 3), (number % 256, number // 256, 7), np.uint8)
            content = encode_image(pixels, "png")
            rows.append(image_row(f"i{number:04d}", content, "png", 4, 4, class_name="a", seed=number))
            number += 1
        with store.making(shard) as path:
            write_shard(rows, path, shard.spec)
        spec = {"stage": "embeddings", "images": shard.path}
        units.append(Artifact("embeddings/x", spec, ".parquet", inputs=(shard.path,)))
    return units


def embedded(store: Store, units: list[Artifact]) -> tuple[list[str], NDArray[Any]]:
    found = list(read_embeddings(store, [unit.path for unit in units]))
    ids = [name for shard in found for name in shard.table["image_id"].to_pylist()]
    return ids, np.concatenate([shard.features for shard in found])


def expected(n: int) -> NDArray[Any]:
    return np.array([[i % 256 / 255, i // 256 / 255, 7 / 255, 1] for i in range(n)], np.float32).astype(np.float16)


# --- making -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batches_run_across_shards_and_do_not_matter(tmp_path: Path, batch_size: int, workers: int):
    """Each shard gets its own images' features, in order; every batch but the last is full."""
    store, encoder, sizes = Store(tmp_path), FakeEncoder(batch_size), (40, 1, 250, 9)
    units = shards(store, *sizes)
    make_embeddings(units, store, encoder, workers)
    ids, features = embedded(store, units)
    assert ids == [f"i{number:04d}" for number in range(300)]
    np.testing.assert_array_equal(features, expected(300))
    assert [len(shard.features) for shard in read_embeddings(store, [unit.path for unit in units])] == list(sizes)
    full, rest = divmod(300, batch_size)
    assert encoder.sizes == [batch_size] * full + [rest] * (rest > 0)
    assert len(encoder.threads) <= max(workers, 1)
    assert (threading.get_ident() in encoder.threads) == (workers == 0)
    record = store.record(units[0])
    assert record is not None and record.details == {"device": "cpu", "dtype": "float32"}


def test_batches_are_halved_when_memory_runs_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The images of the failed batch are encoded in halves, later batches are no larger, and it is said."""
    store, encoder = Store(tmp_path), FakeEncoder(64, room=20)
    units = shards(store, 100, 50)
    make_embeddings(units, store, encoder, 1)
    np.testing.assert_array_equal(embedded(store, units)[1], expected(150))
    assert encoder.sizes == [64, 32, 16, 16, 16, 16, 16, 16, 16, 16, 16, 6]
    assert encoder.batch_size == 16
    assert [record.message for record in caplog.records if "halved" in record.message] == [
        "out of memory: the batch is halved to 32 images",
        "out of memory: the batch is halved to 16 images",
    ]


def test_an_image_that_does_not_fit_alone_stops_the_job(tmp_path: Path):
    """Halving ends at one."""
    store = Store(tmp_path)
    with pytest.raises(MemoryError):
        make_embeddings(shards(store, 5), store, FakeEncoder(4, room=0), 1)


def test_a_shard_is_written_when_its_last_image_is_done(tmp_path: Path):
    """What was done before an interruption is kept."""
    store = Store(tmp_path)
    units = shards(store, 10, 10, 10)

    class Interrupted(FakeEncoder):
        def encode(self, prepared: Any) -> NDArray[np.float32]:
            if len(self.sizes) == 5:
                raise KeyboardInterrupt
            return super().encode(prepared)

    with pytest.raises(KeyboardInterrupt):
        make_embeddings(units, store, Interrupted(5), 2)
    assert [store.is_intact(unit) for unit in units] == [True, True, False]
    np.testing.assert_array_equal(embedded(store, units[:2])[1], expected(20))


def test_images_are_decoded_while_the_encoder_works_but_not_all_of_them(tmp_path: Path):
    """The next batch is prepared meanwhile; the memory holds a few batches, however many images there are."""
    store = Store(tmp_path)
    units = shards(store, 600, 600)
    ahead = []

    class Slow(FakeEncoder):
        def encode(self, prepared: Any) -> NDArray[np.float32]:
            features = super().encode(prepared)
            deadline = time.monotonic() + 10
            # A whole batch more than was asked for until now, as long as there are so many.
            wanted = min(sum(self.sizes) + self.batch_size, 1200)
            while self.n_prepared < wanted and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.005)
            ahead.append(self.n_prepared - sum(self.sizes))
            return features

    make_embeddings(units, store, Slow(100), 2)
    assert min(ahead[:-2]) >= 100
    assert max(ahead) <= 100 + 8 * 16


def test_an_undecodable_image_stops_the_job(tmp_path: Path):
    """An error in a thread is not lost."""
    store = Store(tmp_path)
    (unit,) = shards(store, 3)
    shard = Artifact("images/x", {"stage": "images", "shard": "damaged"}, ".parquet")
    with store.making(shard) as path:
        write_shard([image_row("i", b"no image", "png", 4, 4, class_name="a")], path, shard.spec)
    damaged = Artifact("embeddings/x", {"images": shard.path}, ".parquet", inputs=(shard.path,))
    for workers in (0, 2):
        with pytest.raises(ValueError, match="not a readable image"):
            make_embeddings([unit, damaged], store, FakeEncoder(2), workers)


def test_a_failed_write_stops_the_job(tmp_path: Path):
    """Also of the last unit, whose writing overlaps nothing."""
    store = Store(tmp_path)
    units = shards(store, 5)
    store.remove(units[0].spec["images"] + ".record.json")
    with pytest.raises(UserError, match="has no readable record"):
        make_embeddings(units, store, FakeEncoder(5), 1)


# --- the files --------------------------------------------------------------------------------------------------------


def write_parts(folder: Path) -> tuple[list[str], NDArray[np.float16]]:
    """Three files of different classes, with the images i0 to i5; their names and all features."""
    random = np.random.default_rng(0)
    features, first = [], 0
    parts = {"a.parquet": ["x", "y", "x"], "b.parquet": ["z"], "c.parquet": ["y", "y"]}
    for name, names in parts.items():
        features.append(random.normal(size=(len(names), 5)).astype(np.float32))
        write_embeddings(columns(names, first=first), features[-1], folder / name)
        first += len(names)
    return list(parts), np.concatenate(features).astype(np.float16)


def test_files_read_back_in_order(tmp_path: Path):
    """Several files come back one by one, in order; features are float16."""
    paths, features = write_parts(tmp_path)
    found = list(read_embeddings(Store(tmp_path), paths))
    assert all(shard.features.dtype == np.float16 for shard in found)
    np.testing.assert_array_equal(np.concatenate([shard.features for shard in found]), features)
    classes = [shard.class_index(["z", "y", "x"]).tolist() for shard in found]
    assert classes == [[2, 1, 2], [0], [1, 1]]
    assert all(shard.table.column_names == list(COPIED) for shard in found)


def test_kept_images_are_selected_across_files(tmp_path: Path):
    """The rows of the manifest's kept images, in order; files without any are no exception."""
    paths, features = write_parts(tmp_path)
    ids = [f"i{number}" for number in range(6)]
    for kept in ([1, 0, 1, 0, 0, 1], [0] * 6, [1] * 6, [0, 0, 0, 1, 0, 0]):
        mask = np.array(kept, bool)
        selected = read_selected(Store(tmp_path), paths, pa.table({"image_id": ids, "kept": mask}))
        np.testing.assert_array_equal(selected, features[mask])
        assert selected.dtype == np.float16


@pytest.mark.parametrize(
    "ids", [["i0", "i1", "i2", "i3", "i5", "i4"], ["i0", "i1"], ["i0", "i1", "i2"], [f"i{n}" for n in range(7)], []]
)
def test_a_manifest_of_other_images_is_an_error(tmp_path: Path, ids: list[str]):
    """Another order, fewer or more: features would go with the wrong labels."""
    paths, _ = write_parts(tmp_path)
    manifest = pa.table({"image_id": pa.array(ids, pa.string()), "kept": pa.array([True] * len(ids), pa.bool_())})
    with pytest.raises(ValueError, match="different image sets"):
        read_selected(Store(tmp_path), paths, manifest)


def test_classes_that_are_not_among_the_names_are_an_error(tmp_path: Path):
    """An image of an unknown class is not silently given another label."""
    write_embeddings(columns(["x", "y"]), np.ones((2, 3), np.float32), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="'y'"):
        next(read_embeddings(Store(tmp_path), ["a.parquet"])).class_index(["x", "z"])


def test_non_finite_features_of_valid_images_are_an_error(tmp_path: Path):
    """An encoder that overflows stops the run; an invalid image, never trained on, does not."""
    features = np.ones((2, 3), np.float32)
    features[1, 1] = np.nan
    with pytest.raises(UserError, match=r"embeddings\.dtype: 1 of 2 features.*overflows in float16; write float32"):
        write_embeddings(columns(["x", "y"]), features, tmp_path / "a.parquet", "float16")
    write_embeddings(columns(["x", "y"], [True, False]), features, tmp_path / "a.parquet")
    assert np.isfinite(next(read_embeddings(Store(tmp_path), ["a.parquet"])).features).all()


def test_schema():
    """A fixed-size list of float16 beside the copied columns."""
    assert embeddings_schema(4).field("embedding").type == pa.list_(pa.float16(), 4)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_real_images_are_embedded_once(
    params: dict[str, Any], tiny_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """The features of a data set are those of its images, in their order; a second run encodes nothing."""
    pytest.importorskip("open_clip")
    from pipeline_lib.encoders import Encoder

    folder = Path(params["own_datasets"]["shapes"]["folder"])
    plan = planned(small_params(tiny_models, folder, params["store"]))
    test_images = plan.real_images("shapes", "test")
    stages.real_images(test_images, plan.store)
    features = plan.real_embeddings("shapes", "test", "clip")
    stages.embeddings(features, plan.store)
    found = list(read_embeddings(plan.store, member_paths(plan.store, [features.path])))
    encoder = Encoder(tiny_models["encoders"][0]["model"], None, 3, device="cpu")
    files = [path for name in SHAPES.values() for path in sorted((folder / name).iterdir())]
    expected = encoder.encode([encoder.prepare(Image.open(path).convert("RGB")) for path in files])
    np.testing.assert_allclose(np.concatenate([shard.features for shard in found]), expected, atol=1e-3)
    labels = np.concatenate([shard.class_index(list(SHAPES)) for shard in found])
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 2, 2])
    monkeypatch.setattr("pipeline_lib.encoders.Encoder.__init__", lambda *_: pytest.fail("the encoder was loaded"))
    stages.embeddings(features, plan.store)


def test_heads_are_open_clips_zero_shot_classifiers(params: dict[str, Any], tiny_models: dict[str, Any]):
    """Of every data set, with several templates, through plan and store: each class gets its own prompts."""
    open_clip = pytest.importorskip("open_clip")
    import torch

    from pipeline_lib.classifiers.head import load_head

    names = {"red cat": "red", "blue dog": "blue", "fish": "green"}
    templates = {"shapes": ["a photo of a {}", "itap of the {}, a bird"], "others": ["a {}", "{}", "a red photo of {}"]}
    own = own_dataset(Path(params["own_datasets"]["shapes"]["folder"]), names)
    del own["template"]
    own |= {"prompt_template": "a photo of a {}", "sentence_template": "a photo of a {}"}
    small = small_params(tiny_models, Path(own["folder"]), params["store"])
    small["own_datasets"] = {name: {**own, "head_templates": each} for name, each in templates.items()}
    small["datasets"] = list(templates)
    plan = planned(changed(small, tables__table2_datasets=list(templates)))
    stages.heads(plan.heads("clip"), plan.store)

    model_name = tiny_models["encoders"][0]["model"]
    model, tokenizer = open_clip.create_model(model_name).eval(), open_clip.get_tokenizer(model_name)
    scale = model.logit_scale.exp().item()
    for name, each in templates.items():
        head = load_head(plan.store.path(plan.head(name, "clip").path), list(names))
        with torch.no_grad():
            weights = open_clip.build_zero_shot_classifier(model, tokenizer, list(names), each)
        np.testing.assert_allclose(head.weight, scale * weights.numpy().T, atol=1e-6 * scale)
        assert not head.bias.any()


def test_a_large_set_loads_its_encoder_once(
    params: dict[str, Any], tiny_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """A set is made in rounds of so many units; loading costs more than a round of small ones."""
    pytest.importorskip("open_clip")
    from pipeline_lib import encoders, sets

    folder = Path(params["own_datasets"]["shapes"]["folder"])
    plan = planned(small_params(tiny_models, folder, params["store"]))
    units = shards(plan.store, 2, 2, 2)
    location = plan.real_embeddings("shapes", "test", "clip").members[0].location
    members = tuple(
        Artifact(unit.folder, {**unit.spec, "dtype": "auto"}, ".parquet", inputs=unit.inputs, location=location)
        for unit in units
    )
    spec = {"set": "embeddings", "members": [unit.path for unit in members]}
    loaded, original = [], encoders.load_clip
    monkeypatch.setattr(encoders, "load_clip", lambda *model: loaded.append(model) or original(*model))
    monkeypatch.setattr(sets, "MAX_LOCKS", 1)
    stages.embeddings(Artifact("embeddings/sets/x", spec, ".json", members=members), plan.store)
    assert all(plan.store.is_intact(unit) for unit in members)
    assert len(loaded) == 1
