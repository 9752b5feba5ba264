"""One split of real images: labels and paths in a fixed order, contents read one at a time."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.errors import UserError

Raw = bytes | NDArray[np.uint8]  # an encoded file, or pixels [height, width, 3]


@dataclass(frozen=True)
class RealSplit:
    """Images of a split, not yet read.

    `labels` (what the raw data calls each image's class), `paths` (where each image comes from, for people) and
    `source_ids` (its number in the official split) go together; `read(i)` gives image i and may be called from several
    threads. `all_labels` are the labels that the raw data declares, whether or not an image of them is here.
    """

    labels: Sequence[str]
    paths: Sequence[str]
    read: Callable[[int], Raw]
    source_ids: Sequence[int]
    all_labels: frozenset[str]
    official_names: Mapping[str, str] = field(default_factory=dict)
    """What the raw data calls each label, where labels are codes; alternatives separated by a comma and a blank."""

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, labels: frozenset[str]) -> "RealSplit":
        """The images that have one of `labels`; they keep their numbers."""
        chosen = [position for position, label in enumerate(self.labels) if label in labels]
        return replace(
            self,
            labels=[self.labels[position] for position in chosen],
            paths=[self.paths[position] for position in chosen],
            read=lambda index: self.read(chosen[index]),
            source_ids=[self.source_ids[position] for position in chosen],
            all_labels=self.all_labels & labels,
        )


def of_files(
    root: Path,
    files: Sequence[Path],
    labels: Sequence[str],
    *,
    all_labels: frozenset[str] | None = None,
    official_names: Mapping[str, str] | None = None,
    may_be_missing: bool = False,
) -> RealSplit:
    """A split whose images are files below `root`.

    Raises `UserError` naming files that are not there, unless they `may_be_missing`: then they are left out.
    """
    there = [file.is_file() for file in files]
    missing = [file for file, is_there in zip(files, there, strict=True) if not is_there]
    if missing and not may_be_missing:
        raise UserError(
            f"half unpacked: {len(missing)} of {len(files)} images are missing, the first ones are "
            f"{', '.join(str(file.relative_to(root)) for file in missing[:5])} in {root}"
        )
    numbered = [number for number, is_there in enumerate(there) if is_there]
    present = [files[number] for number in numbered]
    return RealSplit(
        labels=[labels[number] for number in numbered],
        # File names are bytes; what is no UTF-8 in them is shown by its numbers.
        paths=[os.fsencode(file.relative_to(root)).decode(errors="backslashreplace") for file in present],
        read=lambda index: present[index].read_bytes(),
        source_ids=numbered,
        all_labels=frozenset(labels) if all_labels is None else all_labels,
        official_names=official_names or {},
    )


def class_name_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """The class name of each label that the images of a spec may have."""
    return dict(zip(spec.get("class_folders", spec["class_names"]), spec["class_names"], strict=True))


def image_id(spec: Mapping[str, Any], source_id: int) -> str:
    """What a real image is called in shards, features and predictions."""
    return f"{spec['dataset']}-{spec['split']}-{source_id:06d}"


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises `UserError` for a file that is not text."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged, it is not text ({error}); unpack the download again") from None


def read_table(path: Path, n_columns: int, separator: str | None = None) -> list[list[str]]:
    """Rows of a text file with at least `n_columns` columns; what follows belongs to the last of them.

    Raises `UserError` naming a line that has fewer.
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        row = line.split(separator, n_columns - 1)
        if len(row) < n_columns:
            raise UserError(f"{path} is damaged: entry {number}, {line!r}, has fewer than {n_columns} fields")
        rows.append(row)
    return rows
