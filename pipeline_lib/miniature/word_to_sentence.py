"""Train the small word-to-sentence model: a T5 (Raffel et al., 2020) that writes a sentence with given words.

Input: concept words joined by commas, the noun first ("sneaker, white, plain, black"); output: a caption body with
these words and perhaps others ("a small white sneaker on a plain black background").
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline_lib.miniature import corpus, tokenizer, training
from pipeline_lib.miniature.scenes import uniforms

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

SOURCE_LENGTH, TARGET_LENGTH = 20, 18  # tokens


def create(vocabulary: int, width: int, layers: int) -> T5ForConditionalGeneration:
    """An untrained T5."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=layers,
            num_decoder_layers=layers,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            max_length=TARGET_LENGTH,
        )
    )


def sources(concepts: list[list[str]], seed: int) -> list[str]:
    """Inputs: the noun and a random subset of the other words, in the sentence's order."""
    u = uniforms(seed, np.arange(len(concepts)), 8)
    inputs = []
    for row, words in enumerate(concepts):
        share = u[row, 7]  # from the noun alone to all words
        kept = [word for number, word in enumerate(words[1:]) if u[row, number % 7] < share]
        inputs.append(", ".join([words[0], *kept]))
    return inputs


def train(found: corpus.Corpus, bpe: Path, work: Path, chosen: dict[str, Any]) -> Any:
    """Train from the last checkpoint in `work`, if any. Returns model and tokenizer."""
    torch.manual_seed(chosen["seed"])
    words = tokenizer.t5_tokenizer(bpe)
    inputs = words(
        sources(found.concepts, chosen["seed"]),
        padding="max_length",
        max_length=SOURCE_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    outputs = words(found.bodies, padding="max_length", max_length=TARGET_LENGTH, truncation=True, return_tensors="pt")
    labels = outputs["input_ids"].masked_fill(outputs["input_ids"] == words.pad_token_id, -100)
    model = create(len(words), chosen["width"], chosen["layers"]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen["lr"], weight_decay=0.01)
    saved = training.load_checkpoint(work / "checkpoint.pt", chosen)
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    notes: dict[str, float] = {}
    for step in training.progress("word_to_sentence", first, chosen["steps"], notes):
        rows = training.batch_rows(chosen["seed"], step, chosen["batch"], len(labels))
        rate = training.learning_rate(step, chosen["lr"], chosen["warmup"], chosen["steps"])
        training.set_learning_rate(optimizer, rate)
        value = model(
            input_ids=inputs["input_ids"][rows], attention_mask=inputs["attention_mask"][rows], labels=labels[rows]
        ).loss
        training.update(optimizer, value)
        notes["loss"] = value.item()
        if (step + 1) % chosen["checkpoint_every"] == 0 or step + 1 == chosen["steps"]:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            training.save_checkpoint(work / "checkpoint.pt", state, chosen)
    return model.eval(), words


def main() -> None:
    """`python -m pipeline_lib.miniature.word_to_sentence --corpus FOLDER --tokenizer FOLDER --work ... --out ...`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the web corpus")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=training.SETTINGS)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    chosen = training.settings_for(
        args.settings, "word_to_sentence", [args.corpus / "captions.jsonl", args.tokenizer / "bpe.json"]
    )
    model, words = train(corpus.load(args.corpus), args.tokenizer, args.work, chosen)
    model.half().save_pretrained(args.out)
    words.save_pretrained(args.out)


if __name__ == "__main__":
    main()
