"""Drawing with diffusers pipelines: an image is a function of its prompt and seed, whatever else is in the batch.

The reference is diffusers itself: each family's pipeline, called for one image with the prompts as text.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_pipelines import TINY_PIPELINES, TinyPipeline

from pipeline_lib.errors import UserError
from pipeline_lib.generators import load_generator
from pipeline_lib.generators.folders import PipelineFolder

pytest.importorskip("diffusers")
SETTINGS: dict[str, Any] = {
    "steps": 2,
    "guidance_scale": 3.0,
    "negative_prompt": "",
    "scheduler": None,
    "height": 32,
    "width": 32,
    "dtype": "float32",
}
PROMPTS = ["a photo of a red cat", "a photo of a blue dog", "a photo of a red cat"]
TOLERANCE = 1e-4  # of values in [0, 1]: a batch of another size adds up in another order
every_family = pytest.mark.parametrize("family", TINY_PIPELINES)


def load(folder: Path, *, compile: bool = False, **settings: Any) -> Any:
    return load_generator(str(folder), None, SETTINGS | settings, device="cpu", compile=compile)


def reference(folder: Path, prompt: str, seed: int, **arguments: Any) -> Any:
    """The image that diffusers draws, [32, 32, 3]."""
    import torch
    from diffusers import AutoPipelineForText2Image

    pipeline = AutoPipelineForText2Image.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if hasattr(pipeline, "safety_checker"):
        pipeline.safety_checker = None
    return pipeline(
        prompt,
        num_inference_steps=2,
        height=32,
        width=32,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **arguments,
    ).images[0]


# --- every family -----------------------------------------------------------------------------------------------------


@every_family
def test_images_are_what_diffusers_draws(tiny_pipeline: TinyPipeline, family: str):
    """float32 [N, height, width, 3] in [0, 1], each as the pipeline draws it alone, guided away from no prompt."""
    folder = tiny_pipeline(family)
    guidance = {
        "flux_dev": {"guidance_scale": 3.0},
        "flux_schnell": {"true_cfg_scale": 3.0, "negative_prompt": ""},
    }.get(family, {"guidance_scale": 3.0})
    images = load(folder).generate(PROMPTS, [11, 12, 13])
    assert images.dtype == np.float32
    assert images.shape == (3, 32, 32, 3)
    assert 0 <= images.min() < images.max() <= 1
    for number in range(3):
        expected = reference(folder, PROMPTS[number], 11 + number, **guidance)
        np.testing.assert_allclose(images[number], expected, atol=TOLERANCE)


@every_family
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_image_is_a_function_of_prompt_and_seed(tiny_pipeline: TinyPipeline, family: str, guidance_scale: float):
    """Alone, in a batch, at another place in it, or by another instance: the same image. Again: the same bits."""
    generator = load(tiny_pipeline(family), guidance_scale=guidance_scale)
    together = generator.generate(PROMPTS, [11, 12, 13])
    for number in range(3):
        alone = generator.generate(PROMPTS[number : number + 1], [11 + number])
        np.testing.assert_allclose(alone[0], together[number], atol=TOLERANCE)
    turned = load(tiny_pipeline(family), guidance_scale=guidance_scale).generate(PROMPTS[::-1], [13, 12, 11])
    np.testing.assert_allclose(turned[::-1], together, atol=TOLERANCE)
    np.testing.assert_array_equal(generator.generate(PROMPTS, [11, 12, 13]), together)


@every_family
def test_every_setting_acts(tiny_pipeline: TinyPipeline, family: str):
    """Each setting that is part of the key changes the image."""
    folder = tiny_pipeline(family)
    base = load(folder).generate(PROMPTS[:1], [1])
    others = {
        "prompt": load(folder).generate(PROMPTS[1:2], [1]),
        "seed": load(folder).generate(PROMPTS[:1], [2]),
        "steps": load(folder, steps=3).generate(PROMPTS[:1], [1]),
        "guidance_scale": load(folder, guidance_scale=6.0).generate(PROMPTS[:1], [1]),
        "dtype": load(folder, dtype="bfloat16").generate(PROMPTS[:1], [1]),
    }
    if family != "flux_dev":
        others["negative_prompt"] = load(folder, negative_prompt="a dog").generate(PROMPTS[:1], [1])
    if not family.startswith(("flux", "stable_diffusion_3")):
        others["scheduler"] = load(folder, scheduler="DEISMultistepScheduler").generate(PROMPTS[:1], [1])
    for name, images in others.items():
        assert np.isfinite(images).all(), name
        assert np.abs(images - base).max() > 1e-6, name
    assert load(folder, height=16, width=48).generate(PROMPTS[:1], [1]).shape == (1, 16, 48, 3)


@every_family
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_draws_nearly_the_same(tiny_pipeline: TinyPipeline, family: str, dtype: str):
    """Finite, and within what rounding explains; SDXL's decoder, whose float16 overflows, works in float32."""
    exact = load(tiny_pipeline(family)).generate(PROMPTS, [1, 2, 3])
    half = load(tiny_pipeline(family), dtype=dtype).generate(PROMPTS, [1, 2, 3])
    assert half.dtype == np.float32
    assert np.abs(half - exact).mean() < 0.01


def test_what_overflows_is_not_hidden(tiny_pipeline: TinyPipeline):
    """Non-finite values reach the caller, who marks the image invalid."""
    generator = load(tiny_pipeline("stable_diffusion_xl"), dtype="float16")
    generator._pipeline.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    assert not np.isfinite(generator.generate(PROMPTS[:1], [1])).any()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_negative_prompt_is_what_guidance_leads_away_from(tiny_pipeline: TinyPipeline):
    """As diffusers takes it."""
    folder = tiny_pipeline("stable_diffusion_xl")
    images = load(folder, negative_prompt="a dog").generate(PROMPTS[:1], [1])
    expected = reference(folder, PROMPTS[0], 1, guidance_scale=3.0, negative_prompt="a dog")
    np.testing.assert_allclose(images[0], expected, atol=TOLERANCE)


def test_guidance_is_equation_8(tiny_pipeline: TinyPipeline):
    """After one DDIM step the latents are linear in the predicted noise, so they are e0 + s (e1 - e0) of those without
    text (e0) and with text alone (e1)."""
    import torch

    folder = tiny_pipeline("stable_diffusion_2")

    def latents(prompt: str, scale: float) -> Any:
        generator = load(folder, steps=1, guidance_scale=scale)
        arguments = {**generator._text.arguments([prompt]), **generator._arguments, "output_type": "latent"}
        return generator._pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(3)).images.numpy()

    unguided, conditional = latents("", 1.0), latents(PROMPTS[0], 1.0)
    np.testing.assert_allclose(latents(PROMPTS[0], 4.0), unguided + 4 * (conditional - unguided), atol=1e-4)


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_noise_between_the_steps_is_the_images_own_too(tiny_pipeline: TinyPipeline, scheduler: str):
    """Samplers that draw noise at every step draw it from the image's seed."""
    generator = load(tiny_pipeline("stable_diffusion_1"), steps=4, scheduler=scheduler)
    together = generator.generate(PROMPTS, [1, 2, 3])
    np.testing.assert_allclose(generator.generate(PROMPTS[1:2], [2])[0], together[1], atol=TOLERANCE)


def test_a_sampler_that_draws_from_elsewhere_is_refused(tiny_pipeline: TinyPipeline, tmp_path: Path):
    """Its images could not be drawn a second time. FLUX's sampler can be set up that way in the model's folder."""
    folder = shutil.copytree(tiny_pipeline("flux_schnell"), tmp_path / "stochastic")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(re.sub(r'"stochastic_sampling": false', '"stochastic_sampling": true', config.read_text()))
    with pytest.raises(UserError, match=r"images\.scheduler: FlowMatchEulerDiscreteScheduler draws noise that"):
        load(folder).generate(PROMPTS, [1, 2, 3])


def test_a_size_that_the_model_would_change_is_refused(tiny_pipeline: TinyPipeline):
    """FLUX works in patches of 2 latents: it would draw 32 pixels for 36 with a warning at most."""
    with pytest.raises(UserError, match=r"images\.width: the model draws 32 pixels where 36 were asked for; write 32"):
        load(tiny_pipeline("flux_schnell"), width=36).generate(PROMPTS[:1], [1])


def test_what_the_pipeline_itself_refuses_is_a_user_error(tiny_pipeline: TinyPipeline):
    """More steps than the model was trained with, say."""
    with pytest.raises(UserError, match=r"StableDiffusionPipeline refuses to draw.*1000"):
        load(tiny_pipeline("stable_diffusion_2"), steps=1001).generate(PROMPTS[:1], [1])


def test_the_models_own_size_is_the_default(tiny_pipeline: TinyPipeline):
    """null: what the model was trained for."""
    generator = load(tiny_pipeline("stable_diffusion_2"), height=None, width=None)
    assert generator.generate(PROMPTS[:1], [1]).shape == (1, 32, 32, 3)


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_are_per_image(tiny_pipeline: TinyPipeline):
    """Two images of one prompt differ by their seed; the same seed gives the same image again."""
    images = load(tiny_pipeline("stable_diffusion_1")).generate([PROMPTS[0]] * 3, [5, 6, 5])
    assert np.abs(images[0] - images[1]).max() > 1e-3
    np.testing.assert_allclose(images[0], images[2], atol=1e-5)


def test_seeds_of_63_bits_are_taken(tiny_pipeline: TinyPipeline):
    """The largest seed works; of its bits torch's CPU generator uses the lower 32."""
    generator = load(tiny_pipeline("stable_diffusion_1"))
    first, second = generator.generate([PROMPTS[0]] * 2, [2**63 - 1, 2**63 - 2])
    assert np.abs(first - second).max() > 1e-3


def test_the_callers_random_state_plays_no_part(tiny_pipeline: TinyPipeline):
    """Whatever else drew random numbers, the images are the same, and nothing is drawn from the global state."""
    import torch

    generator = load(tiny_pipeline("stable_diffusion_1"))
    torch.manual_seed(1)
    expected_next = torch.rand(3)
    torch.manual_seed(1)
    first = generator.generate(PROMPTS, [1, 2, 3])
    assert torch.equal(torch.rand(3), expected_next)
    np.testing.assert_array_equal(generator.generate(PROMPTS, [1, 2, 3]), first)


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_out_of_memory_is_a_memory_error(tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch, part: str):
    """What the loop that halves batches waits for, wherever memory runs out; afterwards the same images are drawn."""
    import torch

    generator = load(tiny_pipeline("stable_diffusion_2"))
    expected = load(tiny_pipeline("stable_diffusion_2")).generate(PROMPTS, [1, 2, 3])

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(generator._pipeline, part), "forward", full)
        with pytest.raises(MemoryError, match="CUDA out of memory"):
            generator.generate(PROMPTS, [1, 2, 3])
    np.testing.assert_array_equal(generator.generate(PROMPTS, [1, 2, 3]), expected)


def test_convolutions_have_their_channels_last(tiny_pipeline: TinyPipeline):
    """In the UNet and the decoder: the format in which they are fast."""
    import torch

    pipeline = load(tiny_pipeline("stable_diffusion_xl"))._pipeline
    for weights in (pipeline.unet.conv_in.weight, pipeline.vae.decoder.conv_in.weight):
        assert weights.is_contiguous(memory_format=torch.channels_last)


def test_a_gpu_that_is_not_there_is_an_error(tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch):
    """Not a run that takes a thousand times as long."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="device: 'cuda' is asked for"):
        load_generator(str(tiny_pipeline("stable_diffusion_1")), None, SETTINGS, device="cuda", compile=False)


def test_compiled_networks_draw_the_same(tiny_pipeline: TinyPipeline):
    """torch.compile is traced through both networks, without its code generator, which takes half a minute."""
    import torch

    folder = tiny_pipeline("stable_diffusion_2")
    expected = load(folder).generate(PROMPTS, [1, 2, 3])
    traced: list[str] = []

    def backend(graph: Any, _: Any) -> Any:
        traced.append(type(graph).__name__)
        return graph.forward

    with pytest.MonkeyPatch.context() as patch:
        compile_with = torch.nn.Module.compile
        patch.setattr(torch.nn.Module, "compile", lambda module: compile_with(module, backend=backend))
        images = load(folder, compile=True).generate(PROMPTS, [1, 2, 3])
    assert len(traced) >= 2
    np.testing.assert_allclose(images, expected, atol=TOLERANCE)


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler for torch.compile")
@pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="compiles for a minute; set SLOW_TESTS=1 to run it")
def test_compiled_code_draws_the_same(tiny_pipeline: TinyPipeline):
    """With the code generator; a batch of another size is compiled again, and draws the same too."""
    folder = tiny_pipeline("stable_diffusion_2")
    expected = load(folder).generate(PROMPTS, [1, 2, 3])
    generator = load(folder, compile=True)
    np.testing.assert_allclose(generator.generate(PROMPTS, [1, 2, 3]), expected, atol=TOLERANCE)
    np.testing.assert_allclose(generator.generate(PROMPTS[:2], [1, 2]), expected[:2], atol=TOLERANCE)


def test_a_machine_that_cannot_compile_is_an_error(tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch):
    """The message names the key and what is missing."""
    from torch._inductor import exc

    generator = load(tiny_pipeline("stable_diffusion_2"))

    def missing(*_: Any, **__: Any) -> None:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(generator._pipeline.unet, "forward", missing)
    with pytest.raises(UserError, match=r"images\.compile: true does not work on this machine.*write false"):
        generator.generate(PROMPTS, [1, 2, 3])


# --- choosing the generator -------------------------------------------------------------------------------------------


def test_glide_is_known_by_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that says GlidePipeline is GLIDE's, whatever its name."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "GlidePipeline"}')
    seen: list[Any] = []
    glide = "pipeline_lib.generators.glide.generator.Glide"
    monkeypatch.setattr(glide, lambda *names, **more: seen.append((names, more)))
    load_generator(str(tmp_path), None, SETTINGS, device="cpu", compile=True)
    assert seen == [((PipelineFolder(tmp_path), SETTINGS), {"device": "cpu", "compile": True})]


def test_a_folder_that_is_no_model_is_a_user_error(tmp_path: Path):
    """The message names the configuration key and the folder."""
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match=r"models\.generator.*cannot be loaded"):
        load(tmp_path)
