"""Real guidance in diffusers' text-to-image models: the image-to-image form of the same pipeline.

The grid of time steps is the scheduler's own. With "trailing" spacing, and in FLUX, the k-th last of S steps is at
k / S of T, which is t*/T. With "leading" spacing it is at (k - 1) / S; with "linspace", and in Stable Diffusion 3, at
(k - 1) / (S - 1), as in GLIDE. Starts are then a little less noisy, or, on a coarse grid, much less.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.errors import UserError
from pipeline_lib.generators.folders import KEY as MODEL_KEY
from pipeline_lib.generators.loading import unaltered
from pipeline_lib.generators.real_guidance import KEY, Start, as_images, prepare_all
from pipeline_lib.generators.sampling import output_size, parameters, sampling_arguments

CACHE_BYTES = 2**28  # about 2,000 references of Stable Diffusion 1.5, 500 of SDXL
# Pipelines whose image-to-image form takes latents in place of images, so that a reference is encoded once, in a batch
# with others; and the side of the squares of latents that their networks see as one.
_PATCH = {
    "StableDiffusionPipeline": 1,
    "StableDiffusionXLPipeline": 1,
    "StableDiffusion3Pipeline": 1,
    "FluxPipeline": 2,
}


class ImageToImage:
    """The image-to-image form of a text-to-image pipeline, of the same components, that starts from references.

    `settings` are the images'. Raises `UserError` for a pipeline that has no such form, and for a scheduler
    that cannot start in mid-way.
    """

    def __init__(self, pipeline: DiffusionPipeline, start: Start, settings: Mapping[str, Any]):
        name = type(pipeline).__name__
        if name not in _PATCH:
            raise UserError(
                f"{KEY}: the {name} of {MODEL_KEY} has no image-to-image form here; name a model that is a "
                f"GlidePipeline, {', '.join(_PATCH)}, or write 1.0 (no guidance) for every start"
            )
        grid = start.grid(settings["steps"], pipeline.scheduler.config.num_train_timesteps)
        self.pipeline = AutoPipelineForImage2Image.from_pipe(
            pipeline, scheduler=_starting_late(pipeline.scheduler, grid.made), **unaltered(type(pipeline))
        )
        self.pipeline.set_progress_bar_config(disable=True)
        taken = parameters(self.pipeline)  # height and width are not, where they are the image's
        self._arguments = {
            **{name: value for name, value in sampling_arguments(pipeline, settings).items() if name in taken},
            "num_inference_steps": grid.steps,
            # A fraction: the classes compute the first step from it each in its own way, and floats would be rounded.
            "strength": Fraction(grid.made, grid.steps),
        }
        multiple = pipeline.vae_scale_factor * _PATCH[name]  # of pixels: what is left over, the model does not draw
        height, width = output_size(pipeline, settings)
        self._size = height // multiple * multiple, width // multiple * multiple
        self._autoencoder = _Autoencoder(pipeline.vae, upcasts=name == "StableDiffusionXLPipeline")

    def prepared(self, references: Sequence[Image.Image]) -> list[NDArray[np.uint8]]:
        """References in the size of the images that are drawn (see `real_guidance.prepare`)."""
        return prepare_all(references, *self._size)

    def arguments(self, references: Sequence[Image.Image], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        """What the pipeline is called with, beside texts and generators, to draw an image from each of N references.

        As diffusers does it for an image alone, its generator first samples the latents of the reference from the
        autoencoder's posterior; the noise of Equation 9 comes next.
        """
        latents = self._autoencoder.latents(self.prepared(references), generators)
        return {**self._arguments, "image": latents}


class _Autoencoder:
    """An autoencoder, and what it said lately of references: each goes through it once.

    `upcasts`: whether a model whose configuration says so works in float32 where it would overflow in float16.
    """

    def __init__(self, vae: AutoencoderKL, *, upcasts: bool, cache_bytes: int = CACHE_BYTES):
        self._vae = vae
        self._upcasts = upcasts and vae.config.force_upcast and vae.dtype == torch.float16
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # digest -> mean and log variance, [1, 2C, h, w]

    def latents(self, references: Sequence[NDArray[np.uint8]], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Latents [N, C, h, w] of references [height, width, 3], sampled with a generator each and scaled as the
        networks know them."""
        posterior = DiagonalGaussianDistribution(torch.cat(self._posteriors(references)))
        latents: torch.Tensor = posterior.sample(generator=list(generators)).to(self._vae.dtype)
        config = self._vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (
                latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std)
            )
            latents = (latents - mean) / std
        return (latents - (config.shift_factor or 0.0)) * float(config.scaling_factor)

    def _posteriors(self, references: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        digests = [sha256(reference.tobytes()).digest() for reference in references]
        new = {digest: array for digest, array in zip(digests, references, strict=True) if digest not in self._cache}
        if new:
            encoded = self._encode(list(new.values()))
            self._cache |= {digest: row[None].clone() for digest, row in zip(new, encoded, strict=True)}
        for digest in digests:
            self._cache.move_to_end(digest)
        found = [self._cache[digest] for digest in digests]
        while len(self._cache) > max(1, self._cache_bytes // found[0].nbytes):
            self._cache.popitem(last=False)
        return found

    def _encode(self, references: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        vae = self._vae
        images = torch.from_numpy(as_images(references)).permute(0, 3, 1, 2) * 2 - 1
        dtype = torch.float32 if self._upcasts else vae.dtype
        parts = [part for part in (vae.encoder, vae.quant_conv) if part is not None and self._upcasts]
        for part in parts:
            part.float()
        try:
            parameters: torch.Tensor = vae.encode(images.to(vae.device, dtype)).latent_dist.parameters
        finally:  # before it decodes, the pipeline asks for the model's precision
            for part in parts:
                part.half()
        return parameters


def _starting_late(scheduler: SchedulerMixin, made: int) -> SchedulerMixin:
    """A scheduler that makes the last `made` of its steps: itself, or, where that goes wrong in diffusers, one that is
    set up like it and does so."""
    if type(scheduler) is LMSDiscreteScheduler:
        return _LateLMS.from_config(scheduler.config)
    if type(scheduler) is not PNDMScheduler:
        return scheduler
    if not scheduler.config.skip_prk_steps:
        raise UserError(
            f"images.scheduler: PNDMScheduler without skip_prk_steps makes Runge-Kutta steps at the noisiest end, so "
            f"it cannot start from a real image as {KEY} asks; name another one, DDIMScheduler say"
        )
    late: PNDMScheduler = _LatePNDM.from_config(scheduler.config)
    late.made = made
    return late


class _LatePNDM(PNDMScheduler):  # type: ignore[misc]
    """PNDM that makes its last steps only.

    It makes its first step twice, and has the time of the second once more in its list. In a list that is cut this
    repetition is missing, and from the third prediction on the network is told less noise than there is.
    """

    made: int

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """As PNDM's, with the repetition where the last `made` steps begin."""
        super().set_timesteps(num_inference_steps, device)
        times = torch.unique(self.timesteps).flip(0)
        second = len(times) - self.made + 1
        self.timesteps: torch.Tensor = torch.cat([times[: second + 1], times[second:]])


class _LateLMS(LMSDiscreteScheduler):  # type: ignore[misc]
    """A linear multistep method whose order grows with the steps that were made; LMS takes it from the number of the
    step in the list, and misses derivatives that nobody computed."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The weight of a past derivative, at the order that the derivatives allow."""
        weight: float = super().get_lms_coefficient(min(order, len(self.derivatives)), t, current_order)
        return weight
