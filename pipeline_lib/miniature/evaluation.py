"""Figures for the model cards, all on the validation part; the test split is never read here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.miniature import autoencoder, captions, clip, fidelity, targets, training


@torch.no_grad()
def image_features(model: Any, images: NDArray[np.uint8], batch: int = 500) -> torch.Tensor:
    """CLIP features of unit length, float32 [N, D], of uint8 [N, 32, 32, 3]."""
    parts = [
        model.encode_image(clip.to_tensor(images[first : first + batch]), normalize=True)
        for first in range(0, len(images), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def zero_shot_head(model: Any, tokens: Any, kind: str) -> torch.Tensor:
    """Class prototypes of one target, float32 [C, D]: mean over its head templates."""
    target = targets.TARGETS[kind]
    prompts = [[template.format(name) for template in target.head] for name in target.class_names]
    means = torch.stack([model.encode_text(tokens(row), normalize=True).mean(0) for row in prompts])
    return F.normalize(means, dim=-1)


def tune(head: torch.Tensor, features: torch.Tensor, classes: torch.Tensor, scale: float) -> torch.Tensor:
    """A linear head started from the prototypes, trained on features [N, D] with cross-entropy; returns [C, D]."""
    head = head.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([head], lr=2e-3, weight_decay=0.0)
    for _ in range(300):
        value = F.cross_entropy(scale * features @ F.normalize(head, dim=-1).t(), classes)
        training.update(optimizer, value)
    return F.normalize(head.detach(), dim=-1)


def clip_figures(folder: Path, data: Path, shots: tuple[int, ...] = (16, 256)) -> dict[str, dict[str, float]]:
    """Per target: accuracy on validation of the zero-shot head and of heads tuned on real shots of the pool."""
    model, _, tokens = clip.load_clip(folder)
    scale = model.logit_scale.exp().item()
    images, labels, indices = fashion_mnist.load_split(data, "validation")
    pool_images, pool_labels, pool_indices = fashion_mnist.load_split(data, "pool")
    found: dict[str, dict[str, float]] = {}
    for kind, target in targets.TARGETS.items():
        rows, classes = targets.select(kind, labels)
        features = image_features(model, targets.render(kind, images[rows], indices[rows]))
        truth = torch.from_numpy(classes)
        head = zero_shot_head(model, tokens, kind)
        accuracy = {"zero-shot": float(((features @ head.t()).argmax(1) == truth).float().mean())}
        rows, classes = targets.select(kind, pool_labels)
        pool = image_features(model, targets.render(kind, pool_images[rows], pool_indices[rows]))
        for count in shots:
            chosen = np.concatenate([np.flatnonzero(classes == c)[:count] for c in range(len(target.classes))])
            tuned = tune(head, pool[chosen], torch.from_numpy(classes[chosen]), scale)
            accuracy[f"{count} real shots"] = float(((features @ tuned.t()).argmax(1) == truth).float().mean())
        found[kind] = accuracy
    return found


@torch.no_grad()
def reconstruction_figures(vae: Any, judge: Any, data: Path, count: int = 1000) -> dict[str, dict[str, float]]:
    """Per target: accuracy of the judge on real validation images and on their reconstructions."""
    images, labels, indices = fashion_mnist.load_split(data, "validation")
    every = len(labels) // count
    images, labels, indices = images[::every], labels[::every], indices[::every]
    found = {}
    for kind in fidelity.KINDS:
        real = targets.render(kind, images, indices)
        decoded = vae.decode(vae.encode(autoencoder.to_tensor(real)).latent_dist.mean).sample
        shown = from_tensor(decoded)
        found[kind] = {
            "real": float((fidelity.judge(judge, real) == labels).mean()),
            "reconstructed": float((fidelity.judge(judge, shown) == labels).mean()),
        }
    return found


def from_tensor(images: torch.Tensor) -> NDArray[np.uint8]:
    """float [N, 3, H, W] in -1..1 -> uint8 [N, H, W, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def load_pipeline(folder: Path) -> Any:
    """The text-to-image folder as a float32 pipeline without progress bars."""
    from diffusers import AutoPipelineForText2Image

    pipeline = AutoPipelineForText2Image.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    return pipeline


def sample(pipeline: Any, prompts: list[str], seed: int, steps: int, guidance: float) -> NDArray[np.uint8]:
    """One image per prompt, uint8 [N, 32, 32, 3]; each has its own seed."""
    parts = []
    for first in range(0, len(prompts), 64):
        batch = prompts[first : first + 64]
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + first + row) for row in range(len(batch))]
        made = pipeline(
            batch, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
        )
        parts.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def generation_figures(
    pipeline: Any, judge: Any, per_class: int, steps: int, guidance: float
) -> tuple[dict[str, dict[str, float]], dict[str, NDArray[np.uint8]]]:
    """Per target: share of images in which the judge sees the class asked for, images per second; and the images."""
    found, shown = {}, {}
    for kind in fidelity.KINDS:
        target = targets.TARGETS[kind]
        labels = np.repeat(np.array(target.classes), per_class)
        prompts = [basic_prompt(kind, fashion_mnist.CLASS_NAMES[label]) for label in labels]
        started = time.perf_counter()
        images = sample(pipeline, prompts, 1, steps, guidance)
        rate = len(images) / (time.perf_counter() - started)
        found[kind] = {
            "images of the class asked for": float((fidelity.judge(judge, images) == labels).mean()),
            "images/s": rate,
        }
        shown[kind] = images
    return found, shown


def basic_prompt(kind: str, name: str) -> str:
    """The target's basic prompt with the class name in it, and 'a' made 'an' where English wants it."""
    return targets.TARGETS[kind].basic.replace("a {}", captions.with_article(name)).format(name)
