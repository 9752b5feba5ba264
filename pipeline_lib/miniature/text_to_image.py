"""Train the small latent diffusion model (Rombach et al., 2022) and write it as a Stable-Diffusion-style folder.

A UNet with cross attention learns on cached latents, together with its text encoder: v-prediction (Salimans and Ho,
2022), cosine schedule (Nichol and Dhariwal, 2021), min-SNR weights (Hang et al., 2023), captions dropped at random
for classifier-free guidance (Ho and Salimans, 2022), exponential moving average of the weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline_lib.miniature import corpus, tokenizer, training

LATENT_SIZE, LATENT_CHANNELS = 8, 4
MIN_SNR_GAMMA = 5.0


class Denoiser(torch.nn.Module):
    """UNet and text encoder, trained as one."""

    def __init__(self, vocabulary: int, channels: list[int], text_width: int, text_layers: int) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            # Attention at 4x4 alone: words act on the layout, convolutions at 8x8 fill it in; a third faster.
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            block_out_channels=tuple(channels),
            layers_per_block=1,
            cross_attention_dim=text_width,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        # For so few tokens plain matrix products beat the fused kernel's backward pass on CPU.
        self.unet.set_attn_processor(AttnProcessor())
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=text_width,
                intermediate_size=2 * text_width,
                num_hidden_layers=text_layers,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.CONTEXT,
                projection_dim=text_width,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
            )
        )

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicted v, [N, 4, 8, 8]; timesteps int64 [N]; tokens int64 [N, CONTEXT]."""
        states = self.text(input_ids=tokens).last_hidden_state
        predicted: torch.Tensor = self.unet(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return predicted


def scheduler() -> DPMSolverMultistepScheduler:
    """The sampler stored with the model: DPM-Solver++ of second order (Lu et al., 2022)."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        solver_order=2,
    )


def loss(
    model: Denoiser,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    alphas: torch.Tensor,
) -> torch.Tensor:
    """Min-SNR-weighted squared error of v; latents float32 [N, 4, 8, 8] of unit variance."""
    noise = torch.randn_like(latents)
    # Stratified times: every batch covers the whole schedule.
    count = len(latents)
    times = ((torch.randperm(count) + torch.rand(count)) / count * len(alphas)).long()
    alpha = alphas[times][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(noisy.contiguous(memory_format=torch.channels_last), times, tokens)
    snr = alphas[times] / (1 - alphas[times])
    weight = snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1)
    squared = (predicted.float() - target).square().mean(dim=(1, 2, 3))
    average: torch.Tensor = (weight * squared).mean() / weight.mean()
    return average


def train(latents: torch.Tensor, tokens: torch.Tensor, vocabulary: int, work: Path, chosen: dict[str, Any]) -> Denoiser:
    """Train from the last checkpoint in `work`, if any; returns the averaged model.

    Args:
        latents: float16 [N, 4, 8, 8], scaled to unit variance.
        tokens: int64 [N + 1, CONTEXT], captions; the last row is the empty caption.
    """
    torch.manual_seed(chosen["seed"])
    model = Denoiser(vocabulary, chosen["channels"], chosen["text_width"], chosen["text_layers"])
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen["lr"], weight_decay=0.01, betas=(0.9, 0.99))
    average = [value.detach().clone() for value in model.parameters()]
    saved = training.load_checkpoint(work / "checkpoint.pt", chosen, free=("steps", "cooldown"))
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average = saved["average"]
        first = saved["step"]
    if chosen["compile"]:
        model.compile()
    alphas = scheduler().alphas_cumprod
    notes: dict[str, float] = {}
    smooth = 0.0
    for step in training.progress("text_to_image", first, chosen["steps"], notes):
        torch.manual_seed(chosen["seed"] * 1_000_003 + step)  # a resumed run draws the same numbers
        rows = training.batch_rows(chosen["seed"], step, chosen["batch"], len(latents))
        words = torch.where(torch.rand(len(rows)) < chosen["caption_dropout"], len(latents), rows)
        training.set_learning_rate(
            optimizer,
            training.trapezoid(step, chosen["lr"], chosen["warmup"], chosen["steps"], chosen["cooldown"]),
        )
        value = loss(model, latents[rows].float(), tokens[words], alphas)
        training.update(optimizer, value)
        decay = min(chosen["ema"], (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [value.detach() for value in model.parameters()], 1 - decay)
        smooth += (value.item() - smooth) * max(0.01, 1 / (step - first + 1))
        notes["loss"] = smooth
        if (step + 1) % chosen["checkpoint_every"] == 0 or step + 1 == chosen["steps"]:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            training.save_checkpoint(work / "checkpoint.pt", {**state, "step": step + 1}, chosen)
    return averaged(model, average)


def averaged(model: Denoiser, average: list[torch.Tensor]) -> Denoiser:
    """The model with the averaged weights in place of its own."""
    with torch.no_grad():
        for value, mean in zip(model.parameters(), average, strict=True):
            value.copy_(mean)
    return model.eval()


def export(model: Denoiser, autoencoder: Path, bpe: Path, out: Path) -> None:
    """Write the folder that `diffusers.AutoPipelineForText2Image.from_pretrained` loads, half precision."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(autoencoder),
        text_encoder=model.text,
        tokenizer=tokenizer.clip_tokenizer(bpe),
        unet=model.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(out)
    # diffusers writes down where the autoencoder came from: a path that means nothing elsewhere.
    config = out / "vae" / "config.json"
    kept = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")


def main() -> None:
    """`python -m pipeline_lib.miniature.text_to_image --corpus ... --latents ... --autoencoder ... --out ...`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the curated corpus")
    parser.add_argument("--latents", type=Path, required=True, help="its latents, made by pipeline_lib...latents")
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=training.SETTINGS)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export-only", action="store_true", help="write the last checkpoint, train no further")
    args = parser.parse_args()
    chosen = training.settings_for(
        args.settings, "text_to_image", [args.latents, args.corpus / "captions.jsonl", args.tokenizer / "bpe.json"]
    )
    words = tokenizer.clip_tokenizer(args.tokenizer)
    if args.export_only:
        model = Denoiser(len(words), chosen["channels"], chosen["text_width"], chosen["text_layers"])
        saved = training.load_checkpoint(args.work / "checkpoint.pt", chosen, free=("steps", "cooldown"))
        if saved is None:
            raise SystemExit(f"no checkpoint in {args.work}: train first")
        model.load_state_dict(saved["model"])
        model = averaged(model, saved["average"])
    else:
        latents = load_file(args.latents)["latents"]
        captions = corpus.load(args.corpus).captions[: len(latents)]
        ids = words([*captions, ""], padding="max_length", max_length=tokenizer.CONTEXT, truncation=True)["input_ids"]
        model = train(latents, torch.tensor(ids), len(words), args.work, chosen)
    export(model, args.autoencoder, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
