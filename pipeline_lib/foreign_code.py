"""Python code that a model folder brings along, or asks to be fetched: the folder is refused, and none of it runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline_lib.errors import UserError

# What transformers and diffusers take for the name of a class in a Python file, and for the permission to import it.
_KEYS = frozenset({"auto_map", "trust_remote_code"})


def refuse_code(folder: Path, key: str) -> None:
    """Raises `UserError` where a configuration in a model folder names code. key: the configuration's, to name."""
    for path in sorted(folder.glob("*config*.json")):
        try:
            found = next(_named(json.loads(path.read_bytes())), None)
        except (OSError, ValueError, RecursionError):  # whoever loads it says so
            continue
        if found:
            raise UserError(
                f"{key}: {str(folder)!r} is refused: {found} in its {path.name} names Python code, which was not run; "
                f"name a model that the installed libraries have the code of"
            )


def _named(value: Any) -> Iterator[str]:
    """The keys in a configuration, at any depth, that name code."""
    if isinstance(value, dict):
        yield from (name for name in _KEYS & value.keys() if value[name])
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _named(inner)
