"""GLIDE as a `Generator`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from torch import nn

from pipeline_lib.devices import memory_errors, resolve
from pipeline_lib.errors import UserError
from pipeline_lib.generators.glide.pipeline import GlidePipeline
from pipeline_lib.generators.latent_diffusion import fastest_dtype


class Glide:
    """A `GlidePipeline` with its settings; see `pipeline_lib.generators.load_generator` for the arguments.

    `settings["steps"]` are the base model's; the upsampler's time steps belong to the model. GLIDE has one sampler, one
    size and no negative prompt: `settings` that ask for others raise `UserError`.
    """

    def __init__(self, model: str, revision: str | None, settings: Mapping[str, Any], *, device: str, compile: bool):
        self.device = resolve(device)
        self.dtype: str = fastest_dtype(self.device) if settings["dtype"] == "auto" else settings["dtype"]
        pipeline = _load(model, revision, getattr(torch, self.dtype))
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


def _load(model: str, revision: str | None, dtype: torch.dtype) -> GlidePipeline:
    diffusers_logging.disable_progress_bar()
    try:
        pipeline: GlidePipeline = GlidePipeline.from_pretrained(
            model, revision=revision, torch_dtype=dtype, local_files_only=Path(model).is_dir(), use_safetensors=True
        )
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"models.generator: {model!r} cannot be loaded: {error}") from error
    for name, component in pipeline.components.items():
        # diffusers only warns of weights that a file lacks, and leaves them without values.
        parameters = component.named_parameters() if isinstance(component, nn.Module) else ()
        missing = [key for key, value in parameters if value.is_meta]
        if missing:
            raise UserError(
                f"models.generator: {model!r} cannot be loaded: its {name} has no weights {', '.join(missing[:3])}"
                f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; convert or download the model again"
            )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
