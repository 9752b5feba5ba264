"""GLIDE as a `Generator`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.devices import memory_errors, resolve
from pipeline_lib.errors import UserError
from pipeline_lib.generators.folders import PipelineFolder
from pipeline_lib.generators.glide.pipeline import GlidePipeline, Reference
from pipeline_lib.generators.glide.tokens import text_limit
from pipeline_lib.generators.latent_diffusion import fastest_dtype
from pipeline_lib.generators.loading import load_pipeline
from pipeline_lib.generators.real_guidance import Grid, as_images, checked, prepare_all, start_of


class Glide:
    """A `GlidePipeline` with its settings; see `pipeline_lib.generators.load_generator` for the arguments.

    `settings["steps"]` are the base model's; the upsampler's time steps belong to the model. GLIDE has one sampler, one
    size and no negative prompt: `settings` that ask for others raise `UserError`.
    """

    def __init__(self, folder: PipelineFolder, settings: Mapping[str, Any], *, device: str, compile: bool):
        self.device = resolve(device)
        self.dtype: str = fastest_dtype(self.device) if settings["dtype"] == "auto" else settings["dtype"]
        pipeline = load_pipeline(folder, getattr(torch, self.dtype))
        _check_settings(settings, pipeline)
        self._grid = Grid(settings["steps"], settings["steps"])
        self._start = start_of(settings)
        if self._start is not None:
            self._grid = self._start.grid(settings["steps"], pipeline.scheduler.config.num_train_timesteps)
        self._guidance_scale = settings["guidance_scale"]
        self._pipeline = pipeline.to(self.device)
        for unet in (pipeline.unet, pipeline.upsampler_unet):
            unet.to(memory_format=torch.channels_last)
            if compile:
                unet.compile()

    @memory_errors
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], references: Sequence[Image.Image] | None = None
    ) -> NDArray[np.float32]:
        """See `Generator.generate`. Noise is drawn on the CPU, with a random generator of its own per image."""
        references = checked(references, prompts, self._start)
        reference = None
        if self._start is not None and not self._start.is_noise:
            if self._start.is_reference:
                return _prepared(references, self._pipeline.upsampler_unet)
            small = torch.from_numpy(_prepared(references, self._pipeline.unet)).permute(0, 3, 1, 2) * 2 - 1
            reference = Reference(small, self._grid.made)
        images: NDArray[np.float32] = self._pipeline(
            prompts,
            num_inference_steps=self._grid.steps,
            guidance_scale=self._guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
            reference=reference,
        ).images
        return images

    def read(self, prompt: str) -> str:
        """See `Generator.read`."""
        return text_limit(self._pipeline.tokenizer, self._pipeline.text_encoder.config.context).read(prompt)


def _prepared(references: Sequence[Image.Image], unet: UNet2DConditionModel) -> NDArray[np.float32]:
    """References in the size that a model draws: float32 [N, S, S, 3] in [0, 1]."""
    return as_images(prepare_all(references, unet.config.sample_size, unet.config.sample_size))


def _check_settings(settings: Mapping[str, Any], pipeline: GlidePipeline) -> None:
    trained = pipeline.scheduler.config.num_train_timesteps
    if not 2 <= settings["steps"] <= trained:
        raise UserError(f"images.steps: GLIDE takes 2 to {trained} steps, not {settings['steps']}")
    if settings["negative_prompt"]:
        raise UserError(
            f"images.negative_prompt: {settings['negative_prompt']!r} is not allowed: GLIDE's guidance leads away from "
            f'no prompt, as in the paper; write ""'
        )
    if settings["scheduler"] is not None:
        raise UserError(
            f"images.scheduler: {settings['scheduler']!r} is not allowed: GLIDE has samplers of its own (ancestral, "
            f"then DDIM for the upsampler); write null"
        )
    size = pipeline.upsampler_unet.config.sample_size
    for side in ("height", "width"):
        if settings[side] not in (None, size):
            raise UserError(
                f"images.{side}: GLIDE's images have {size} x {size} pixels, not {settings[side]}; write null"
            )
