"""Tiny, randomly initialised models in the real formats, for tests of the machinery (not of accuracy)."""

from pathlib import Path
from typing import Any

CAPTIONS = [f"a photo of a {colour} {noun}" for colour in ("red", "blue") for noun in ("cat", "dog", "bird", "fish")]


def make_tiny_models(folder: Path) -> dict[str, Any]:
    """Write generator, encoder and word-to-sentence model below `folder`; returns params.yaml's section `models`."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    from pipeline_lib.miniature import clip, text_to_image, tokenizer

    torch.manual_seed(0)
    words = folder / "tokenizer"
    tokenizer.save(words, *tokenizer.train(CAPTIONS, merges=40))
    vocabulary = len(tokenizer.clip_tokenizer(words))

    config = clip.model_config(vocabulary, width=8, text_width=32, embed_dim=16)
    clip.export(clip.create(config), config, words, folder / "clip")

    denoiser = text_to_image.Denoiser(vocabulary, channels=[8, 16], text_width=32, text_layers=1)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        sample_size=32,
    )
    StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text,
        tokenizer=tokenizer.clip_tokenizer(words),
        unet=denoiser.unet,
        scheduler=text_to_image.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "text_to_image")

    make_tiny_t5(words, folder / "word_to_sentence")
    return {
        "generator": str(folder / "text_to_image"),
        "encoders": [{"name": "clip", "model": f"local-dir:{folder / 'clip'}"}],
        "sentences": str(folder / "word_to_sentence"),
    }


def make_tiny_t5(words: Path, folder: Path) -> None:
    """Write a tiny T5 for the tokenizer in `words`, in transformers' format."""
    from pipeline_lib.miniature import tokenizer, word_to_sentence

    sentences = tokenizer.t5_tokenizer(words)
    word_to_sentence.create(len(sentences), width=16, layers=1).save_pretrained(folder)
    sentences.save_pretrained(folder)
