"""Prompts for the generator: basic (B) and language enhancement (LE, paper section 3.1 and A.7.1)."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.datasets.registry import fold
from pipeline_lib.errors import UserError
from pipeline_lib.records import PROMPTS
from pipeline_lib.seeds import derive_seed


@dataclass(frozen=True)
class Request:
    """`n` sentences that hold `words`: a function of these fields alone.

    Tokens are drawn from softmax(logits / temperature), cut to the `top_k` most probable ones (0: all), then to the
    fewest of these whose share reaches `top_p`.
    """

    words: tuple[str, ...]
    n: int
    top_p: float
    top_k: int
    temperature: float
    seed: int


def prompt_id(class_name: str, prompt: str) -> str:
    """16 hexadecimal characters that identify a prompt of a class."""
    return hashlib.sha256(f"{class_name}\0{prompt}".encode()).hexdigest()[:16]


def basic_prompts(class_name: str, template: str) -> pa.Table:
    """The one basic prompt of a class: `template` with the class name for `{}`. Schema `records.PROMPTS`."""
    prompt = template.replace("{}", class_name)
    return pa.table(
        [[prompt_id(class_name, prompt)], [class_name], [prompt], pa.array([None], pa.string())], schema=PROMPTS
    )


def enhanced_prompts(class_name: str, template: str, sentences: Sequence[str]) -> pa.Table:
    """The prompts of a class under language enhancement: `template` with each sentence for `{}`."""
    prompts = [template.replace("{}", sentence) for sentence in sentences]
    ids = [prompt_id(class_name, prompt) for prompt in prompts]
    return pa.table([ids, [class_name] * len(ids), prompts, list(sentences)], schema=PROMPTS)


class Sentences:
    """The unique sentences of one class, gathered round by round, and counts of what was left out.

    Duplicates are found after folding case and white space; the first form stays. With `require_class_name`, sentences
    that lost the class name are dropped; they are counted either way.
    """

    def __init__(self, class_name: str, *, require_class_name: bool):
        self.class_name, self._require_class_name = class_name, require_class_name
        self._name = name_pattern(class_name)
        self._unique: dict[str, str] = {}
        self._n_sampled = self._n_duplicates = self._n_lost = 0
        self.stale = False
        """Whether the last round brought nothing new."""

    def add(self, sampled: Iterable[str]) -> None:
        """Take the sentences of one round."""
        n_before = len(self._unique)
        for raw in sampled:
            sentence = " ".join(raw.split())
            self._n_sampled += 1
            lost = self._name.search(fold(sentence)) is None
            self._n_lost += lost
            if not sentence or (lost and self._require_class_name):
                continue
            if fold(sentence) in self._unique:
                self._n_duplicates += 1
            else:
                self._unique[fold(sentence)] = sentence
        self.stale = len(self._unique) == n_before

    def __len__(self) -> int:
        return len(self._unique)

    def first(self, n: int) -> tuple[str, ...]:
        """The first `n` sentences, or all where there are fewer."""
        return tuple(self._unique.values())[:n]

    @property
    def counts(self) -> dict[str, int]:
        """Of sentences, for the record: sampled, duplicates, without_class_name."""
        return {
            "sampled": self._n_sampled,
            "duplicates": self._n_duplicates,
            "without_class_name": self._n_lost,
        }


def name_pattern(class_name: str) -> re.Pattern[str]:
    """What finds a class name in a folded sentence: its words in order, whole, the last one in the plural or not.

    Between the words anything but letters and digits may stand: tokenizers write "t - shirt". "rat" is not in
    "decorates", but a script without letter case has no blanks between words either, and there it may stand in a run.
    """
    name = fold(class_name)
    words = re.findall(r"[^\W_]+", name)
    if not words:
        return re.compile(re.escape(name))
    spaced = all(letter.lower() != letter.upper() for letter in name if letter.isalpha())
    before, after = (r"(?<![^\W_])", r"(?:e?s)?(?![^\W_])") if spaced else ("", "")
    return re.compile(before + r"[\W_]*".join(map(re.escape, words)) + after)


def enhance(
    specs: Sequence[Mapping[str, Any]], sample: Callable[[Sequence[Request]], Sequence[Sequence[str]]]
) -> list[Sentences]:
    """Sentences for the classes of `specs`, as many as these ask for; the classes of a round are sampled together.

    Each class is asked for `asked` sentences a round until `kept` unique ones are there; for `rounds` rounds at the
    most, and no more than one that brings nothing new once `at_least` are there.

    Raises `UserError` where fewer than `at_least` unique sentences came for a class.
    """
    found = [Sentences(spec["class_name"], require_class_name=spec["require_class_name"]) for spec in specs]
    for number in range(max(spec["rounds"] for spec in specs)):
        asking = [pair for pair in zip(specs, found, strict=True) if _asks(*pair, number)]
        requests = [
            Request(
                words=(spec["class_name"], *spec["keywords"]),
                n=spec["asked"],
                top_p=spec["top_p"],
                top_k=spec["top_k"],
                temperature=spec["temperature"],
                seed=derive_seed(spec["seed"], "sentences", spec["class_name"], number),
            )
            for spec, _ in asking
        ]
        for (_, sentences), sampled in zip(asking, sample(requests), strict=True):
            sentences.add(sampled)
    pairs = zip(specs, found, strict=True)
    if faults := [_too_few(spec, sentences) for spec, sentences in pairs if len(sentences) < spec["at_least"]]:
        raise UserError("\n".join(faults))
    return found


def _asks(spec: Mapping[str, Any], sentences: Sentences, number: int) -> bool:
    enough = len(sentences) >= spec["kept"] or (sentences.stale and len(sentences) >= spec["at_least"])
    return number < spec["rounds"] and not enough


def _too_few(spec: Mapping[str, Any], sentences: Sentences) -> str:
    counts = sentences.counts
    dropped = ", dropped" if spec["require_class_name"] else ""
    return (
        f"language enhancement: {spec['rounds']} rounds of {spec['asked']} sentences for {spec['class_name']!r} gave "
        f"{len(sentences)} unique ones, at least {spec['at_least']} are needed ({counts['duplicates']} duplicates, "
        f"{counts['without_class_name']} without the class name{dropped}); in prompts.language_enhancement, lower "
        f"at_least, raise rounds or temperature, or let sentences without the class name pass "
        f"(require_class_name: false)"
    )


def write_prompts(table: pa.Table, path: Path) -> None:
    """Write prompts as Parquet; the same rows give the same bytes."""
    pq.write_table(table, path, compression="zstd")
