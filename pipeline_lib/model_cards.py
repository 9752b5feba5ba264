"""Model cards: the README.md of a model folder, which names the SHA-256 of the files beside it."""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline_lib import shipped
from pipeline_lib.digests import model_files
from pipeline_lib.errors import UserError
from pipeline_lib.files import file_sha256
from pipeline_lib.sections import LOCAL, Models

CARD = "README.md"
_HEADER = "| file | SHA-256 |\n|---|---|\n"
_ROW = re.compile(r"\| (?P<name>\S+) \| `(?P<sha256>[0-9a-f]{64})` \|\n")


def files_table(folder: Path) -> str:
    """The table of a card: every file below `folder` but the card, with its SHA-256."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / CARD)
    return _HEADER + "".join(f"| {path.relative_to(folder).as_posix()} | `{file_sha256(path)}` |\n" for path in files)


def model_faults(folder: Path) -> Iterator[str]:
    """`file_faults` of a model folder, and what is wrong with its card, where that comes with the package."""
    if folder.resolve().is_relative_to(shipped.PACKAGE):
        yield from filter(None, [shipped.fault_of(f"{folder.resolve().relative_to(shipped.PACKAGE)}/{CARD}")])
    yield from file_faults(folder)


def file_faults(folder: Path) -> Iterator[str]:
    """A line for each file of a model folder that is missing, damaged or unknown, by the folder's card.

    Of a folder without a card, or whose card has no table of files, nothing is known.
    """
    card = folder / CARD
    if not card.is_file():
        return
    _, _, rows = card.read_text(encoding="utf-8", errors="replace").partition(_HEADER)
    named = {row["name"]: row["sha256"] for row in _ROW.finditer(rows)}
    for name, sha256 in named.items():
        file = folder / name
        if not file.is_file():
            yield f"missing: {file}, which {card} names"
        elif file_sha256(file) != sha256:
            yield f"damaged: {file} does not have the SHA-256 that {card} names"
    if named:
        for file in model_files(folder):  # one more would be part of the model
            if file.relative_to(folder).as_posix() not in named:
                yield f"unknown: {file}, which {card} does not name"


def shipped_faults() -> list[str]:
    """What is wrong with the models and the other data that come with the package."""
    cards = sorted(shipped.PACKAGE.glob(f"miniature/weights/*/{CARD}"))
    return [*shipped.faults(), *(fault for card in cards for fault in file_faults(card.parent))]


def require_intact(models: Models) -> None:
    """Raises `UserError` where the files of a local model are not those of its card.

    A damaged model would be another one: under new keys, all would be made again from it. And where a loader does
    without the file that is lost (a tokenizer), the numbers would be wrong in silence.
    """
    folders = {
        "models.generator": models.generator,
        "models.sentences": models.sentences,
        **{
            f"models.encoders.{encoder.name}": encoder.model.removeprefix(LOCAL)
            for encoder in models.encoders
            if encoder.model.startswith(LOCAL)
        },
    }
    faults = [f"{key}: {fault}" for key, name in folders.items() for fault in model_faults(Path(name))]
    if faults:
        raise UserError(
            "\n".join(faults)
            + "\nFetch the files again (git checkout -- FILE for those that come with the repository) and remove "
            f"unknown ones; if they were changed on purpose, take the table of files out of the {CARD}"
        )
