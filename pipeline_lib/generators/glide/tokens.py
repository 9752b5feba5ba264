"""GLIDE's tokens: GPT-2's byte-pair encoding of the lower-cased text (original: `tokenizer/bpe.py`)."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GPT2Tokenizer

from pipeline_lib.errors import UserError
from pipeline_lib.generators.glide import TOKENIZER, TOKENIZER_REVISION
from pipeline_lib.generators.reading import TextLimit
from pipeline_lib.hub import hub_folder

_VOCABULARY, _MERGES = "vocab.json", "merges.txt"


def load_tokenizer(source: str, revision: str | None) -> GPT2Tokenizer:
    """The tokenizer in a folder with vocab.json and merges.txt, or of a hub id at a revision (40 hexadecimal digits;
    None: `TOKENIZER_REVISION` for `TOKENIZER`, else an error).

    Raises `UserError` where it is not there, not pinned or damaged.
    """
    folder = Path(source) if Path(source).is_dir() else _hub_folder(source, revision)
    missing = [name for name in (_VOCABULARY, _MERGES) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"--tokenizer: {source!r} has no {' and no '.join(missing)}; GPT-2's tokenizer is both files")
    try:
        return GPT2Tokenizer(vocab=str(folder / _VOCABULARY), merges=str(folder / _MERGES))
    except Exception as error:  # `tokenizers` raises no narrower one
        raise UserError(
            f"--tokenizer: {source!r} cannot be loaded: {error}; name a folder with GPT-2's {_VOCABULARY} and {_MERGES}"
        ) from error


def _hub_folder(source: str, revision: str | None) -> Path:
    if source == TOKENIZER and revision is None:
        revision = TOKENIZER_REVISION
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(
            f"--tokenizer: {source!r} is no folder here, so it is read as a hub id; --tokenizer-revision must pin it "
            f"to a commit of the hub repository, 40 hexadecimal digits, and is {revision!r}"
        )
    return hub_folder(source, revision, [_MERGES], key="--tokenizer")


def text_limit(tokenizer: GPT2Tokenizer, context: int) -> TextLimit:
    """How much of a text fits into `context` positions."""
    return TextLimit(lambda text: len(_tokens(tokenizer, text)), context)


def _tokens(tokenizer: GPT2Tokenizer, text: str) -> list[int]:
    # A special token's name within a text is text.
    found: list[int] = tokenizer.encode(
        text.lower(), add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    return found


def encode(tokenizer: GPT2Tokenizer, texts: Sequence[str], context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers, int64 [N, context], and where they are text, bool [N, context].

    No token marks begin or end; behind the text stands the vocabulary's last token. What does not fit is cut off (see
    `text_limit`).
    """
    numbers = torch.full((len(texts), context), len(tokenizer) - 1)
    is_text = torch.zeros(len(texts), context, dtype=torch.bool)
    for row, text in enumerate(texts):
        kept = _tokens(tokenizer, text)[:context]
        numbers[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        is_text[row, : len(kept)] = True
    return numbers, is_text
