"""The shipped weights load, stay small, and are the ones their cards name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from pipeline_lib.miniature import clip, evaluation, targets, training
from pipeline_lib.model_cards import files_table

WEIGHTS = Path(training.__file__).with_name("weights")
FOLDERS = ("clip", "word_to_sentence", "text_to_image")


@pytest.mark.parametrize("name", FOLDERS)
def test_cards_name_the_digests_and_settings_of_what_is_shipped(name: str) -> None:
    text = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    assert text.endswith(f"## Files\n\n{files_table(WEIGHTS / name)}")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    for section, used in yaml.safe_load(block.group(1)).items():
        assert training.settings(training.SETTINGS, section) == used


def test_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 25.5e6


def test_clip_tells_a_sneaker_from_trousers() -> None:
    model, _, tokens = clip.load_clip(WEIGHTS / "clip")
    pipeline = evaluation.load_pipeline(WEIGHTS / "text_to_image")
    names = ("sneaker", "trouser")
    prompts = [evaluation.basic_prompt("objects", name) for name in names for _ in range(4)]
    images = evaluation.sample(pipeline, prompts, seed=3, steps=8, guidance=2.5)
    head = evaluation.zero_shot_head(model, tokens, "objects")
    columns = [targets.TARGETS["objects"].class_names.index(name) for name in names]
    chosen = (evaluation.image_features(model, images) @ head[columns].t()).argmax(1)
    assert (chosen == torch.tensor([0] * 4 + [1] * 4)).sum() >= 7


def test_sentences_hold_the_words_given() -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(WEIGHTS / "word_to_sentence", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(WEIGHTS / "word_to_sentence")
    torch.manual_seed(1)
    given = [f"{name}, white, plain, black" for name in targets.TARGETS["objects"].class_names]
    made = model.generate(
        **words(given, return_tensors="pt", padding=True), do_sample=True, top_p=0.95, max_new_tokens=18
    )
    sentences = words.batch_decode(made, skip_special_tokens=True)
    held = [name in text for name, text in zip(targets.TARGETS["objects"].class_names, sentences, strict=True)]
    assert sum(held) >= 9
