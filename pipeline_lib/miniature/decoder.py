"""Train the decoder on, with the encoder frozen: from cached latents, with a loss on CLIP's early features.

Latents stay what they are, so the generator can learn on them at the same time. The feature loss (Johnson et al.,
2016; here the first two stages of the small CLIP) asks for what recognition sees, where squared error blurs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from pipeline_lib.miniature import autoencoder, corpus, training
from pipeline_lib.miniature.clip import load_clip


def features(visual: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the stem and of the first two stages for float32 [N, 3, 32, 32] in -1..1."""
    stem = visual.stem(images)
    first = visual.layer1(stem)
    return [stem, first, visual.layer2(first)]


def loss(
    model: AutoencoderKL,
    visual: Any,
    latents: torch.Tensor,
    images: torch.Tensor,
    chosen: dict[str, Any],
    notes: dict[str, float],
) -> torch.Tensor:
    """Squared error + gradients + features, each feature map divided by its own mean square."""
    with torch.autocast("cpu", torch.bfloat16):
        decoded = model.decode(latents.contiguous(memory_format=torch.channels_last)).sample
        with torch.no_grad():
            wanted = features(visual, images)
        got = features(visual, decoded)
    decoded = decoded.float()
    squared = F.mse_loss(decoded, images)
    pairs = zip(autoencoder.gradients(decoded), autoencoder.gradients(images), strict=True)
    edges = torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).sum()
    ratios = [
        F.mse_loss(ours.float(), theirs.float()) / theirs.float().square().mean()
        for ours, theirs in zip(got, wanted, strict=True)
    ]
    perceived = torch.stack(ratios).mean()
    notes.update(mse=squared.item(), edges=edges.item(), features=perceived.item())
    total: torch.Tensor = squared + chosen["gradient_loss"] * edges + chosen["feature_loss"] * perceived
    return total


def train(
    model: AutoencoderKL,
    visual: Any,
    latents: torch.Tensor,
    images: np.ndarray,
    work: Path,
    chosen: dict[str, Any],
) -> AutoencoderKL:
    """Train the decoder; latents float16 [N, 4, 8, 8] of unit variance, images uint8 [N, 32, 32, 3]."""
    for network in (model, visual):
        network.requires_grad_(False)
    trained = [model.decoder, model.post_quant_conv]
    for part in trained:
        part.requires_grad_(True)
    parameters = [value for part in trained for value in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=chosen["lr"], weight_decay=1e-4, betas=(0.9, 0.99))
    saved = training.load_checkpoint(work / "checkpoint.pt", chosen)
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    if chosen["compile"]:
        model.decoder.compile()
    scale = float(model.config.scaling_factor)
    notes: dict[str, float] = {}
    for step in training.progress("decoder", first, chosen["steps"], notes):
        torch.manual_seed(chosen["seed"] * 1_000_003 + step)
        rows = training.batch_rows(chosen["seed"], step, chosen["batch"], len(latents)).sort().values
        rate = training.learning_rate(step, chosen["lr"], chosen["warmup"], chosen["steps"])
        training.set_learning_rate(optimizer, rate)
        # A little noise, because the generator's latents are not perfect either.
        noisy = latents[rows].float() + chosen["latent_noise"] * torch.randn(len(rows), *latents.shape[1:])
        value = loss(model, visual, noisy / scale, autoencoder.to_tensor(images[rows.numpy()]), chosen, notes)
        training.update(optimizer, value)
        if (step + 1) % chosen["checkpoint_every"] == 0 or step + 1 == chosen["steps"]:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            training.save_checkpoint(work / "checkpoint.pt", state, chosen)
    return model.eval()


def main() -> None:
    """`python -m pipeline_lib.miniature.decoder --corpus ... --latents ... --autoencoder ... --clip ... --out ...`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the curated corpus")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, required=True, help="what autoencoder wrote")
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=training.SETTINGS)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = AutoencoderKL.from_pretrained(args.autoencoder, torch_dtype=torch.float32)
    visual = load_clip(args.clip)[0].visual
    model = train(
        model.to(memory_format=torch.channels_last).train(),
        visual.to(memory_format=torch.channels_last).eval(),
        load_file(args.latents)["latents"],
        corpus.load(args.corpus).images,
        args.work,
        training.settings_for(args.settings, "decoder", [args.latents, args.clip / "open_clip_model.safetensors"]),
    )
    model.half().save_pretrained(args.out)


if __name__ == "__main__":
    main()
