"""The text arguments of a diffusers pipeline: each distinct prompt goes through the text encoders once."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline

from pipeline_lib.generators.sampling import parameters

CACHE_BYTES = 2**30  # about 9,000 prompts of Stable Diffusion 1.5, 3,400 of SDXL, 390 of SD3, 250 of FLUX
Embedding = Mapping[str, torch.Tensor]  # argument of the pipeline -> [1, ...]

_NAMES = ("prompt_embeds", "negative_prompt_embeds")
_POOLED_NAMES = (*_NAMES, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@dataclass(frozen=True)
class _Form:
    """How a pipeline class's encode_prompt is called, and which arguments of the pipeline it returns, in order."""

    returns: tuple[str, ...]
    more_prompts: tuple[str, ...] = ()  # for further text encoders; None: the same text
    negative: bool = True  # whether one call encodes both prompts


# Pipelines that are not here get the prompts themselves, and encode every one of every batch.
_FORMS = {
    "StableDiffusionPipeline": _Form(_NAMES),
    "StableDiffusionXLPipeline": _Form(_POOLED_NAMES, ("prompt_2",)),
    "StableDiffusion3Pipeline": _Form(_POOLED_NAMES, ("prompt_2", "prompt_3")),
    "FluxPipeline": _Form(("prompt_embeds", "pooled_prompt_embeds"), ("prompt_2",), negative=False),
}


@dataclass
class TextEncoder:
    """The text encoders of a pipeline, and what they said lately.

    `negative_prompt` is what guidance leads away from: "" is no prompt, None is no guidance. Prompts are encoded one by
    one, so that what else is in a batch plays no part.
    """

    pipeline: DiffusionPipeline
    negative_prompt: str | None
    cache_bytes: int = CACHE_BYTES
    _cache: OrderedDict[str, Embedding] = field(default_factory=OrderedDict, init=False)
    _negative: Embedding | None = field(default=None, init=False)

    def arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline is called with to draw one image per prompt; tensors are [N, ...], on its device."""
        form = _FORMS.get(type(self.pipeline).__name__)
        if form is None:
            return self._plain_arguments(prompts)
        embeddings = [self._embedding(form, prompt) for prompt in prompts]
        if self.negative_prompt is not None:
            if self._negative is None:
                self._negative = self._encode_negative(form, self.negative_prompt)
            embeddings = [{**embedding, **self._negative} for embedding in embeddings]
        return {name: torch.cat([embedding[name] for embedding in embeddings]) for name in embeddings[0]}

    def _plain_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        negative_prompt = self.negative_prompt
        if negative_prompt == "" and "true_cfg_scale" in parameters(self.pipeline):
            negative_prompt = " "  # without a text there would be no guidance
        negative = {"negative_prompt": [negative_prompt] * len(prompts)} if negative_prompt else {}
        return {"prompt": list(prompts), **negative}

    def _embedding(self, form: _Form, prompt: str) -> Embedding:
        """A prompt's embedding, from the cache or new; the cache forgets what was used least recently."""
        if prompt not in self._cache:
            self._cache[prompt] = self._encode(form, prompt)
            n_bytes = sum(tensor.nbytes for tensor in self._cache[prompt].values())
            while len(self._cache) > max(1, self.cache_bytes // n_bytes):  # all embeddings of a model are of one size
                self._cache.popitem(last=False)
        self._cache.move_to_end(prompt)
        return self._cache[prompt]

    def _encode(self, form: _Form, prompt: str) -> Embedding:
        guidance = {"do_classifier_free_guidance": False} if form.negative else {}
        encoded = self._call(form, prompt, **guidance)
        return {name: tensor for name, tensor in encoded.items() if not name.startswith("negative_")}

    def _encode_negative(self, form: _Form, prompt: str) -> Embedding:
        if not form.negative:
            return {f"negative_{name}": tensor for name, tensor in self._encode(form, prompt).items()}
        # None lets the model choose what stands for no prompt: SDXL was trained with zeros.
        encoded = self._call(form, "", do_classifier_free_guidance=True, negative_prompt=prompt or None)
        return {name: tensor for name, tensor in encoded.items() if name.startswith("negative_")}

    def _call(self, form: _Form, prompt: str, **arguments: Any) -> Embedding:
        encoded = self.pipeline.encode_prompt(
            prompt=prompt,
            **dict.fromkeys(form.more_prompts),
            device=self.pipeline.device,
            num_images_per_prompt=1,
            **arguments,
        )
        return dict(zip(form.returns, encoded, strict=False))  # FLUX returns positions too, which are constant
