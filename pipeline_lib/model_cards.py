"""Model cards: the README.md of a model folder, which names the SHA-256 of its weights files."""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.sections import Models
from pipeline_lib.store import file_sha256

SHIPPED = Path(__file__).parent / "miniature" / "weights"
_LOCAL = "local-dir:"
# A row of the card's table "Weights": | file | `SHA-256` |
_ROW = re.compile(r"^\| (?P<name>\S+) \| `(?P<sha256>[0-9a-f]{64})` \|$", re.MULTILINE)


def weights_faults(folder: Path) -> Iterator[str]:
    """A line for each weights file that is missing or is not the one in the folder's card; none without a card."""
    card = folder / "README.md"
    if not card.is_file():
        return
    for row in _ROW.finditer(card.read_text(encoding="utf-8", errors="replace")):
        file = folder / row["name"]
        if not file.is_file():
            yield f"missing: {file}, which {card} names"
        elif file_sha256(file) != row["sha256"]:
            yield f"damaged: {file} does not have the SHA-256 that {card} names"


def shipped_faults() -> list[str]:
    """`weights_faults` of the weights that come with the package."""
    return [fault for folder in sorted(SHIPPED.iterdir()) for fault in weights_faults(folder)]


def require_intact(models: Models) -> None:
    """Raises `UserError` where the weights of a local model are not those of its card.

    Damaged weights would be another model: under new keys, all would be made again from them.
    """
    folders = {
        "models.generator": models.generator,
        "models.sentences": models.sentences,
        **{
            f"models.encoders.{encoder.name}": encoder.model.removeprefix(_LOCAL)
            for encoder in models.encoders
            if encoder.model.startswith(_LOCAL)
        },
    }
    faults = [f"{key}: {fault}" for key, name in folders.items() for fault in weights_faults(Path(name))]
    if faults:
        raise UserError(
            "\n".join(faults)
            + "\nFetch the files again (git checkout -- FILE for those that come with the repository); if they were "
            "changed on purpose, take their rows out of the card"
        )
