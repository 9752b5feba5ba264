"""Tiny, randomly initialised text-to-image pipelines in the formats of well-known families (not their weights).

`TINY_PIPELINES` maps a family to a function that writes its folder. All share one small tokenizer, draw 32x32 images
and take a second or less to load.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

CAPTIONS = [f"a photo of a {colour} {noun}" for colour in ("red", "blue") for noun in ("cat", "dog", "bird", "fish")]
WIDTH = 32  # of every text encoder
TinyPipeline = Callable[[str], Path]
"""Of the fixture `tiny_pipeline`: the folder of a family."""


def stable_diffusion_1(folder: Path) -> None:
    """Stable Diffusion 1.x: one text encoder, noise prediction, a safety checker that takes offence at everything."""
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    texts = _Texts(folder)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(
            text_config=texts.clip_config().to_dict(),
            vision_config={**vision, "image_size": 32, "patch_size": 16, "projection_dim": WIDTH},
            projection_dim=WIDTH,
        )
    )
    with torch.no_grad():
        for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
            thresholds.fill_(-2)  # every cosine is above
    StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=texts.clip(),
        tokenizer=texts.clip_tokenizer,
        unet=_unet(),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    ).save_pretrained(folder)


def stable_diffusion_2(folder: Path) -> None:
    """Stable Diffusion 2.x at 768 pixels: v-prediction."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    texts = _Texts(folder)
    StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=texts.clip(),
        tokenizer=texts.clip_tokenizer,
        unet=_unet(use_linear_projection=True),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def stable_diffusion_xl(folder: Path) -> None:
    """Stable Diffusion XL: two text encoders, pooled text and image size in the time embedding."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    texts = _Texts(folder)
    n_time_ids, width_of_each = 6, 8
    StableDiffusionXLPipeline(
        vae=_autoencoder(force_upcast=True),
        text_encoder=texts.clip(),
        text_encoder_2=texts.clip(projected=True),
        tokenizer=texts.clip_tokenizer,
        tokenizer_2=texts.clip_tokenizer,
        unet=_unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=width_of_each,
            projection_class_embeddings_input_dim=WIDTH + n_time_ids * width_of_each,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
        add_watermarker=False,
    ).save_pretrained(folder)


def stable_diffusion_3(folder: Path) -> None:
    """Stable Diffusion 3: a transformer with flow matching, two CLIP text encoders and T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    texts = _Texts(folder)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
        ),
        vae=_autoencoder(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=texts.clip(projected=True),
        text_encoder_2=texts.clip(projected=True),
        text_encoder_3=texts.t5(width=2 * WIDTH),
        tokenizer=texts.clip_tokenizer,
        tokenizer_2=texts.clip_tokenizer,
        tokenizer_3=texts.t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)


def flux_dev(folder: Path) -> None:
    """FLUX.1-dev: the guidance scale is an input of a model that was distilled from guided samples."""
    _flux(folder, guidance_embeds=True)


def flux_schnell(folder: Path) -> None:
    """FLUX.1-schnell: the same without that input."""
    _flux(folder, guidance_embeds=False)


def _flux(folder: Path, *, guidance_embeds: bool) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    texts = _Texts(folder)
    FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,  # 4 latent channels x 2 x 2
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ),
        vae=_autoencoder(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=texts.clip(),
        tokenizer=texts.clip_tokenizer,
        text_encoder_2=texts.t5(width=WIDTH),
        tokenizer_2=texts.t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)


TINY_PIPELINES: dict[str, Callable[[Path], None]] = {
    family.__name__: family
    for family in (
        stable_diffusion_1,
        stable_diffusion_2,
        stable_diffusion_xl,
        stable_diffusion_3,
        flux_dev,
        flux_schnell,
    )
}


def unconditional(folder: Path) -> None:
    """A diffusers pipeline that takes no text."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder)


class _Texts:
    """Tokenizers and text encoders of one pipeline, drawn from one seed."""

    def __init__(self, folder: Path):
        import torch

        from pipeline_lib.miniature import tokenizer

        torch.manual_seed(0)  # everything that follows, the image models included
        words = folder / "words"
        tokenizer.save(words, *tokenizer.train(CAPTIONS, merges=40))
        self.clip_tokenizer = tokenizer.clip_tokenizer(words)
        self.t5_tokenizer = tokenizer.t5_tokenizer(words)
        (words / "bpe.json").unlink()
        words.rmdir()

    def clip_config(self) -> Any:
        from transformers import CLIPTextConfig

        size = len(self.clip_tokenizer)
        return CLIPTextConfig(
            vocab_size=size,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=self.clip_tokenizer.model_max_length,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )

    def clip(self, *, projected: bool = False) -> Any:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        model = CLIPTextModelWithProjection if projected else CLIPTextModel
        return model(self.clip_config())

    def t5(self, width: int) -> Any:
        from transformers import T5Config, T5EncoderModel

        return T5EncoderModel(
            T5Config(vocab_size=len(self.t5_tokenizer), d_model=width, d_kv=8, d_ff=width, num_layers=1, num_heads=2)
        )


def _unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            **changes,
        }
    )


def _autoencoder(**changes: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        sample_size=32,
        **changes,
    )
