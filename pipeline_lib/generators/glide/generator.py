"""GLIDE as a `Generator`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_lib.devices import memory_errors, resolve
from pipeline_lib.errors import UserError
from pipeline_lib.generators.folders import PipelineFolder
from pipeline_lib.generators.glide.pipeline import GlidePipeline
from pipeline_lib.generators.latent_diffusion import fastest_dtype
from pipeline_lib.generators.loading import load_pipeline


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
        self._steps, self._guidance_scale = settings["steps"], settings["guidance_scale"]
        self._pipeline = pipeline.to(self.device)
        for unet in (pipeline.unet, pipeline.upsampler_unet):
            unet.to(memory_format=torch.channels_last)
            if compile:
                unet.compile()

    @memory_errors
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float32]:
        """See `Generator.generate`. Noise is drawn on the CPU, with a random generator of its own per image."""
        images: NDArray[np.float32] = self._pipeline(
            prompts,
            num_inference_steps=self._steps,
            guidance_scale=self._guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        return images


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
