"""What an official download holds, told without reading its images."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline_lib.datasets.layouts import LAYOUTS, find_parts
from pipeline_lib.datasets.own_data import IMAGE_SUFFIXES
from pipeline_lib.digests import DigestCache

# Of the files in a folder, those that say what images show. Others (archives, notes) are read by no loader.
_LIST_SUFFIXES = frozenset({".csv", ".json", ".mat", ".txt"})


def raw_fingerprint(loader: str, split: str, root: Path, digests: DigestCache) -> str | None:
    """SHA-256 of the parts of a download that one split is read from; None while a needed one is missing.

    Lists and binary records count by their content, images by their path within the part and their size in bytes:
    one that is exchanged for another of the very same size is not seen. Where the download lies, and when it was
    unpacked, do not count.
    """
    parts = find_parts(LAYOUTS[loader], split, root)
    if any(parts[part] is None for part in LAYOUTS[loader].parts[split]):
        return None
    digest = hashlib.sha256()
    for part, path in parts.items():
        if path is None:
            continue
        entries = _entries(path, digests) if path.is_dir() else iter([("", digests.file(path))])
        for name, content in entries:
            digest.update(f"{part}\0{name}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _entries(folder: Path, digests: DigestCache, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Relative paths of the visible images and lists below a folder, sorted per folder, and what each counts by."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = prefix + entry.name
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 -- a Path for each image is half the time
        if suffix in IMAGE_SUFFIXES:
            yield name, _size(entry)
        elif suffix in _LIST_SUFFIXES:
            yield name, digests.file(folder / entry.name)
        elif entry.is_dir():
            yield from _entries(folder / entry.name, digests, f"{name}/")


def _size(entry: os.DirEntry[str]) -> str:
    try:
        return str(entry.stat().st_size)
    except FileNotFoundError:  # a link to nowhere: the loader says so, or leaves it out
        return "missing"
