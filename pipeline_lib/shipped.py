"""Shipped files: the data that comes with the package. `SHA256SUMS` lists their digests, as `sha256sum` writes them.

Class names, definitions and the paper's numbers are checked whenever they are read; model cards, which in turn name the
files beside them, when a run asks for their model (see `model_cards`).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline_lib.errors import UserError
from pipeline_lib.files import atomic_path, file_sha256

PACKAGE = Path(__file__).resolve().parent
REMEDY = "Restore it (git checkout -- FILE, or install the package again)"
_SUMS = "SHA256SUMS"
_PATTERNS = (
    "datasets/class_folders/*.txt",
    "datasets/class_names/*.txt",
    "datasets/definitions/*.yaml",
    "miniature/settings.yaml",
    "miniature/weights/*/README.md",
    "paper_tables.csv",
)
_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})  (?P<name>\S+)")


def read_text(name: str) -> str:
    """The text of a shipped file, by its path in the package. Raises `UserError` where it is not the listed one."""
    if fault := fault_of(name):
        raise UserError(f"{fault}. {REMEDY}; if it was changed on purpose, run python -m pipeline_lib.shipped")
    return (PACKAGE / name).read_text(encoding="utf-8")


def names(pattern: str) -> list[str]:
    """The shipped files whose path matches `pattern`: those that are listed, and those that are there; sorted."""
    return [name for name in sorted({*_listed(), *_present()}) if Path(name).match(pattern)]


def faults() -> Iterator[str]:
    """A line for each shipped file that is missing, damaged or not listed."""
    try:
        yield from filter(None, map(fault_of, names("*")))
    except UserError as error:
        yield str(error)


def fault_of(name: str) -> str | None:
    """What is wrong with a shipped file; None where it is the listed one."""
    path, listed = PACKAGE / name, _listed()
    if not path.is_file():
        return f"missing: {path}"
    if name not in listed:
        return f"unknown: {path}, which {PACKAGE / _SUMS} does not list"
    if file_sha256(path) != listed[name]:
        return f"damaged: {path} does not have the SHA-256 that {PACKAGE / _SUMS} lists"
    return None


def _present() -> Iterator[str]:
    return (path.relative_to(PACKAGE).as_posix() for pattern in _PATTERNS for path in PACKAGE.glob(pattern))


def _listed() -> Mapping[str, str]:
    """Digests by path. Raises `UserError` where the list itself is missing or damaged."""
    path = PACKAGE / _SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ValueError):
        lines = []
    found = [match for line in lines if (match := _LINE.fullmatch(line))]
    if not found:
        raise UserError(f"{'damaged' if path.exists() else 'missing'}: {path}, the list of shipped files. {REMEDY}")
    return {line["name"]: line["sha256"] for line in found}


def main() -> None:
    """Write `SHA256SUMS` anew, after shipped files were changed on purpose."""
    with atomic_path(PACKAGE / _SUMS) as temporary:
        lines = [f"{file_sha256(PACKAGE / name)}  {name}\n" for name in sorted(_present())]
        temporary.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
