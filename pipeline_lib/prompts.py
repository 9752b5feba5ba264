"""Prompts for the generator: basic (B) and language enhancement (LE, paper section 3.1 and A.7.1)."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.datasets.registry import fold
from pipeline_lib.errors import UserError
from pipeline_lib.records import PROMPTS
from pipeline_lib.seeds import derive_seed

log = logging.getLogger(__name__)
MAX_ROUNDS = 5  # how often the model is asked before too few unique sentences are an error


@dataclass(frozen=True)
class Sentences:
    """Unique sentences of one class, and what was left out on the way to them."""

    kept: tuple[str, ...]
    n_sampled: int
    n_duplicates: int
    n_without_class_name: int


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


def unique_sentences(
    sample: Callable[[int], Sequence[str]],
    class_name: str,
    *,
    asked: int,
    kept: int,
    at_least: int,
    require_class_name: bool,
) -> Sentences:
    """Sample `asked` sentences per round until `kept` unique ones are there; at most `MAX_ROUNDS` rounds, and no more
    than one that brings nothing new once `at_least` are there.

    `sample(round)` gives one round's sentences. Duplicates are found after folding case and white space; the first
    form stays. With `require_class_name`, sentences that lost the class name are dropped; they are counted either way.

    Raises `UserError` where fewer than `at_least` unique sentences came.
    """
    unique: dict[str, str] = {}
    n_sampled = n_duplicates = n_lost = 0
    for number in range(MAX_ROUNDS):
        n_before = len(unique)
        for raw in sample(number):
            sentence = " ".join(raw.split())
            n_sampled += 1
            lost = fold(class_name) not in fold(sentence)
            n_lost += lost
            if not sentence or (lost and require_class_name):
                continue
            if fold(sentence) in unique:
                n_duplicates += 1
            else:
                unique[fold(sentence)] = sentence
        if len(unique) >= kept or (len(unique) == n_before and len(unique) >= at_least):
            break
    if len(unique) >= at_least:
        return Sentences(tuple(unique.values())[:kept], n_sampled, n_duplicates, n_lost)
    raise UserError(
        f"language enhancement: {MAX_ROUNDS} rounds of {asked} sentences for {class_name!r} gave {len(unique)} unique "
        f"ones, at least {at_least} are needed ({n_duplicates} duplicates, {n_lost} without the class name"
        f"{', dropped' if require_class_name else ''}); lower prompts.language_enhancement.at_least or raise "
        "temperature"
    )


class SentenceModel:
    """A word-to-sentence model, T5-style: concept words in, a sentence that holds them out."""

    def __init__(self, model: str, revision: str | None):
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        local = Path(model).is_dir()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, local_files_only=local)
            loaded = AutoModelForSeq2SeqLM.from_pretrained(
                model, revision=revision, local_files_only=local, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise UserError(f"models.sentences: {model!r} cannot be loaded: {error}") from error
        self._model = loaded.to(self._device).eval()

    def sample(self, words: Sequence[str], n: int, *, top_p: float, temperature: float, seed: int) -> list[str]:
        """`n` sentences with nucleus sampling, a function of the arguments alone."""
        import torch

        inputs = self._tokenizer(", ".join(words), return_tensors="pt").to(self._device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            outputs = self._model.generate(
                **inputs,
                do_sample=True,
                top_p=top_p,
                top_k=0,
                temperature=temperature,
                num_return_sequences=n,
                max_new_tokens=48,
            )
        return list(self._tokenizer.batch_decode(outputs, skip_special_tokens=True))


def class_prompts(spec: Mapping[str, Any], model: SentenceModel | None) -> tuple[pa.Table, dict[str, int]]:
    """The prompts of one class from its spec, and the counts that go into the record."""
    class_name, template = spec["class_name"], spec["template"]
    if spec["strategy"] == "basic":
        return basic_prompts(class_name, template), {}
    assert model is not None
    sentences = unique_sentences(
        lambda number: model.sample(
            [class_name, *spec["keywords"]],
            spec["asked"],
            top_p=spec["top_p"],
            temperature=spec["temperature"],
            seed=derive_seed(spec["seed"], "sentences", class_name, number),
        ),
        class_name,
        asked=spec["asked"],
        kept=spec["kept"],
        at_least=spec["at_least"],
        require_class_name=spec["require_class_name"],
    )
    counts = {
        "sampled": sentences.n_sampled,
        "duplicates": sentences.n_duplicates,
        "without_class_name": sentences.n_without_class_name,
    }
    log.info("%s: %d sentences kept; %s", class_name, len(sentences.kept), counts)
    return enhanced_prompts(class_name, template, sentences.kept), counts


def write_prompts(table: pa.Table, path: Path) -> None:
    """Write prompts as Parquet; the same rows give the same bytes."""
    pq.write_table(table, path, compression="zstd")
