"""Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747): find the four idx files, verify them, read and divide them.

The files are looked for in this order: a folder the user names, Debian's installed package, Debian's package
fetched and unpacked without root, torchvision's download. Whatever the way, only files with the known SHA-256
digests are read. Reading needs numpy alone.

The training split is divided once, by index: within each class, in file order, the first 5,000 images are the
*corpus* (the small models learn from them and from nothing else), the next 500 *validation*, the last 500 the
*pool* of real few-shot images. The *test* split stays whole.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

# File name -> SHA-256 of the compressed file, the same in Debian's package and at the authors' address.
DIGESTS = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# Part of the training split -> (first, last + 1) position among the images of one class, in file order.
PARTS = {"corpus": (0, 5000), "validation": (5000, 5500), "pool": (5500, 6000)}
SPLITS = (*PARTS, "test")


class FashionMnistError(RuntimeError):
    """The files of Fashion-MNIST are missing or not the expected ones; the message says what to do."""


def verify(folder: Path) -> Path:
    """Return `folder` if it holds the four files with the expected digests; raise `FashionMnistError` otherwise."""
    for name, expected in DIGESTS.items():
        path = folder / name
        if not path.is_file():
            raise FashionMnistError(
                f"{path} is missing; expected the four files {', '.join(DIGESTS)} in {folder}. Name another folder, "
                f"install the Debian package {DEBIAN_PACKAGE}, or leave the folder unset to have the files fetched."
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise FashionMnistError(
                f"{path} has SHA-256 {found}, expected {expected}: the file is damaged or another data set's. "
                f"Replace it by the authors' file (Debian's package {DEBIAN_PACKAGE} has it), or leave the "
                f"folder unset to have it fetched."
            )
    return folder


def require_whole(folder: Path | None) -> None:
    """Raises `FashionMnistError` where the files that `find` would take are damaged and it could not fetch them."""
    if folder is not None or DEBIAN_FOLDER.is_dir():
        verify(folder or DEBIAN_FOLDER)


def find(folder: Path | None = None, cache: Path | None = None) -> Path:
    """Find (or fetch) a folder with the four verified files.

    Args:
        folder: where the user says the files are; then no other place is tried.
        cache: folder below which fetched files are kept, as `<cache>/fashion-mnist`; None: nothing is fetched.
    """
    if folder is not None:
        return verify(Path(folder))
    if DEBIAN_FOLDER.is_dir():
        return verify(DEBIAN_FOLDER)
    if cache is None:
        raise FashionMnistError(
            f"Fashion-MNIST is not in {DEBIAN_FOLDER}; name its folder, name a cache folder to have it fetched, "
            f"or install the Debian package {DEBIAN_PACKAGE}."
        )
    kept = Path(cache) / "fashion-mnist"
    failures = []
    if kept.is_dir():
        try:
            return verify(kept)
        except FashionMnistError as error:
            log.warning("%s Now it is fetched again.", error)
            failures.append(str(error))
    for fetch in (_fetch_debian, _fetch_torchvision):
        try:
            return _fetch_into(kept, fetch)
        except (FashionMnistError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(f"{fetch.__name__.removeprefix('_fetch_')}: {error}")
    raise FashionMnistError(
        "Fashion-MNIST could not be fetched (" + "; ".join(failures) + f"). Put {', '.join(DIGESTS)} into a folder "
        "and name it."
    )


def _fetch_into(target: Path, fetch) -> Path:  # type: ignore[no-untyped-def]
    """Fetch into a temporary folder beside `target`, verify, then rename: a reader never sees half a download."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fashion-mnist.", dir=target.parent) as name:
        work = Path(name)
        source = fetch(work)
        ready = work / "ready"
        ready.mkdir()
        for file in DIGESTS:
            if not (source / file).is_file():
                raise FashionMnistError(f"{file} is not in what was fetched")
            shutil.copyfile(source / file, ready / file)
        verify(ready)
        try:
            ready.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            for file in DIGESTS:  # damaged ones are there, or another process was faster: these take their places
                (ready / file).replace(target / file)
    return verify(target)


def _fetch_debian(work: Path) -> Path:
    """Download and unpack Debian's package; needs neither root nor an installed package."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FashionMnistError(f"{tool} is not installed")
    # Package lists of our own: the system's may be missing or old, and only root may renew those.
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache").mkdir()
    options = [f"-oDir::State::Lists={work / 'lists'}", f"-oDir::Cache={work / 'cache'}", "-oDebug::NoLocking=1"]
    for action in (["update"], ["download", DEBIAN_PACKAGE]):
        command = ["apt-get", *options, *action]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            raise FashionMnistError(f"apt-get {' '.join(action)} failed: {done.stderr.strip()[-300:]}")
    packages = sorted(work.glob("*.deb"))
    if not packages:
        raise FashionMnistError(f"apt-get download {DEBIAN_PACKAGE} left no package")
    unpacked = work / "unpacked"
    subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(unpacked)], check=True, capture_output=True)
    return unpacked / DEBIAN_FOLDER.relative_to("/")


def _fetch_torchvision(work: Path) -> Path:
    """Download with torchvision from the authors' address."""
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(work), download=True)
    return work / "FashionMNIST" / "raw"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one gzipped idx file of unsigned bytes; any number of dimensions."""
    with gzip.open(path, "rb") as stream:
        data = stream.read()
    zero, kind, dimensions = struct.unpack(">HBB", data[:4])
    if zero != 0 or kind != 8:
        raise FashionMnistError(f"{path} is no idx file of unsigned bytes (magic number {data[:4].hex()})")
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != int(np.prod(shape)):
        raise FashionMnistError(f"{path} holds {values.size} values, its header says {shape}")
    return values.reshape(shape)


def part_indices(labels: NDArray[np.int64], part: str) -> NDArray[np.int64]:
    """Indices into the training split that belong to `part`, ascending; `labels` are those of the whole split."""
    first, last = PARTS[part]
    chosen = [np.flatnonzero(labels == label)[first:last] for label in range(len(CLASS_NAMES))]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def load_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Read one split from a verified folder (see `find`).

    Args:
        split: "corpus", "validation", "pool" (disjoint parts of the training split) or "test".

    Returns:
        images uint8 [N, 28, 28] (garment white on black), labels int64 [N] (positions in `CLASS_NAMES`), indices
        int64 [N] into the original training or test split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    stem = "t10k" if split == "test" else "train"
    images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz").astype(np.int64)
    if len(images) != len(labels):
        raise FashionMnistError(f"{folder}: {len(images)} {stem} images but {len(labels)} labels")
    if split == "test":
        return images, labels, np.arange(len(labels), dtype=np.int64)
    indices = part_indices(labels, split)
    return images[indices], labels[indices], indices
