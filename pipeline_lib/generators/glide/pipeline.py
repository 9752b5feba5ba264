"""GLIDE as a diffusers pipeline: text -> 64 x 64 -> 256 x 256 pixels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from torch.nn import functional as F
from transformers import GPT2Tokenizer

from pipeline_lib.generators.glide.schedulers import GlideAncestralScheduler, GlideDDIMScheduler
from pipeline_lib.generators.glide.sizes import COLOURS
from pipeline_lib.generators.glide.text import GlideTextEncoder, TextFeatures
from pipeline_lib.generators.glide.tokens import encode

NoiseSource = Callable[[tuple[int, int, int]], torch.Tensor]
"""Fresh standard normal noise for every image of a batch: image shape (3, S, S) -> float32 [N, 3, S, S]."""


class Reference(NamedTuple):
    """Real images that the base model starts from (paper, A.2)."""

    images: torch.Tensor
    """float32 [N, 3, S, S] in [-1, 1], in the base model's size."""
    steps: int
    """How many steps are made, at least 1: the last ones."""


class GlidePipeline(DiffusionPipeline):  # type: ignore[misc]
    """The sampling of the original's text2im notebook: ancestral steps with classifier-free guidance of the predicted
    noise, then the upsampler's DDIM steps without guidance.

    `upsampler_temperature` scales the upsampler's start noise. Images are float32 throughout, whatever the models'
    precision is.
    """

    def __init__(
        self,
        tokenizer: GPT2Tokenizer,
        text_encoder: GlideTextEncoder,
        unet: UNet2DConditionModel,
        scheduler: GlideAncestralScheduler,
        upsampler_text_encoder: GlideTextEncoder,
        upsampler_unet: UNet2DConditionModel,
        upsampler_scheduler: GlideDDIMScheduler,
        upsampler_temperature: float = 0.997,
    ):
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=unet,
            scheduler=scheduler,
            upsampler_text_encoder=upsampler_text_encoder,
            upsampler_unet=upsampler_unet,
            upsampler_scheduler=upsampler_scheduler,
        )
        self.register_to_config(upsampler_temperature=upsampler_temperature)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 100,
        guidance_scale: float = 3.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        reference: Reference | None = None,
    ) -> ImagePipelineOutput:
        """One image per prompt, as PIL images or, with `output_type="np"`, float32 [N, S, S, 3] in [0, 1].

        With one random generator per image, an image does not depend on the others of the batch: its start noise, then
        that of each base step but the last, then that of the upsampler are drawn from its own. With `reference`, the
        base model starts from it; the upsampler works as ever (paper, A.2).
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        noise = self._noise_source(generator, len(prompts))
        small = self.draw(prompts, noise, num_inference_steps, guidance_scale, reference)
        images = (self.upsample(prompts, small, noise) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(images=images if output_type == "np" else self.numpy_to_pil(images))

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        noise: NoiseSource,
        num_inference_steps: int,
        guidance_scale: float,
        reference: Reference | None = None,
    ) -> torch.Tensor:
        """The base model's images, float32 [N, 3, S, S] in [-1, 1].

        Guidance, in one batch with the empty prompt, moves the predicted noise; the variance is that of the prompt
        itself. A scale of 1 is no guidance and saves half of the work.

        With `reference`, only the last `reference.steps` of the steps are made, from its images with the noise that
        belongs to the first of them. The paper's released code does the same: t* is the (t* - 1)-th of its 100 steps,
        counted from 0. It has t* = 20 throughout, draws every image of a reference with one prompt, and has no seeds.
        """
        guided = guidance_scale != 1
        text = self._text(self.text_encoder, [*prompts, *([""] * len(prompts) if guided else [])])
        size = self.unet.config.sample_size
        sample = noise((COLOURS, size, size))
        self.scheduler.set_timesteps(num_inference_steps)
        steps = self.scheduler.timesteps
        if reference is not None:
            steps = steps[-reference.steps :]
            sample = self.scheduler.add_noise(reference.images.to(sample), sample, steps[0])
        for step in self.progress_bar(steps):
            predicted = self._predict(self.unet, torch.cat([sample, sample]) if guided else sample, step, text)
            own = predicted[: len(prompts)]
            eps, interpolation = own[:, :COLOURS], own[:, COLOURS:]
            if guided:
                unconditional = predicted[len(prompts) :, :COLOURS]
                eps = unconditional + guidance_scale * (eps - unconditional)
            is_last = step == steps[-1]
            # Drawn while the device is still busy with the prediction.
            fresh = torch.zeros_like(sample) if is_last else noise((COLOURS, size, size))
            sample = self.scheduler.step(eps, interpolation, step, sample, fresh)
        return sample

    @torch.no_grad()
    def upsample(self, prompts: Sequence[str], small: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        """The upsampler's images, float32 [N, 3, S, S] in [-1, 1], from the base model's.

        Those are rounded to the 8 bits of a stored image, as in the original's notebook, and enlarged bilinearly.
        """
        text = self._text(self.upsampler_text_encoder, prompts)
        size = self.upsampler_unet.config.sample_size
        rounded = ((small + 1) * 127.5).round() / 127.5 - 1
        enlarged = F.interpolate(rounded, (size, size), mode="bilinear", align_corners=False)
        sample: torch.Tensor = noise((COLOURS, size, size)) * self.config.upsampler_temperature
        for step in self.progress_bar(self.upsampler_scheduler.timesteps):
            predicted = self._predict(self.upsampler_unet, torch.cat([sample, enlarged], dim=1), step, text)
            sample = self.upsampler_scheduler.step(predicted[:, :COLOURS], step, sample)
        return sample

    def _predict(self, unet: UNet2DConditionModel, images: torch.Tensor, step: int, text: TextFeatures) -> torch.Tensor:
        steps = torch.full((len(images),), step, device=images.device)
        output = unet(
            images.to(unet.dtype), steps, encoder_hidden_states=text.tokens, class_labels=text.pooled, return_dict=False
        )
        predicted: torch.Tensor = output[0].float()
        return predicted

    def _text(self, encoder: GlideTextEncoder, texts: Sequence[str]) -> TextFeatures:
        """Features of each text; a text that occurs several times is encoded once."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        tokens, is_text = encode(self.tokenizer, list(numbers), encoder.config.context)
        features: TextFeatures = encoder(tokens.to(encoder.device), is_text.to(encoder.device))
        return features.rows([numbers[text] for text in texts])

    def _noise_source(self, generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> NoiseSource:
        generators = [generator] * count if generator is None or isinstance(generator, torch.Generator) else generator
        if len(generators) != count:
            raise ValueError(f"generator: {len(generators)} random generators for {count} prompts; give one per prompt")

        def fresh(shape: tuple[int, int, int]) -> torch.Tensor:
            noise = torch.stack([torch.randn(shape, generator=own) for own in generators])
            if self.device.type == "cuda":
                noise = noise.pin_memory()
            return noise.to(self.device, non_blocking=True)

        return fresh
