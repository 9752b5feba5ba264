"""Text-to-image models that diffusers' AutoPipeline loads (Stable Diffusion and its kin)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForText2Image
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray

from pipeline_lib.errors import UserError

log = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def fastest_dtype(device: str) -> str:
    """float16 on a GPU; on a CPU bfloat16 where the processor multiplies it natively, else float32."""
    if device == "cuda":
        return "float16"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions of torch
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"


class LatentDiffusion:
    """A diffusers pipeline with classifier-free guidance in one batch (paper, Equation 8).

    `settings` has the keys steps, guidance_scale, height, width (None: the model's own) and dtype.
    """

    def __init__(self, model: str, revision: str | None, settings: Mapping[str, Any]):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = settings["dtype"]
        if dtype == "auto":
            dtype = fastest_dtype(self.device)
        self.dtype = dtype
        diffusers_logging.disable_progress_bar()
        try:
            self._pipeline = AutoPipelineForText2Image.from_pretrained(
                model,
                revision=revision,
                torch_dtype=_DTYPES[dtype],
                local_files_only=Path(model).is_dir(),
                use_safetensors=True,
            ).to(self.device)
        except (KeyError, OSError, ValueError) as error:
            raise UserError(f"models.generator: {model!r} cannot be loaded: {error}") from error
        self._pipeline.set_progress_bar_config(disable=True)
        for part in (getattr(self._pipeline, "unet", None), getattr(self._pipeline, "vae", None)):
            if part is not None:
                part.to(memory_format=torch.channels_last)
        self._settings = settings
        self._embedded: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float32]:
        """See `Generator.generate`. Noise is drawn on the CPU, with a random generator of its own per image."""
        arguments: dict[str, Any] = {
            "num_inference_steps": self._settings["steps"],
            "guidance_scale": self._settings["guidance_scale"],
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "output_type": "np",
        }
        for side in ("height", "width"):
            if self._settings[side] is not None:
                arguments[side] = self._settings[side]
        try:
            images = self._pipeline(**self._text(prompts), **arguments).images
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error
        return np.asarray(images, np.float32)

    def _text(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The pipeline's text arguments: each distinct prompt is embedded once, where the pipeline takes embeddings of
        Stable Diffusion's form; else the prompts themselves."""
        if type(self._pipeline).__name__ != "StableDiffusionPipeline":
            return {"prompt": list(prompts)}
        for prompt in {"", *prompts} - self._embedded.keys():
            self._embedded[prompt] = self._pipeline.encode_prompt(prompt, self.device, 1, False)[0][0]
        return {
            "prompt_embeds": torch.stack([self._embedded[prompt] for prompt in prompts]),
            "negative_prompt_embeds": torch.stack([self._embedded[""]] * len(prompts)),
        }
