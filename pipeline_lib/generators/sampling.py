"""From the images' settings to the arguments of a diffusers pipeline: a setting acts as it says, or it is refused."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline

from pipeline_lib.errors import UserError

# Pipelines whose scale is how far guidance goes beyond the conditional prediction: 0 is off, s here is s - 1 there.
_SCALE_FROM_ZERO = ("Krea2", "ZImage")
# diffusers lists it as compatible, but it scales noise and times for models that were trained its way alone.
_OTHER_NOISE = frozenset({"EDMEulerScheduler"})


@dataclass(frozen=True)
class Guidance:
    """How a pipeline is told the guidance scale, and whether a negative prompt then acts."""

    arguments: Mapping[str, float]
    is_classifier_free: bool


def parameters(pipeline: DiffusionPipeline) -> frozenset[str]:
    """The names of what a pipeline is called with."""
    return frozenset(inspect.signature(type(pipeline).__call__).parameters)


def sampling_arguments(pipeline: DiffusionPipeline, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Steps, size and guidance as arguments of the pipeline. Raises `UserError` for a setting that it does not take."""
    wanted = {"num_inference_steps": ("steps", settings["steps"])}
    wanted |= {side: (side, settings[side]) for side in ("height", "width") if settings[side] is not None}
    for name, (key, value) in wanted.items():
        if name not in parameters(pipeline):
            raise UserError(
                f"images.{key}: {value} is not allowed: a {type(pipeline).__name__} has no {name}; "
                f"{'name another model' if key == 'steps' else 'write null'}"
            )
    return {name: value for name, (_, value) in wanted.items()} | guidance(pipeline, settings).arguments  # type: ignore


def output_size(pipeline: DiffusionPipeline, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the images in pixels: those of the settings, the pipeline's own where they say null."""
    own = getattr(pipeline, "default_sample_size", None) or pipeline.unet.config.sample_size
    sides = (own, own) if isinstance(own, int) else own
    height, width = (
        settings[name] or side * pipeline.vae_scale_factor
        for name, side in zip(("height", "width"), sides, strict=True)
    )
    return height, width


def guidance(pipeline: DiffusionPipeline, settings: Mapping[str, Any]) -> Guidance:
    """The scale s of classifier-free guidance (paper, Equation 8), in the terms of the pipeline.

    Models that were distilled from guided samples and take the scale as an input (FLUX.1-dev, latent consistency
    models) get it there. Raises `UserError` where scale or negative prompt would not act.
    """
    scale, negative_prompt = settings["guidance_scale"], settings["negative_prompt"]
    found = _guidance(pipeline, scale)
    name = type(pipeline).__name__
    if found is None:
        raise UserError(
            f"images.guidance_scale: {scale} is not allowed: this {name} was made to draw without guidance"
            f"{'; write 1 (off)' if scale != 1 else ', and cannot be told'}"
        )
    if not negative_prompt:
        return found
    if "negative_prompt" not in parameters(pipeline) or (scale > 1 and not found.is_classifier_free):
        raise UserError(
            f"images.negative_prompt: {negative_prompt!r} is not allowed: this {name} does not take a negative prompt; "
            f'write ""'
        )
    if not found.is_classifier_free:
        raise UserError(
            f'images.negative_prompt: {negative_prompt!r} does not act without guidance; write "", or raise '
            f"images.guidance_scale above {scale}"
        )
    return found


def _guidance(pipeline: DiffusionPipeline, scale: float) -> Guidance | None:
    """None where the pipeline has no guidance scale, or would not act on this one."""
    names = parameters(pipeline)
    if _config(pipeline, "transformer", "guidance_embeds"):
        return Guidance(
            {"guidance_scale": scale} | ({"true_cfg_scale": 1.0} if "true_cfg_scale" in names else {}), False
        )
    if "true_cfg_scale" in names:  # its guidance_scale is the input that this model does not have
        return Guidance({"true_cfg_scale": scale}, scale > 1)
    if "guidance_scale" not in names or (pipeline.config.get("is_distilled") and scale != 1):
        return None
    if type(pipeline).__name__.startswith(_SCALE_FROM_ZERO):
        return Guidance({"guidance_scale": scale - 1}, scale > 1)
    scale_is_input = _config(pipeline, "unet", "time_cond_proj_dim") is not None
    return Guidance({"guidance_scale": scale}, scale > 1 and not scale_is_input)


def _config(pipeline: DiffusionPipeline, component: str, key: str) -> Any:
    config = getattr(getattr(pipeline, component, None), "config", {})
    return config.get(key)


def set_scheduler(pipeline: DiffusionPipeline, name: str | None) -> None:
    """Give the pipeline the diffusers scheduler of this class, set up as its own was; None leaves its own.

    Raises `UserError` for a scheduler that cannot stand in for the pipeline's own.
    """
    if name is None:
        return
    own = pipeline.scheduler
    classes = {cls.__name__: cls for cls in own.compatibles if cls.__name__ not in _OTHER_NOISE}
    classes[type(own).__name__] = type(own)
    if name not in classes:
        raise UserError(
            f"images.scheduler: {name!r} is not allowed for this {type(pipeline).__name__}; write null for its own, or "
            f"one of {', '.join(sorted(classes))}"
        )
    # Some clip what they predict to [-1, 1] unless told not to. That is for pixels, and such models' own configuration
    # says so; it would destroy latents.
    clipping = {} if "clip_sample" in own.config else {"clip_sample": False}
    try:
        pipeline.scheduler = classes[name].from_config(own.config, **clipping)
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"images.scheduler: {name!r} cannot be used: {str(error).strip()}") from error
