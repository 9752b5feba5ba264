"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), binary version: the Python version consists of pickles.

A record is the label (CIFAR-100: coarse, then fine), one byte each, and 3,072 bytes of pixels: 32x32 red, then green,
then blue. Records and their order are those of the Python version.
"""

from pathlib import Path

import numpy as np

from pipeline_lib.datasets.loaders.split import Raw, RealSplit, read_lines
from pipeline_lib.errors import UserError

Parts = dict[str, Path]
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


def cifar10(parts: Parts, split: str) -> RealSplit:
    files = ["test_batch.bin"] if split == "test" else [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _records([parts[file] for file in files], read_lines(parts["batches.meta.txt"]), label_bytes=1)


def cifar100(parts: Parts, split: str) -> RealSplit:
    return _records([parts[f"{split}.bin"]], read_lines(parts["fine_label_names.txt"]), label_bytes=2)


def _records(files: list[Path], names: list[str], label_bytes: int) -> RealSplit:
    size = label_bytes + _PIXELS
    for file in files:
        if file.stat().st_size % size:
            raise UserError(
                f"{file} is damaged: its {file.stat().st_size} bytes are not a whole number of records of {size} "
                f"bytes; unpack the download again"
            )
    records = [np.memmap(file, np.uint8, mode="r").reshape(-1, size) for file in files if file.stat().st_size]
    fine = [int(label) for part in records for label in part[:, label_bytes - 1]]
    if fine and max(fine) >= len(names):
        raise UserError(f"{files[0].parent}: label {max(fine)} has no name among the {len(names)} in the list of names")
    places = [(part, row) for part in range(len(records)) for row in range(len(records[part]))]

    def read(index: int) -> Raw:
        part, row = places[index]
        pixels = records[part][row, label_bytes:].reshape(3, _SIDE, _SIDE)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    present = [file for file in files if file.stat().st_size]
    return RealSplit(
        labels=[names[label] for label in fine],
        paths=[f"{present[part].name}/{row}" for part, row in places],
        read=read,
        source_ids=range(len(places)),
        all_labels=frozenset(names),
    )
