"""Train the autoencoder of the small latent-diffusion model (Rombach et al., 2022): 32x32x3 <-> 8x8x4.

Loss: squared error + squared error of the images' gradients (edges are what recognition needs) + a tiny KL.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from pipeline_lib.miniature import corpus, training

LATENT_CHANNELS = 4


def create(channels: list[int]) -> AutoencoderKL:
    """An untrained autoencoder whose sides shrink by four."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, 32, 32, 3] -> float32 [N, 3, 32, 32] in -1..1, channels last."""
    tensor = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def gradients(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of neighbouring pixels along both axes."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def loss(
    model: AutoencoderKL, images: torch.Tensor, kl: float, gradient_loss: float, notes: dict[str, float]
) -> torch.Tensor:
    """Training loss of a batch float32 [N, 3, 32, 32]."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(images).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        decoded = model.decode(latents).sample
    decoded = decoded.float()
    squared = F.mse_loss(decoded, images)
    pairs = zip(gradients(decoded), gradients(images), strict=True)
    edges = torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs]).sum()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    notes.update(mse=squared.item(), edges=edges.item(), kl=divergence.item())
    total: torch.Tensor = squared + gradient_loss * edges + kl * divergence
    return total


def train(images: np.ndarray, out: Path, chosen: dict[str, Any]) -> AutoencoderKL:
    """Train on uint8 [N, 32, 32, 3], from the last checkpoint in `out` if there is one."""
    torch.manual_seed(chosen["seed"])
    model = create(chosen["channels"]).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen["lr"], weight_decay=1e-4, betas=(0.9, 0.99))
    found = training.load_checkpoint(out / "checkpoint.pt", chosen)
    first = 0
    if found:
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        first = found["step"]
    if chosen["compile"]:
        model.encoder.compile()
        model.decoder.compile()
    notes: dict[str, float] = {}
    for step in training.progress("autoencoder", first, chosen["steps"], notes):
        torch.manual_seed(chosen["seed"] * 1_000_003 + step)  # a resumed run draws the same numbers
        rows = training.batch_rows(chosen["seed"], step, chosen["batch"], len(images)).sort().values.numpy()
        training.set_learning_rate(
            optimizer, training.learning_rate(step, chosen["lr"], chosen["warmup"], chosen["steps"])
        )
        value = loss(model, to_tensor(images[rows]), chosen["kl"], chosen["gradient_loss"], notes)
        training.update(optimizer, value)
        if (step + 1) % chosen["checkpoint_every"] == 0 or step + 1 == chosen["steps"]:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            training.save_checkpoint(out / "checkpoint.pt", state, chosen)
    return model.eval()


@torch.no_grad()
def encode(model: AutoencoderKL, images: np.ndarray, batch: int = 256) -> torch.Tensor:
    """Latent means of uint8 [N, 32, 32, 3]: float16 [N, 4, 8, 8], before scaling."""
    parts = []
    for first in range(0, len(images), batch):
        with torch.autocast("cpu", torch.bfloat16):
            moments = model.encode(to_tensor(images[first : first + batch])).latent_dist.mean
        parts.append(moments.to(torch.float16))
    return torch.cat(parts)


def export(model: AutoencoderKL, images: np.ndarray, out: Path) -> None:
    """Save as a `diffusers` folder, half precision, with the scale that gives latents unit variance."""
    scale = 1 / float(encode(model, images[:4096]).float().std())
    model.register_to_config(scaling_factor=round(scale, 5))
    model.half().save_pretrained(out)


def main() -> None:
    """`python -m pipeline_lib.miniature.autoencoder --corpus FOLDER --out FOLDER`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the curated corpus")
    parser.add_argument("--settings", type=Path, default=training.SETTINGS)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    images = corpus.load(args.corpus).images
    chosen = training.settings_for(args.settings, "autoencoder", [args.corpus / "captions.jsonl"])
    model = train(images, args.work, chosen)
    export(model, images, args.out)


if __name__ == "__main__":
    main()
