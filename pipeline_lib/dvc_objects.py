"""Objects of a DVC cache or folder remote: each is named by the MD5 of its content, which DVC takes on trust.

A copy that was cut off, or a push that was killed as it tried to link a file, leaves an object that is not what its
name says; DVC neither sends nor fetches it again, because it is there.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline_lib.errors import UserError

_NAME = re.compile(r"[0-9a-f]{30}(\.dir)?")


def damaged_objects(folder: Path) -> list[Path]:
    """The objects below `folder` whose content does not have the MD5 that is their name.

    Raises `UserError` where `folder` has no objects of DVC.
    """
    objects = folder / "files" / "md5"
    if not objects.is_dir():
        raise UserError(f"{folder} is no DVC cache or remote: it has no folder files/md5")
    return [path for path in _objects(objects) if _md5(path) != path.parent.name + path.name.removesuffix(".dir")]


def remove_objects(folder: Path, damaged: list[Path]) -> None:
    """Remove objects and the listings of folders that name one: DVC takes what a listing names for present."""
    names = {path.parent.name + path.name for path in damaged}
    listings = [path for path in _objects(folder / "files" / "md5") if path.suffix == ".dir" and path not in damaged]
    for path in listings:
        if names.intersection(entry["md5"] for entry in json.loads(path.read_bytes())):
            path.unlink()
    for path in damaged:
        path.unlink()


def _objects(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("[0-9a-f][0-9a-f]/*")) if _NAME.fullmatch(path.name))


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
