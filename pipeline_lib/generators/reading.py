"""How much of a prompt the text encoders of a generator read. What is longer they cut, and say nothing."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline_lib.datasets.registry import fold
from pipeline_lib.prompts import name_pattern
from pipeline_lib.yaml_files import shortened


@dataclass(frozen=True)
class TextLimit:
    """How many tokens a text encoder reads."""

    count: Callable[[str], int]
    """The number of tokens of a text, with those that mark begin and end."""
    positions: int
    """How many are read."""

    def read(self, text: str) -> str:
        """The longest beginning of a text that is read: all of it, as a rule."""
        if self.count(text) <= self.positions:
            return text
        fits, too_long = 0, len(text)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self.count(text[:middle]) <= self.positions:
                fits = middle
            else:
                too_long = middle
        return text[:fits]


def read_part(limits: Sequence[TextLimit], prompt: str) -> str:
    """What is read of a prompt by that text encoder which reads most of it."""
    return max((limit.read(prompt) for limit in limits), key=len, default=prompt)


def lost_name(class_name: str, prompt: str, read: str) -> str | None:
    """A message where a class's name is in a prompt and not in what is read of it: any class would get such images."""
    name = name_pattern(class_name)
    if name.search(fold(prompt)) is None or name.search(fold(read)) is not None:
        return None
    return (
        f"models.generator: the text encoder reads of the prompt {shortened(prompt)} no more than {shortened(read)}, "
        f"which loses the class name {class_name!r}; shorten the class name, or prompt_template and sentence_template "
        f"of the data set"
    )


def pipeline_limits(pipeline: Any) -> Iterator[TextLimit]:
    """The limits of a diffusers pipeline: one for each of its tokenizers, which say themselves where they cut. T5 may
    read more than the pipeline asks for."""
    asked = inspect.signature(pipeline.encode_prompt).parameters.get("max_sequence_length")
    for name, tokenizer in pipeline.components.items():
        if name.startswith("tokenizer") and tokenizer is not None:
            positions = min(tokenizer.model_max_length, asked.default if asked else tokenizer.model_max_length)
            yield TextLimit(partial(_n_tokens, tokenizer), positions)


def _n_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, verbose=False).input_ids)
