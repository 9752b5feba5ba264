"""The whole chain of trainings with tiny settings: folders load through open_clip, transformers and diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline_lib.miniature import (
    autoencoder,
    clip,
    clip_text,
    corpus,
    decoder,
    evaluation,
    fidelity,
    text_to_image,
    tokenizer,
    training,
    word_to_sentence,
)

COMMON = {"seed": 1, "steps": 3, "batch": 8, "lr": 1e-3, "warmup": 1, "checkpoint_every": 2, "compile": False}
CLIP = {**COMMON, "width": 16, "text_width": 32, "embed_dim": 32, "weight_decay": 0.1}
AUTOENCODER = {**COMMON, "channels": [8, 8, 16], "kl": 1e-6, "gradient_loss": 1.0}
GENERATOR = {
    **COMMON,
    "channels": [16, 32],
    "text_width": 32,
    "text_layers": 1,
    "cooldown": 1,
    "caption_dropout": 0.5,
    "ema": 0.99,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small models are fastest on one thread, whatever else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def built(garments: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 48 scenes and its tokenizer."""
    folder = tmp_path_factory.mktemp("miniature")
    corpus.build(*garments, folder / "corpus", seed=1, count=48, plain_share=0.5, noise=0.1, loose=True)
    tokenizer.save(folder / "bpe", *tokenizer.train(corpus.load(folder / "corpus").captions, 200))
    return folder


def tokens_of(built: Path) -> tuple[torch.Tensor, int]:
    words = tokenizer.clip_tokenizer(built / "bpe")
    texts = [*corpus.load(built / "corpus").captions, ""]
    ids = words(texts, padding="max_length", max_length=tokenizer.CONTEXT, truncation=True)["input_ids"]
    return torch.tensor(ids), len(words)


def test_tokenizer_knows_words_and_survives_any_text(built: Path) -> None:
    words = tokenizer.clip_tokenizer(built / "bpe")
    assert words.decode(words("A White SNEAKER")["input_ids"], skip_special_tokens=True) == "a white sneaker"
    for text in ("Käse 猫 / .. \"'", "", "🙂"):
        ids = words(text)["input_ids"]
        assert ids[0] == words.bos_token_id
        assert ids[-1] == words.eos_token_id == len(words) - 1
    sentences = tokenizer.t5_tokenizer(built / "bpe")
    ids = sentences("a t-shirt on a plain black background")["input_ids"]
    assert sentences.decode(ids, skip_special_tokens=True) == "a t-shirt on a plain black background"


def train_clip(built: Path) -> Path:
    found = corpus.load(built / "corpus")
    tokens, vocabulary = tokens_of(built)
    model, config = clip.train(found, tokens[:-1], built / "clip_work", CLIP, vocabulary)
    clip.export(model, config, built / "bpe", built / "clip")
    return built / "clip"


def test_clip_loads_through_open_clip(built: Path) -> None:
    from PIL import Image

    folder = train_clip(built)
    model, preprocess, tokens = clip.load_clip(folder)
    found = corpus.load(built / "corpus")
    ids = tokens(["a photo of a sneaker", "a sketch of an ankle boot"])
    assert ids.shape == (2, tokenizer.CONTEXT)
    with torch.no_grad():
        text = model.encode_text(ids, normalize=True)
        ours = evaluation.image_features(model, found.images[:2])
        theirs = model.encode_image(
            torch.stack([preprocess(Image.fromarray(image)) for image in found.images[:2]]), normalize=True
        )
    assert text.shape == ours.shape == (2, 32)
    assert torch.allclose(ours, theirs, atol=1e-5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = clip_text.train(model, evaluation.image_features(model, found.images), tokens_of(built)[0][:-1], CLIP)
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("visual.") for name in changed)


def test_word_to_sentence_loads_through_transformers(built: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    found = corpus.load(built / "corpus")
    chosen = {**COMMON, "width": 32, "layers": 1}
    model, words = word_to_sentence.train(found, built / "bpe", built / "w2s_work", chosen)
    model.half().save_pretrained(built / "w2s")
    words.save_pretrained(built / "w2s")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(built / "w2s", dtype=torch.float32)
    reader = AutoTokenizer.from_pretrained(built / "w2s")
    made = loaded.generate(**reader(["sneaker, white"], return_tensors="pt"), max_new_tokens=6)
    assert isinstance(reader.batch_decode(made, skip_special_tokens=True)[0], str)


def test_text_to_image_loads_through_diffusers(built: Path) -> None:
    from diffusers import AutoencoderKL, AutoPipelineForImage2Image

    found = corpus.load(built / "corpus")
    autoencoder.export(autoencoder.train(found.images, built / "vae_work", AUTOENCODER), found.images, built / "vae")
    vae = AutoencoderKL.from_pretrained(built / "vae", torch_dtype=torch.float32)
    latents = autoencoder.encode(vae, found.images) * vae.config.scaling_factor
    assert latents.shape == (48, 4, 8, 8)
    assert latents.dtype == torch.float16
    assert abs(float(latents.float().std()) - 1) < 0.05
    visual = clip.create(clip.model_config(tokens_of(built)[1], 16, 32, 32)).visual.eval()
    chosen = {**COMMON, "gradient_loss": 1.0, "feature_loss": 0.1, "latent_noise": 0.05}
    before = vae.encoder.conv_in.weight.clone()
    vae = decoder.train(vae, visual, latents, found.images, built / "decoder_work", chosen)
    assert torch.equal(before, vae.encoder.conv_in.weight)
    vae.half().save_pretrained(built / "vae2")
    tokens, vocabulary = tokens_of(built)
    model = text_to_image.train(latents, tokens, vocabulary, built / "t2i_work", GENERATOR)
    text_to_image.export(model, built / "vae2", built / "bpe", built / "t2i")
    pipeline = evaluation.load_pipeline(built / "t2i")
    images = evaluation.sample(pipeline, ["a photo of a bag"] * 3, seed=1, steps=2, guidance=2.0)
    assert images.shape == (3, 32, 32, 3)
    again = evaluation.sample(pipeline, ["a photo of a bag"] * 2, seed=1, steps=2, guidance=2.0)
    assert np.abs(images[:2].astype(int) - again).max() <= 1  # independent of the batch
    other = AutoPipelineForImage2Image.from_pretrained(built / "t2i", safety_checker=None, torch_dtype=torch.float32)
    other.set_progress_bar_config(disable=True)
    made = other(["a bag"], image=torch.zeros(1, 3, 32, 32), strength=0.5, num_inference_steps=4, output_type="np")
    assert made.images.shape == (1, 32, 32, 3)


def test_training_resumes_where_it_stopped(built: Path, tmp_path: Path) -> None:
    images = corpus.load(built / "corpus").images
    whole = autoencoder.train(images, tmp_path / "whole", AUTOENCODER)
    state = training.load_checkpoint(tmp_path / "whole" / "checkpoint.pt", AUTOENCODER)
    assert state is not None
    assert state["step"] == 3

    class StoppedError(Exception):
        pass

    def stop(path: Path, state: dict[str, Any], chosen: dict[str, Any]) -> None:
        original(path, state, chosen)
        raise StoppedError

    original = training.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_checkpoint", stop)
        with pytest.raises(StoppedError):
            autoencoder.train(images, tmp_path / "parts", AUTOENCODER)
    resumed = autoencoder.train(images, tmp_path / "parts", AUTOENCODER)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-6), name
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint.pt"]


def test_checkpoints_of_other_settings_are_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.save_checkpoint(tmp_path / "c.pt", {"step": 5}, {"lr": 1.0, "steps": 9, "compile": True})
    assert training.load_checkpoint(tmp_path / "missing.pt", {}) is None
    assert training.load_checkpoint(tmp_path / "c.pt", {"lr": 2.0, "steps": 9}) is None
    assert "other settings (lr)" in capsys.readouterr().err
    assert training.load_checkpoint(tmp_path / "c.pt", {"lr": 1.0, "steps": 8}) is None
    found = training.load_checkpoint(tmp_path / "c.pt", {"lr": 1.0, "steps": 8}, free=("steps",))
    assert found is not None
    assert found["step"] == 5


def test_judge_is_saved_and_loaded(garments: tuple, tmp_path: Path) -> None:
    model = fidelity.train(*garments, {**COMMON, "steps": 2})
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "judge.safetensors")
    images = np.zeros((3, 32, 32, 3), np.uint8)
    assert np.array_equal(
        fidelity.judge(model, images), fidelity.judge(fidelity.load(tmp_path / "judge.safetensors"), images)
    )


def test_batches_cover_an_epoch_once() -> None:
    rows = torch.cat([training.batch_rows(1, step, 10, 100) for step in range(10)])
    assert sorted(rows.tolist()) == list(range(100))
    assert not torch.equal(training.batch_rows(1, 0, 10, 100), training.batch_rows(1, 10, 10, 100))


def test_settings_name_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("corpora: {web: {seed: 1}}\n", encoding="utf-8")
    assert training.settings(path, "corpora.web") == {"seed": 1}
    with pytest.raises(ValueError, match=r"no section 'corpora.other' \('other' is missing\)"):
        training.settings(path, "corpora.other")


def test_training_never_reads_the_test_split() -> None:
    """Only `load_split(..., part of the training split)` occurs in the modules that train or report."""
    import re

    asked = set()
    for path in Path(training.__file__).parent.glob("*.py"):
        asked |= set(re.findall(r"load_split\([^)]*?\"(\w+)\"\)", path.read_text(encoding="utf-8")))
    assert asked == {"corpus", "validation", "pool"}
