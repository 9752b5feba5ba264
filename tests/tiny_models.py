"""Tiny, randomly initialised models in the real formats, for tests of the machinery (not of accuracy)."""

from pathlib import Path

CAPTIONS = [f"a photo of a {colour} {noun}" for colour in ("red", "blue") for noun in ("cat", "dog", "bird", "fish")]


def make_tiny_models(folder: Path) -> dict[str, str]:
    """Write generator, encoder and word-to-sentence model below `folder`; returns params.yaml's section `models`."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    from pipeline_lib.miniature import clip, text_to_image, tokenizer, word_to_sentence

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

    sentences = tokenizer.t5_tokenizer(words)
    word_to_sentence.create(len(sentences), width=16, layers=1).save_pretrained(folder / "word_to_sentence")
    sentences.save_pretrained(folder / "word_to_sentence")
    return {
        "generator": str(folder / "text_to_image"),
        "encoder": f"local-dir:{folder / 'clip'}",
        "sentences": str(folder / "word_to_sentence"),
    }
