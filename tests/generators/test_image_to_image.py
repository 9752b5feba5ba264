"""Real guidance in diffusers pipelines (paper, A.2, Equation 9).

The reference is diffusers itself: each family's image-to-image pipeline, called for one image with the prompt as text.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_pipelines import TINY_PIPELINES, TinyPipeline

from pipeline_lib.errors import UserError
from pipeline_lib.generators import load_generator

pytest.importorskip("diffusers")
SETTINGS: dict[str, Any] = {
    "steps": 8,
    "guidance_scale": 3.0,
    "negative_prompt": "",
    "scheduler": None,
    "height": 32,
    "width": 32,
    "dtype": "float32",
}
PROMPTS = ["a photo of a red cat", "a photo of a blue dog", "a photo of a red cat"]
SEEDS = [11, 12, 13]
TOLERANCE = 1e-4  # of values in [0, 1]: a batch of another size adds up in another order
MINIATURE = Path("pipeline_lib/miniature/weights/text_to_image")
every_family = pytest.mark.parametrize("family", TINY_PIPELINES)


def load(folder: Path, start: float | None, **settings: Any) -> Any:
    guidance = None if start is None else {"start": start}
    return load_generator(
        str(folder), None, SETTINGS | {"real_guidance": guidance} | settings, device="cpu", compile=False
    )


def pictures(count: int = 3, size: int = 32) -> list[Image.Image]:
    """Coloured boxes on coloured ground: each unlike the others."""
    random = np.random.default_rng(5)
    found = []
    for _ in range(count):
        pixels = np.broadcast_to(random.integers(0, 256, 3), (size, size, 3)).astype(np.uint8)
        top, left = random.integers(0, size // 2, 2)
        pixels[top : top + size // 2, left : left + size // 3] = random.integers(0, 256, 3)
        found.append(Image.fromarray(pixels))
    return found


def as_float(references: Sequence[Image.Image]) -> NDArray[np.float32]:
    return np.stack([np.asarray(image) for image in references]).astype(np.float32) / 255


def network(generator: Any) -> Any:
    """What predicts the noise."""
    return getattr(generator._pipeline, "unet", None) or generator._pipeline.transformer


def counted(module: Any) -> list[int]:
    """Fills with the number of rows of every call."""
    rows: list[int] = []

    def note(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows.append(len(inputs[0] if inputs else named["hidden_states"]))

    module.register_forward_pre_hook(note, with_kwargs=True)
    return rows


# --- every family -----------------------------------------------------------------------------------------------------


@every_family
def test_images_are_what_diffusers_draws(tiny_pipeline: TinyPipeline, family: str):
    """Alone, from the prompt as text and the reference as a picture, on the grid of 20 steps that has t*/T = 0.15."""
    import torch
    from diffusers import AutoPipelineForImage2Image, DDIMScheduler

    folder, references = tiny_pipeline(family), pictures()
    # PNDM, the first family's own, goes wrong in diffusers: see test_no_scheduler_loses_its_place.
    scheduler = "DDIMScheduler" if family == "stable_diffusion_1" else None
    images = load(folder, 0.15, scheduler=scheduler).generate(PROMPTS, SEEDS, references)
    assert images.dtype == np.float32
    assert images.shape == (3, 32, 32, 3)
    pipeline = AutoPipelineForImage2Image.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "safety_checker"):
        pipeline.safety_checker = None
    if scheduler:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    guidance = {"true_cfg_scale": 3.0, "negative_prompt": ""} if family == "flux_schnell" else {"guidance_scale": 3.0}
    size = {"height": 32, "width": 32} if family.startswith(("flux", "stable_diffusion_3")) else {}
    for number in range(3):
        expected = pipeline(
            PROMPTS[number],
            image=references[number],
            strength=0.15,
            num_inference_steps=20,
            generator=torch.Generator("cpu").manual_seed(SEEDS[number]),
            output_type="np",
            **guidance,
            **size,
        ).images[0]
        np.testing.assert_allclose(images[number], expected, atol=TOLERANCE)


@every_family
@pytest.mark.parametrize(("start", "steps", "made"), [(0.15, 8, 3), (0.2, 8, 2), (0.35, 20, 7)])
def test_as_many_steps_are_made_as_t_star_says(
    tiny_pipeline: TinyPipeline, family: str, start: float, steps: int, made: int
):
    """Each is one call of the network: with guidance in one batch, but for FLUX.1-schnell, whose are two calls."""
    generator = load(tiny_pipeline(family), start, steps=steps)
    calls = counted(network(generator))
    generator.generate(PROMPTS, SEEDS, pictures())
    # PNDM makes its first step twice.
    assert len(calls) == {"flux_schnell": 2 * made, "stable_diffusion_1": made + 1}.get(family, made)


@pytest.mark.parametrize("family", ["stable_diffusion_2", "stable_diffusion_3"])
def test_no_start_is_rounded(tiny_pipeline: TinyPipeline, family: str):
    """0.29 x 100 is less than 29, and 100 - 0.58 x 100 more than 42, as floats; so diffusers, given floats, makes a
    step less, or one more."""
    for start, made in ((0.29, 29), (0.58, 58), (0.07, 7), (0.14, 14)):
        generator = load(tiny_pipeline(family), start, steps=100, guidance_scale=1.0)
        calls = counted(network(generator))
        generator.generate(PROMPTS[:1], SEEDS[:1], pictures(1))
        assert len(calls) == made


@every_family
def test_the_end_of_the_scale_is_no_guidance(tiny_pipeline: TinyPipeline, family: str):
    """t* = T: the same bytes as without."""
    images = load(tiny_pipeline(family), 1).generate(PROMPTS, SEEDS, pictures())
    np.testing.assert_array_equal(images, load(tiny_pipeline(family), None).generate(PROMPTS, SEEDS))


@every_family
def test_its_beginning_is_the_reference(tiny_pipeline: TinyPipeline, family: str):
    """t* = 0: prepared, and untouched by any network."""
    generator = load(tiny_pipeline(family), 0)
    calls = counted(network(generator)), counted(generator._pipeline.vae.encoder), counted(generator._pipeline.vae)
    references = [*pictures(2), pictures(1)[0].resize((64, 96), Image.Resampling.NEAREST)]
    images = generator.generate(PROMPTS, SEEDS, references)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images[:2], as_float(pictures(2)))
    assert images.shape == (3, 32, 32, 3)
    assert calls == ([], [], [])


@every_family
def test_an_image_is_a_function_of_prompt_seed_and_reference(tiny_pipeline: TinyPipeline, family: str):
    """Alone, in a batch, at another place in it, or by another instance: the same image. Again: the same bits."""
    folder, references = tiny_pipeline(family), pictures()
    generator = load(folder, 0.5)
    together = generator.generate(PROMPTS, SEEDS, references)
    for number in range(3):
        own = slice(number, number + 1)
        alone = load(folder, 0.5).generate(PROMPTS[own], SEEDS[own], references[own])
        np.testing.assert_allclose(alone[0], together[number], atol=TOLERANCE)
    turned = generator.generate(PROMPTS[::-1], SEEDS[::-1], references[::-1])
    np.testing.assert_allclose(turned[::-1], together, atol=TOLERANCE)
    np.testing.assert_array_equal(generator.generate(PROMPTS, SEEDS, references), together)
    first = (PROMPTS[:1], SEEDS[:1], references[:1])
    others = {
        "prompt": generator.generate(PROMPTS[1:2], *first[1:]),
        "seed": generator.generate(first[0], [99], first[2]),
        "reference": generator.generate(*first[:2], references[1:2]),
        "start": load(folder, 0.25).generate(*first),
        "guidance": load(folder, 0.5, guidance_scale=6.0).generate(*first),
    }
    for name, images in others.items():
        assert np.abs(images[0] - together[0]).max() > 1e-6, name


@every_family
def test_the_callers_random_state_plays_no_part(tiny_pipeline: TinyPipeline, family: str):
    """Nor is anything drawn from it, with the autoencoder's posterior least of all."""
    import torch

    generator = load(tiny_pipeline(family), 0.25)
    torch.manual_seed(1)
    expected_next = torch.rand(3)
    torch.manual_seed(1)
    generator.generate(PROMPTS, SEEDS, pictures())
    assert torch.equal(torch.rand(3), expected_next)


@pytest.mark.parametrize("family", ["stable_diffusion_1", "stable_diffusion_xl", "stable_diffusion_3", "flux_dev"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_draws_nearly_the_same(tiny_pipeline: TinyPipeline, family: str, dtype: str):
    """Finite, and within what rounding explains."""
    exact = load(tiny_pipeline(family), 0.25).generate(PROMPTS, SEEDS, pictures())
    half = load(tiny_pipeline(family), 0.25, dtype=dtype).generate(PROMPTS, SEEDS, pictures())
    assert half.dtype == np.float32
    assert np.abs(half - exact).mean() < 0.01


# --- Equation 9 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["stable_diffusion_1", "stable_diffusion_2", "stable_diffusion_xl", "stable_diffusion_3"]
)
def test_the_start_has_the_mean_and_variance_of_equation_9(tiny_pipeline: TinyPipeline, family: str):
    """Over 256 seeds, in what the network sees first. Latents of a reference are random too: the posterior adds its
    variance. Flow matching has its own weights of reference and noise."""
    import torch

    count, (reference,) = 256, pictures(1)
    generator = load(tiny_pipeline(family), 0.5, steps=4, guidance_scale=1.0)
    seen: list[Any] = []

    def note(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(inputs[0] if inputs else named["hidden_states"])

    network(generator).register_forward_pre_hook(note, with_kwargs=True)
    generator.generate([PROMPTS[0]] * count, range(count), [reference] * count)
    start = seen[0].double()

    vae = generator._pipeline.vae
    pixels = torch.from_numpy(as_float([reference])).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    mean = (posterior.mean.double() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    variance = posterior.var.double() * vae.config.scaling_factor**2
    signal, noise = weights(family)
    expected_variance = signal * variance + noise
    deviation = (start.mean(0) - math.sqrt(signal) * mean) / (expected_variance / count).sqrt()
    assert deviation.abs().max() < 5  # of 256 normal numbers
    assert deviation.std() == pytest.approx(1, abs=0.25)
    assert (start.var(0) / expected_variance).mean().item() == pytest.approx(1, abs=0.03)


def weights(family: str) -> tuple[float, float]:
    """Squared weights of reference and noise at the second last of four steps, from the formulas, in float64."""
    if family == "stable_diffusion_3":
        # Linear from 1 to the last of 1000 steps, and shifted by 3, as is that last step.
        plain = np.linspace(1, 3 * 0.001 / (1 + 2 * 0.001), 4)[2]
        sigma = float(3 * plain / (1 + 2 * plain))
        return (1 - sigma) ** 2, sigma**2
    # "leading": 0, 250, 500, 750, and an offset of 1 but in the family that has none
    step = 250 if family == "stable_diffusion_xl" else 251
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = float(np.prod(1 - betas[: step + 1]))
    return signal, 1 - signal


SCHEDULERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


def test_these_are_all_schedulers(tiny_pipeline: TinyPipeline):
    """But for one that is refused and one that needs a library."""
    own = load(tiny_pipeline("stable_diffusion_1"), None)._pipeline.scheduler
    names = {cls.__name__ for cls in own.compatibles} | {type(own).__name__}
    assert names == {*SCHEDULERS, "EDMEulerScheduler", "DPMSolverSDEScheduler"}


@pytest.mark.parametrize("made", [1, 4])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_scheduler_loses_its_place(tiny_pipeline: TinyPipeline, scheduler: str, made: int):
    """A network that knows the reference, and so the noise in what it is given, finds at every step as much as the time
    step says; what is left in the end is the reference. In diffusers, PNDM and LMS that start in mid-way find 1.3 and
    0.7 times as much."""
    import torch

    generator = load(tiny_pipeline("stable_diffusion_1"), made / 10, steps=10, guidance_scale=1.0, scheduler=scheduler)
    autoencoder, unet = generator._guided._autoencoder, generator._pipeline.unet
    clean: list[Any] = []
    autoencoder.latents = noting(autoencoder.latents, clean)
    signals = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    noises = np.log((1 - signals) / signals) / 2
    found: list[float] = []

    def oracle(sample: Any, time: Any, **_: Any) -> tuple[Any]:
        signal = 1 / (1 + math.exp(2 * np.interp(float(time), np.arange(1000), noises)))
        noise = (sample - math.sqrt(signal) * clean[0]) / math.sqrt(1 - signal)
        found.append(noise.std().item())
        return (noise,)

    unet.forward = oracle
    final: list[Any] = []
    vae = generator._pipeline.vae
    vae.decode = noting(lambda latents, **_: (torch.zeros(8, 3, 32, 32), final.append(latents))[:1], [])
    generator.generate(PROMPTS[:1] * 8, range(8), pictures(8))
    second_order = scheduler.startswith(("Heun", "KDPM2"))
    assert len(found) == (2 * made - 1 if second_order else made + (scheduler == "PNDMScheduler" and made > 1))
    assert found == pytest.approx([1] * len(found), abs=0.08)
    left = final[0] * vae.config.scaling_factor - clean[0]
    assert left.std().item() < 0.05  # some end at the first time step, not before it


def noting(function: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
    def noted(*arguments: Any, **named: Any) -> Any:
        results.append(function(*arguments, **named))
        return results[-1]

    return noted


# --- references -------------------------------------------------------------------------------------------------------


def test_nearer_starts_give_nearer_images():
    """With the weights that come with the package, and garments in coloured scenes: nearer to their own reference than
    to the others, the nearer the smaller t* is."""
    from pipeline_lib.miniature.targets import render

    references = [Image.fromarray(pixels) for pixels in render("scene", garments())]
    prompts = [f"a photo of a {name}" for name in ("trouser", "dress", "bag")] * 2
    own = []
    for start in (0.2, 0.5, 0.8):
        generator = load(MINIATURE, start, guidance_scale=2.5, height=None, width=None)
        images = generator.generate(prompts, range(6), references)
        distances = np.abs(images[:, None] - as_float(references)[None]).mean(axis=(2, 3, 4))
        own.append(distances.diagonal().mean())
        if start < 0.8:
            assert (distances.argmin(axis=1) == np.arange(6)).all()
    assert own[0] < own[1] < own[2]


def garments() -> NDArray[np.uint8]:
    """Silhouettes of trousers, a dress and a bag, twice: uint8 [6, 28, 28]."""
    y, x = np.mgrid[:28, :28]
    across = np.abs(x - 13.5)
    trousers = (across < 6) & (y > 1) & (y < 27) & ((across > 1) | (y < 8))
    dress = (across < 3 + y / 5) & (y > 1) & (y < 27)
    bag = (across < 11) & (y > 10) & (y < 25) | ((np.hypot(x - 13.5, y - 10) - 6) ** 2 < 1.5)
    return np.stack([trousers, dress, bag] * 2).astype(np.uint8) * 200


def test_references_are_prepared(tiny_pipeline: TinyPipeline):
    """Of any size and mode, also for images that are not square."""
    generator = load(tiny_pipeline("stable_diffusion_2"), 0.25, height=16, width=48)
    (picture,) = pictures(1, size=48)
    whole = picture.convert("RGBA").resize((96, 96), Image.Resampling.NEAREST)
    images = generator.generate(PROMPTS[:2], [1, 1], [picture, picture.crop((0, 16, 48, 32))])
    assert images.shape == (2, 16, 48, 3)
    np.testing.assert_array_equal(
        generator.generate(PROMPTS[:1], [1], [picture]),
        generator.generate(PROMPTS[:1], [1], [picture.crop((0, 16, 48, 32))]),
    )
    assert generator.generate(PROMPTS[:1], [1], [whole]).shape == (1, 16, 48, 3)


def test_a_reference_is_encoded_once(tiny_pipeline: TinyPipeline):
    """However many images start from it, in this batch and later ones: it is known by its pixels."""
    generator = load(tiny_pipeline("stable_diffusion_2"), 0.125)
    rows = counted(generator._pipeline.vae.encoder)
    first, second, third = pictures()
    generator.generate([PROMPTS[0]] * 5, range(5), [first, second, first, first, second])
    assert rows == [2]
    images = generator.generate([PROMPTS[0]] * 3, [0, 1, 5], [first.copy(), second, third])
    assert rows == [2, 1]
    fresh = load(tiny_pipeline("stable_diffusion_2"), 0.125)
    np.testing.assert_allclose(
        images, fresh.generate([PROMPTS[0]] * 3, [0, 1, 5], [first, second, third]), atol=TOLERANCE
    )


def test_what_was_used_least_recently_is_forgotten(tiny_pipeline: TinyPipeline):
    """So that the references of a thousand classes do not fill the memory."""
    generator = load(tiny_pipeline("stable_diffusion_2"), 0.125)
    autoencoder = generator._guided._autoencoder
    autoencoder._cache_bytes = 2 * (2 * 4 * 8 * 8) * 4  # of two references: mean and log variance, in float32
    rows = counted(generator._pipeline.vae.encoder)
    first, second, third = pictures()
    for references in ([first], [second], [first], [third], [first], [second], [first, second, third]):
        generator.generate(PROMPTS[: len(references)], SEEDS[: len(references)], references)
    assert rows == [1, 1, 1, 1, 1]
    assert len(autoencoder._cache) == 2


def test_sdxls_autoencoder_encodes_in_float32(tiny_pipeline: TinyPipeline):
    """In float16 it overflows, as this one does; it goes back to float16, which the decoder's own check asks for."""
    import torch

    generator = load(tiny_pipeline("stable_diffusion_xl"), 0.25, dtype="float16")
    vae = generator._pipeline.vae
    vae.encoder.conv_in.weight.data *= 60_000
    vae.encoder.conv_in.bias.data *= 60_000
    assert np.isfinite(generator.generate(PROMPTS, SEEDS, pictures())).all()
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float16}


def test_components_are_shared_and_images_left_alone(tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch):
    """Nothing is in memory twice; no safety checker, and no watermark where the library for it is installed."""
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"
    monkeypatch.setattr(f"{module}.is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(f"{module}.StableDiffusionXLWatermarker", object, raising=False)
    generator = load(tiny_pipeline("stable_diffusion_xl"), 0.5)
    assert generator._guided.pipeline.watermark is None
    for name, component in generator._pipeline.components.items():
        assert generator._guided.pipeline.components[name] is component, name
    assert load(tiny_pipeline("stable_diffusion_1"), 0.5)._guided.pipeline.safety_checker is None


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_pipelines_without_an_image_to_image_form_are_refused():
    """The message names both keys, what can be had, and what to write for none."""
    from diffusers import PixArtAlphaPipeline

    from pipeline_lib.generators.image_to_image import ImageToImage
    from pipeline_lib.generators.real_guidance import Start

    with pytest.raises(
        UserError,
        match=r"few_shot\.real_guidance\.starts: the PixArtAlphaPipeline of models\.generator .*"
        r"GlidePipeline, StableDiffusionPipeline.* write 1\.0 \(no guidance\)",
    ):
        ImageToImage(object.__new__(PixArtAlphaPipeline), Start(Start(1).share / 2), SETTINGS)


def test_a_scheduler_that_starts_with_other_steps_is_refused(tiny_pipeline: TinyPipeline):
    """PNDM as it was first published; in the family that has it in the other form, it is not."""
    with pytest.raises(UserError, match=r"images\.scheduler: PNDMScheduler without skip_prk_steps.*starts"):
        load(tiny_pipeline("stable_diffusion_xl"), 0.5, scheduler="PNDMScheduler")
    load(tiny_pipeline("stable_diffusion_1"), 0.5, scheduler="PNDMScheduler")


def test_a_size_that_the_model_would_change_is_refused(tiny_pipeline: TinyPipeline):
    """As without real guidance."""
    with pytest.raises(UserError, match=r"images\.width: the model draws 32 pixels where 36 were asked for; write 32"):
        load(tiny_pipeline("flux_schnell"), 0.5, width=36).generate(PROMPTS[:1], [1], pictures(1))


def test_references_are_required(tiny_pipeline: TinyPipeline):
    """And forbidden without real guidance."""
    with pytest.raises(ValueError, match="0 for 1 prompts"):
        load(tiny_pipeline("stable_diffusion_2"), 0.5).generate(PROMPTS[:1], [1])
    with pytest.raises(ValueError, match="without real_guidance"):
        load(tiny_pipeline("stable_diffusion_2"), None).generate(PROMPTS[:1], [1], pictures(1))


def test_out_of_memory_is_a_memory_error(tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch):
    """While references are encoded too; afterwards the same images are drawn."""
    import torch

    generator = load(tiny_pipeline("stable_diffusion_2"), 0.5)
    expected = load(tiny_pipeline("stable_diffusion_2"), 0.5).generate(PROMPTS, SEEDS, pictures())

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(generator._pipeline.vae.encoder, "forward", full)
        with pytest.raises(MemoryError, match="CUDA out of memory"):
            generator.generate(PROMPTS, SEEDS, pictures())
    np.testing.assert_array_equal(generator.generate(PROMPTS, SEEDS, pictures()), expected)
