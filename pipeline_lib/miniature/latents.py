"""Encode the corpus once: float16 latents of unit variance, so that the two trainings after it need no encoder."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from pipeline_lib.miniature import autoencoder, corpus


def main() -> None:
    """`python -m pipeline_lib.miniature.latents --corpus FOLDER --autoencoder FOLDER --out latents.safetensors`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the curated corpus")
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = AutoencoderKL.from_pretrained(args.autoencoder, torch_dtype=torch.float32)
    model = model.to(memory_format=torch.channels_last).eval()
    latents = autoencoder.encode(model, corpus.load(args.corpus).images) * model.config.scaling_factor
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_name(f".{args.out.name}")
    save_file({"latents": latents.contiguous()}, temporary)
    temporary.replace(args.out)


if __name__ == "__main__":
    main()
