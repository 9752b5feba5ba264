"""Text-to-image models that diffusers' AutoPipeline knows (Stable Diffusion and its kin)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.devices import memory_errors, resolve
from pipeline_lib.errors import UserError
from pipeline_lib.generators.folders import PipelineFolder
from pipeline_lib.generators.image_to_image import ImageToImage
from pipeline_lib.generators.loading import load_pipeline
from pipeline_lib.generators.reading import pipeline_limits, read_part
from pipeline_lib.generators.real_guidance import as_images, checked, start_of
from pipeline_lib.generators.sampling import guidance, sampling_arguments, set_scheduler
from pipeline_lib.generators.text import TextEncoder

log = logging.getLogger(__name__)


def fastest_dtype(device: str) -> str:
    """float16 on a GPU; on a CPU bfloat16 where the processor multiplies it natively, else float32."""
    if device == "cuda":
        return "float16"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions of torch
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"


class LatentDiffusion:
    """A diffusers pipeline with classifier-free guidance in one batch (paper, Equation 8).

    See `pipeline_lib.generators.load_generator` for the arguments.
    """

    def __init__(self, folder: PipelineFolder, settings: Mapping[str, Any], *, device: str, compile: bool):
        self.device = resolve(device)
        self.dtype: str = fastest_dtype(self.device) if settings["dtype"] == "auto" else settings["dtype"]
        self._pipeline = load_pipeline(folder, getattr(torch, self.dtype))
        set_scheduler(self._pipeline, settings["scheduler"])
        self._arguments = sampling_arguments(self._pipeline, settings)
        self._size = settings["height"], settings["width"]
        guided = guidance(self._pipeline, settings).is_classifier_free
        self._text = TextEncoder(self._pipeline, settings["negative_prompt"] if guided else None)
        self._limits = list(pipeline_limits(self._pipeline))
        self._pipeline.to(self.device)
        self._start = start_of(settings)
        self._guided: ImageToImage | None = None
        if self._start is not None and not self._start.is_noise:
            self._guided = ImageToImage(self._pipeline, self._start, settings)
        for network in _networks(self._pipeline):
            _use_channels_last(network)
            if compile:
                network.compile()
        log.info(
            "%s with %s, %s on %s; safety checker and watermark are off",
            folder.class_name,
            type(self._pipeline.scheduler).__name__,
            self.dtype,
            self.device,
        )

    @memory_errors
    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], references: Sequence[Image.Image] | None = None
    ) -> NDArray[np.float32]:
        """See `Generator.generate`. Noise is drawn on the CPU, with a random generator of its own per image."""
        references = checked(references, prompts, self._start)
        random_state = self._random_state()
        images = self._draw(prompts, seeds, references)
        if self._random_state() != random_state:
            raise UserError(
                f"images.scheduler: {type(self._pipeline.scheduler).__name__} draws noise that does not come from the "
                f"image's own seed, so no image could be drawn a second time; name another one"
            )
        for side, asked, drawn in zip(("height", "width"), self._size, images.shape[1:3], strict=True):
            if asked not in (None, drawn):
                raise UserError(
                    f"images.{side}: the model draws {drawn} pixels where {asked} were asked for; write {drawn}, or "
                    f"another multiple of what it works in"
                )
        return images

    def read(self, prompt: str) -> str:
        """See `Generator.read`."""
        return read_part(self._limits, prompt)

    def _random_state(self) -> list[bytes]:
        """The state of torch's own random generators, which no image may be drawn from."""
        states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.device == "cuda" else [])]
        return [state.numpy().tobytes() for state in states]

    def _draw(
        self, prompts: Sequence[str], seeds: Sequence[int], references: Sequence[Image.Image]
    ) -> NDArray[np.float32]:
        if self._start is not None and self._start.is_reference and self._guided is not None:
            return as_images(self._guided.prepared(references))
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        pipeline, arguments = self._pipeline, self._arguments
        if self._guided is not None:
            pipeline, arguments = self._guided.pipeline, self._guided.arguments(references, generators)
        try:
            drawn = pipeline(
                **self._text.arguments(prompts),
                **arguments,
                generator=generators,
                output_type="np",
            )
        except ValueError as error:  # the pipeline's own check of its arguments
            raise UserError(f"models.generator: the {type(pipeline).__name__} refuses to draw: {error}") from error
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UserError(
                f"images.compile: true does not work on this machine: {str(error).splitlines()[0]}; write false, or "
                f"install what is missing"
            ) from error
        return np.asarray(drawn.images, np.float32)


def _networks(pipeline: DiffusionPipeline) -> list[torch.nn.Module]:
    """The networks that sampling spends its time in: what predicts the noise, and what decodes the latents."""
    found = [getattr(pipeline, name, None) for name in ("unet", "transformer")]
    found.append(getattr(getattr(pipeline, "vae", None), "decoder", None))
    return [network for network in found if isinstance(network, torch.nn.Module)]


def _use_channels_last(network: torch.nn.Module) -> None:
    """The memory format in which convolutions are fast; it exists for images alone, not for volumes."""
    if all(parameter.dim() <= 4 for parameter in network.parameters()):
        network.to(memory_format=torch.channels_last)
