"""YAML files, read so that nothing in them is lost, multiplied or taken for something else without a word."""

import datetime
import math
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline_lib.errors import UserError, printable
from pipeline_lib.paths import is_file, kind_of

MAX_BYTES = 10_000_000  # the largest study has some ten thousand
MAX_VALUES = 1_000_000  # with aliases written out; the largest study has some ten thousand
# Snakemake reads its configuration with YTE, which runs the Python in a file that has this key.
_TEMPLATE_KEY = "__use_yte__"
# YAML 1.1 reads 010 as 8 and 1:30 as 90, YAML 1.2 as 10 and as text. Snakemake reads the one, DVC the other.
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_GROUPED = re.compile(r"_|[-+]?0b")  # 1_000 and 0b11 are numbers in YAML 1.1 and texts in YAML 1.2
_TIMESTAMP, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("timestamp", "int", "float"))

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 300
_shortened.maxlist = _shortened.maxdict = 20
_shortened.maxlevel = 3


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises `UserError` for a file that cannot be read, is not UTF-8, not YAML or no mapping; for a key that is there
    twice (YAML keeps the last one); for aliases that go round in a circle or multiply to more than `MAX_VALUES`
    values; for numbers and dates that YAML makes of what may be meant otherwise (010, 1:30, 2024-01-31); and for
    templates, which hold code.
    """
    _require_plain_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run in the project's folder, or name the file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not YAML: it is no UTF-8 text ({error}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; name a YAML file that can") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _check(root, path)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        remedy = "; indent with blanks, not with tabs" if r"'\t'" in str(error) else ""
        raise UserError(f"{path} is not YAML: {error}{remedy}") from None
    except RecursionError:
        raise UserError(f"{path}: brackets or indentation are nested too deeply; write it flat") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path} is not YAML: {error}; correct the value") from None
    if not isinstance(values, dict):
        found = "an empty file" if values is None else type(values).__name__
        raise UserError(f"{path}: expected a mapping of sections, found {found}")
    if _TEMPLATE_KEY in values:
        raise UserError(
            f"{path}: the key {_TEMPLATE_KEY} makes the file a template that runs Python; write the values themselves, "
            f"without that key"
        )
    return values


def unprintable(values: Any, *location: str | int) -> Iterator[str]:
    """A line for each key or text, anywhere in `values`, that holds control characters or half a character.

    New lines and tabs are allowed. location: the keys that lead to `values`.
    """
    if isinstance(values, str) and values != printable(values):
        key = printable(".".join(map(str, location)))
        yield f"{key}: {shortened(values)} holds a control character, or half a character; remove it"
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from unprintable(key, *location, "(key)")
            yield from unprintable(value, *location, key)
    elif isinstance(values, list):
        for position, value in enumerate(values):
            yield from unprintable(value, *location, position)


def shortened(value: Any) -> str:
    """A value as a message shows it: the beginning of what is long."""
    return _shortened.repr(value)


def misread(value: Any, expected: str) -> str:
    """What to write where YAML made `value` of something else, in brackets after a blank; empty where it did not.

    expected: pydantic's name of the fault, such as "string_type".
    """
    if expected == "string_type":
        if isinstance(value, bool):
            return " (YAML reads on, off, yes, no, true and false as booleans: put it in quotes)"
        if isinstance(value, int | float | datetime.date):
            return f" (YAML reads it as a {'date' if isinstance(value, datetime.date) else 'number'}: put it in quotes)"
    if isinstance(value, str) and (number := _number(value)) is not None:
        return f" (YAML reads {value} as text: write it as {number!r})"
    return ""


def _number(text: str) -> float | int | None:
    """The finite number that a text stands for."""
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _require_plain_file(path: Path) -> None:
    """Raises `UserError` for what would be read for ever, such as a pipe, and for a file that is no configuration."""
    if not is_file(str(path)):
        if path.is_dir() or not os.path.lexists(path):
            return  # reading it says so
        raise UserError(f"{path} cannot be read: it is {kind_of(path)}; name a YAML file that can")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes, at most {MAX_BYTES:,} are allowed; name a YAML file with settings")


def _check(root: Node, path: Path) -> None:
    """Raises `UserError` for what the loader would accept in silence."""
    sizes: dict[int, int] = {}  # by node, aliases written out
    open_nodes: set[int] = set()

    def size(node: Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise _fault(path, node, "this value holds itself, by an alias; write it out")
        open_nodes.add(id(node))
        total = 1
        if isinstance(node, ScalarNode):
            _check_scalar(node, path)
        elif isinstance(node, SequenceNode):
            total += sum(map(size, node.value))
        elif isinstance(node, MappingNode):
            _check_keys(node, path)
            total += sum(size(key) + size(value) for key, value in node.value)
        if total > MAX_VALUES:
            raise _fault(path, node, f"aliases multiply this to more than {MAX_VALUES:,} values; write it out")
        open_nodes.remove(id(node))
        sizes[id(node)] = total
        return total

    size(root)


def _check_keys(node: MappingNode, path: Path) -> None:
    seen: dict[tuple[str, str], Node] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            continue  # no key of a Python dict: the loader says so
        first = seen.setdefault((key.tag, key.value), key)
        if first is not key:
            raise _fault(
                path,
                key,
                f"the key {key.value!r} is there already, in line {first.start_mark.line + 1}, and YAML would keep the "
                f"last one only; remove one of them",
            )


def _check_scalar(node: ScalarNode, path: Path) -> None:
    if node.style is not None:  # in quotes it is text
        return
    text = node.value
    if node.tag == _INT and _OCTAL.fullmatch(text):
        octal = int(text.replace("_", ""), 8)
        raise _fault(path, node, f"YAML reads {text} as the octal number {octal}; write {octal}, or {text!r} for text")
    if node.tag in (_INT, _FLOAT) and _GROUPED.search(text):
        raise _fault(path, node, f"YAML reads {text} as a number, but not everywhere; write the digits alone")
    if node.tag in (_INT, _FLOAT) and ":" in text:
        raise _fault(path, node, f"YAML reads {text} as a number to base 60; write {text!r} in quotes, or the number")
    if node.tag == _TIMESTAMP:
        raise _fault(path, node, f"YAML reads {text} as a date; put it in quotes")


def _fault(path: Path, node: Node, message: str) -> UserError:
    mark = node.start_mark
    return UserError(f"{path}, line {mark.line + 1}, column {mark.column + 1}: {message}")
