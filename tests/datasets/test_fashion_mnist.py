"""Fashion-MNIST: verified files, disjoint and complete parts, messages that say what to do."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.datasets.loaders import renderings
from pipeline_lib.miniature import targets


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the same layout with 600 training and 20 test images, a hundredth of every part."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(fashion_mnist, "PARTS", {"corpus": (0, 50), "validation": (50, 55), "pool": (55, 60)})
    labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), 60))
    folder = tmp_path / "data"
    folder.mkdir()
    for stem, count, truth in (("train", 600, labels), ("t10k", 20, labels[:20])):
        images = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", truth)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(fashion_mnist, "DIGESTS", digests)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "not-installed")
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def no_network(work: Path) -> Path:
    raise OSError("no network")


def test_parts_are_disjoint_complete_and_balanced(folder: Path) -> None:
    parts = {part: fashion_mnist.load_split(folder, part) for part in fashion_mnist.PARTS}
    indices = np.concatenate([part[2] for part in parts.values()])
    assert sorted(indices.tolist()) == list(range(600))
    for name, (images, labels, _) in parts.items():
        first, last = fashion_mnist.PARTS[name]
        assert images.shape == (10 * (last - first), 28, 28)
        assert np.bincount(labels).tolist() == [last - first] * 10


def test_real_parts_cover_the_training_split() -> None:
    bounds = sorted(fashion_mnist.PARTS.values())
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 6000
    assert all(left[1] == right[0] for left, right in pairwise(bounds))


def test_images_stay_with_their_labels(folder: Path) -> None:
    everything = fashion_mnist.read_idx(folder / "train-images-idx3-ubyte.gz")
    truth = fashion_mnist.read_idx(folder / "train-labels-idx1-ubyte.gz")
    images, labels, indices = fashion_mnist.load_split(folder, "pool")
    assert np.array_equal(images, everything[indices])
    assert np.array_equal(labels, truth[indices])
    assert labels.dtype == indices.dtype == np.int64


def test_test_split_is_whole(folder: Path) -> None:
    images, labels, indices = fashion_mnist.load_split(folder, "test")
    assert len(images) == len(labels) == 20
    assert indices.tolist() == list(range(20))


def test_renderings_train_on_the_pool(folder: Path) -> None:
    """The split `train` of the miniature's data sets is what no shipped model learned from: the pool, image by image;
    no image of it is in validation, corpus or test."""
    for kind in targets.TARGETS:
        names = [fashion_mnist.CLASS_NAMES[label] for label in targets.TARGETS[kind].classes]
        train, validation, test = (
            renderings.rendering(kind, split, names, str(folder), str(folder))
            for split in ("train", "validation", "test")
        )
        images, labels, indices = fashion_mnist.load_split(folder, "pool")
        chosen = np.isin(labels, targets.TARGETS[kind].classes)
        assert train.source_ids == indices[chosen].tolist()
        assert train.labels == [fashion_mnist.CLASS_NAMES[label] for label in labels[chosen]]
        expected = targets.render(kind, images[chosen], indices[chosen])
        assert all(np.array_equal(train.read(index), expected[index]) for index in range(len(train)))
        corpus = set(fashion_mnist.load_split(folder, "corpus")[2].tolist())
        assert corpus.isdisjoint(train.source_ids) and corpus.isdisjoint(validation.source_ids)
        assert set(train.source_ids).isdisjoint(validation.source_ids)
        # Test images have numbers of their own; the images themselves are others.
        tested = {np.asarray(test.read(index)).tobytes() for index in range(len(test))}
        assert tested.isdisjoint(np.asarray(train.read(index)).tobytes() for index in range(len(train)))


def test_unknown_split_names_the_choices(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'train'.*corpus, validation, pool, test"):
        fashion_mnist.load_split(folder, "train")


def test_damaged_file_is_named_with_both_digests(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    expected = fashion_mnist.DIGESTS[path.name]
    path.write_bytes(b"damaged")
    found = hashlib.sha256(b"damaged").hexdigest()
    with pytest.raises(fashion_mnist.FashionMnistError) as error:
        fashion_mnist.find(folder)
    assert str(path) in str(error.value)
    assert expected in str(error.value)
    assert found in str(error.value)


def test_missing_file_says_what_to_do(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(fashion_mnist.FashionMnistError, match=r"t10k-images.*missing.*Name another folder"):
        fashion_mnist.find(folder)


def test_nothing_is_fetched_without_a_cache(folder: Path) -> None:
    with pytest.raises(fashion_mnist.FashionMnistError, match="name a cache folder"):
        fashion_mnist.find()


def test_installed_package_comes_before_fetching(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", folder)
    assert fashion_mnist.find(cache=folder.parent / "cache") == folder
    assert not (folder.parent / "cache").exists()


def test_fetching_falls_back_and_keeps_what_it_got(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Path) -> Path:
        raise fashion_mnist.FashionMnistError("no such package")

    monkeypatch.setattr(fashion_mnist, "_fetch_debian", broken)
    monkeypatch.setattr(fashion_mnist, "_fetch_torchvision", lambda work: folder)
    cache = folder.parent / "cache"
    kept = fashion_mnist.find(cache=cache)
    assert sorted(path.name for path in kept.iterdir()) == sorted(fashion_mnist.DIGESTS)
    assert [path.name for path in cache.iterdir()] == ["fashion-mnist"]  # no temporary folder is left
    monkeypatch.setattr(fashion_mnist, "_fetch_torchvision", broken)
    assert fashion_mnist.find(cache=cache) == kept


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", fashion_mnist.DIGESTS)
def test_damage_is_named_and_mended_where_files_can_be_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    """What was fetched before is fetched again; if it cannot be, it stays, and the damage is named."""
    cache = folder.parent / "cache"
    kept = shutil.copytree(folder, cache / "fashion-mnist")
    DAMAGES[damage](kept / name)
    there = {path.name for path in kept.iterdir()}
    monkeypatch.setattr(fashion_mnist, "_fetch_debian", no_network)
    monkeypatch.setattr(fashion_mnist, "_fetch_torchvision", no_network)
    with pytest.raises(fashion_mnist.FashionMnistError, match=rf"could not be fetched \({kept / name} .*no network"):
        fashion_mnist.find(cache=cache)
    assert {path.name for path in kept.iterdir()} == there
    monkeypatch.setattr(fashion_mnist, "_fetch_torchvision", lambda work: folder)
    assert fashion_mnist.find(cache=cache) == kept
    assert str(kept / name) in caplog.text
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert [path.name for path in cache.iterdir()] == ["fashion-mnist"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_of_the_user_or_the_system_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """They are not ours to replace. Where there are none, they are fetched when they are needed."""
    fashion_mnist.require_whole(None)
    fashion_mnist.require_whole(folder)
    DAMAGES[damage](folder / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(fashion_mnist.FashionMnistError, match="t10k-labels"):
        fashion_mnist.require_whole(folder)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", folder)
    with pytest.raises(fashion_mnist.FashionMnistError, match="t10k-labels"):
        fashion_mnist.require_whole(None)


def test_failed_fetching_lists_every_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "_fetch_debian", no_network)
    monkeypatch.setattr(fashion_mnist, "_fetch_torchvision", no_network)
    with pytest.raises(fashion_mnist.FashionMnistError, match=r"could not be fetched .*no network.*no network"):
        fashion_mnist.find(cache=folder.parent / "cache")
    assert list((folder.parent / "cache").iterdir()) == []


def test_reader_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x0d\x01" + b"\x00" * 8))
    with pytest.raises(fashion_mnist.FashionMnistError, match="no idx file"):
        fashion_mnist.read_idx(path)


def test_module_does_not_import_torch() -> None:
    import subprocess

    code = (
        "import sys, pipeline_lib.datasets.fashion_mnist, pipeline_lib.miniature.targets, "
        "pipeline_lib.miniature.captions; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
