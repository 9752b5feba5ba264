"""Drawing with GLIDE: an image is a function of its prompt and seed, whatever else is in the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glide_models import signal_of, tiny_glide
from PIL import Image

from pipeline_lib.errors import UserError

pytest.importorskip("diffusers")
SETTINGS: dict[str, Any] = {
    "steps": 4,
    "guidance_scale": 3.0,
    "negative_prompt": "",
    "scheduler": None,
    "height": None,
    "width": None,
    "dtype": "float32",
}
PROMPTS = ["a photo of a red cat", "a photo of a blue dog", "a photo of a red cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline."""
    return tiny_glide(tmp_path_factory.mktemp("glide") / "tiny")


@pytest.fixture(scope="module")
def generator(folder: Path) -> Any:
    """It, ready to draw."""
    return load(folder)


def load(folder: Path, *, compile: bool = False, **settings: Any) -> Any:
    from pipeline_lib.generators.folders import PipelineFolder
    from pipeline_lib.generators.glide.generator import Glide

    return Glide(PipelineFolder(folder), SETTINGS | settings, device="cpu", compile=compile)


def test_images_are_finite_and_in_range(generator: Any):
    """float32 [N, height, width, 3] in [0, 1], not all alike."""
    images = generator.generate(PROMPTS, [1, 2, 3])
    assert images.dtype == np.float32
    assert images.shape == (3, 32, 32, 3)
    assert np.isfinite(images).all()
    assert 0 <= images.min() < images.max() <= 1
    assert (generator.device, generator.dtype) == ("cpu", "float32")


def test_a_configured_model_is_recognised(folder: Path, generator: Any):
    """By its model_index.json."""
    from pipeline_lib.generators import load_generator

    loaded = load_generator(str(folder), None, SETTINGS, device="cpu", compile=False)
    np.testing.assert_array_equal(loaded.generate(PROMPTS[:1], [1]), generator.generate(PROMPTS[:1], [1]))


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
def test_an_image_is_a_function_of_prompt_and_seed(folder: Path, guidance_scale: float):
    """Alone, in a batch, at another place in it, or by another instance: the same image."""
    generator = load(folder, guidance_scale=guidance_scale)
    together = generator.generate(PROMPTS, [11, 12, 13])
    for number in range(3):
        alone = generator.generate(PROMPTS[number : number + 1], [11 + number])
        np.testing.assert_allclose(alone[0], together[number], atol=1e-4)
    turned = load(folder, guidance_scale=guidance_scale).generate(PROMPTS[::-1], [13, 12, 11])
    np.testing.assert_allclose(turned[::-1], together, atol=1e-4)
    assert np.abs(together[0] - together[2]).max() > 1e-2  # the seed matters


def test_every_noise_comes_from_the_images_own_generator(generator: Any):
    """Start, steps and upsampler draw from it, in this order; the callers' random state plays no part."""
    import torch

    torch.manual_seed(1)
    expected_next = torch.rand(3)
    torch.manual_seed(1)
    images = generator.generate(PROMPTS[:1], [5])
    assert torch.equal(torch.rand(3), expected_next)

    own = torch.Generator("cpu").manual_seed(5)
    pipeline = generator._pipeline
    shapes: list[tuple[int, ...]] = []

    def noise(shape: tuple[int, int, int]) -> torch.Tensor:
        shapes.append(shape)
        return torch.randn(shape, generator=own)[None]

    small = pipeline.draw(PROMPTS[:1], noise, num_inference_steps=4, guidance_scale=3.0)
    large = pipeline.upsample(PROMPTS[:1], small, noise)
    assert shapes == [(3, 16, 16)] * 4 + [(3, 32, 32)]
    np.testing.assert_allclose(images, (large / 2 + 0.5).permute(0, 2, 3, 1).numpy(), atol=1e-6)


# --- real guidance ----------------------------------------------------------------------------------------------------


def pictures() -> list[Image.Image]:
    """One for each prompt, larger than the models' images."""
    random = np.random.default_rng(3)
    return [Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)) for _ in PROMPTS]


def guided(folder: Path, start: float, **settings: Any) -> Any:
    return load(folder, real_guidance={"start": start}, **settings)


def test_the_base_model_starts_from_the_noised_reference(folder: Path):
    """In its own size and in [-1, 1], with the image's first noise, at the time step that t* says (Equation 9)."""
    import torch
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    generator, references = guided(folder, 0.5), pictures()
    seen: list[Any] = []
    generator._pipeline.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[:2]))
    generator.generate(PROMPTS, [1, 2, 3], references)
    small = Compose([Resize(16, InterpolationMode.BICUBIC), CenterCrop(16)])
    clean = (
        torch.from_numpy(np.stack([np.asarray(small(image)) for image in references])).permute(0, 3, 1, 2) / 127.5 - 1
    )
    noise = torch.stack([torch.randn((3, 16, 16), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)])
    signal = signal_of(333)  # the second last of 0, 333, 666, 999
    start, step = seen[0]
    assert step.tolist() == [333] * 6
    torch.testing.assert_close(start[:3], signal**0.5 * clean + (1 - signal) ** 0.5 * noise, rtol=0, atol=1e-5)
    assert [steps.tolist()[0] for _, steps in seen] == [333, 0]


@pytest.mark.parametrize(
    ("start", "steps", "made"), [(0.15, 100, 15), (0.35, 100, 35), (0.15, 8, 3), (0.2, 8, 2), (0.5, 5, 3)]
)
def test_as_many_steps_are_made_as_t_star_says(folder: Path, start: float, steps: int, made: int):
    """Of the base model, on a grid that has t*; the upsampler makes all of its own."""
    generator = guided(folder, start, steps=steps, guidance_scale=1.0)
    calls: list[str] = []
    for name in ("unet", "upsampler_unet"):
        getattr(generator._pipeline, name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    generator.generate(PROMPTS[:1], [1], pictures()[:1])
    assert calls == ["unet"] * made + ["upsampler_unet"] * 27


def test_the_ends_of_the_scale(folder: Path, generator: Any):
    """t* = T: the same bytes as without guidance. t* = 0: the reference, in the images' size, and no model runs."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    images = guided(folder, 1).generate(PROMPTS, [1, 2, 3], pictures())
    np.testing.assert_array_equal(images, generator.generate(PROMPTS, [1, 2, 3]))
    still = guided(folder, 0)
    for name in ("unet", "upsampler_unet", "text_encoder", "upsampler_text_encoder"):
        getattr(still._pipeline, name).register_forward_pre_hook(lambda *_: pytest.fail("a model ran"))
    found = still.generate(PROMPTS, [1, 2, 3], pictures())
    large = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found * 255, np.stack([np.asarray(large(image)) for image in pictures()]), atol=1e-4)


def test_a_guided_image_is_a_function_of_prompt_seed_and_reference(folder: Path):
    """Alone, in a batch, at another place in it, or by another instance: the same image."""
    generator, references = guided(folder, 0.5), pictures()
    together = generator.generate(PROMPTS, [11, 12, 13], references)
    for number in range(3):
        own = slice(number, number + 1)
        alone = generator.generate(PROMPTS[own], [11 + number], references[own])
        np.testing.assert_allclose(alone[0], together[number], atol=1e-4)
    turned = guided(folder, 0.5).generate(PROMPTS[::-1], [13, 12, 11], references[::-1])
    np.testing.assert_allclose(turned[::-1], together, atol=1e-4)
    others = {
        "prompt": generator.generate(PROMPTS[1:2], [11], references[:1]),
        "seed": generator.generate(PROMPTS[:1], [12], references[:1]),
        "reference": generator.generate(PROMPTS[:1], [11], references[1:2]),
        "start": guided(folder, 0.75).generate(PROMPTS[:1], [11], references[:1]),
    }
    for name, images in others.items():
        assert np.abs(images[0] - together[0]).max() > 1e-3, name


def test_references_are_required(folder: Path, generator: Any):
    """And forbidden without real guidance; a start that no grid of the model's time steps has is refused."""
    with pytest.raises(ValueError, match="0 for 1 prompts"):
        guided(folder, 0.5).generate(PROMPTS[:1], [1])
    with pytest.raises(ValueError, match="without real_guidance"):
        generator.generate(PROMPTS[:1], [1], pictures()[:1])
    with pytest.raises(UserError, match=r"starts: 0\.14.* is .* grid of 1001 steps at images\.steps: 1000"):
        guided(folder, 0.142857, steps=1000)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_prompts_steps_and_guidance_matter(generator: Any, folder: Path):
    """Each setting that is part of the key changes the image."""
    base = generator.generate(PROMPTS[:1], [1])
    others = {
        "prompt": generator.generate(PROMPTS[1:2], [1]),
        "steps": load(folder, steps=5).generate(PROMPTS[:1], [1]),
        "guidance": load(folder, guidance_scale=1.0).generate(PROMPTS[:1], [1]),
    }
    for name, images in others.items():
        assert np.abs(images - base).max() > 1e-3, name


def test_a_prompt_is_encoded_once(generator: Any, monkeypatch: pytest.MonkeyPatch):
    """Per batch and model, however often it occurs; the empty prompt of the guidance too."""
    pipeline = generator._pipeline
    batches: list[int] = []
    hooks = [
        encoder.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
        for encoder in (pipeline.text_encoder, pipeline.upsampler_text_encoder)
    ]
    generator.generate([PROMPTS[0]] * 5 + [""], range(6))
    for hook in hooks:
        hook.remove()
    assert batches == [2, 2]


@pytest.mark.parametrize(("guidance_scale", "rows"), [(3.0, 4), (1.0, 2)])
def test_guidance_is_one_batch(guidance_scale: float, rows: int, folder: Path):
    """With and without the prompt in one batch of the base model; a scale of 1 saves half of the work."""
    plain = load(folder, guidance_scale=guidance_scale)
    batches: list[int] = []
    plain._pipeline.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    plain.generate(PROMPTS[:2], [1, 2])
    assert batches == [rows] * SETTINGS["steps"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(dtype: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The models compute in it, sampling in float32: after few steps the images are those of float32, nearly."""
    half = load(folder, dtype=dtype, steps=2)
    pipeline = half._pipeline
    assert half.dtype == dtype
    assert {str(model.dtype) for model in (pipeline.unet, pipeline.upsampler_text_encoder)} == {f"torch.{dtype}"}
    sampled: set[str] = set()
    for scheduler in (pipeline.scheduler, pipeline.upsampler_scheduler):
        monkeypatch.setattr(scheduler, "step", noting_dtypes(scheduler.step, sampled))
    images = half.generate(PROMPTS[:1], [1])
    assert sampled == {"torch.float32"}
    assert np.abs(images - load(folder, steps=2).generate(PROMPTS[:1], [1])).mean() < 0.05


def noting_dtypes(step: Callable[..., Any], dtypes: set[str]) -> Callable[..., Any]:
    def noting(*arguments: Any) -> Any:
        dtypes.update(str(argument.dtype) for argument in arguments if not isinstance(argument, int))
        return step(*arguments)

    return noting


def test_auto_is_the_fastest_precision(folder: Path):
    """As for the other generators."""
    from pipeline_lib.generators.latent_diffusion import fastest_dtype

    assert load(folder, dtype="auto").dtype == fastest_dtype("cpu")


def test_compile_compiles_both_unets(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """And nothing unless it is asked for."""
    import torch

    compiled: list[int] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self.config.in_channels))
    load(folder)
    assert compiled == []
    load(folder, compile=True)
    assert compiled == [3, 6]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"negative_prompt": "blurry"}, "images.negative_prompt: 'blurry' is not allowed"),
        ({"scheduler": "DDIMScheduler"}, "images.scheduler: 'DDIMScheduler' is not allowed.*write null"),
        ({"height": 64}, "images.height: GLIDE's images have 32 x 32 pixels, not 64"),
        ({"width": 16}, "images.width: GLIDE's images have 32 x 32 pixels, not 16"),
        ({"steps": 1}, "images.steps: GLIDE takes 2 to 1000 steps, not 1"),
        ({"steps": 1001}, "images.steps: GLIDE takes 2 to 1000 steps, not 1001"),
    ],
)
def test_settings_that_glide_does_not_have(setting: dict[str, Any], message: str, folder: Path):
    """Refused by name, with what is allowed; its own size is allowed."""
    with pytest.raises(UserError, match=message):
        load(folder, **setting)
    load(folder, height=32, width=32)


def test_out_of_memory_is_a_memory_error(generator: Any, monkeypatch: pytest.MonkeyPatch):
    """What the loop that halves batches waits for."""
    import torch

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generator._pipeline, "upsample", full)
    with pytest.raises(MemoryError, match="out of memory"):
        generator.generate(PROMPTS[:1], [1])


def test_damaged_folders(folder: Path, tmp_path: Path):
    """Weights that are missing, misshapen, not finite or unreadable: the error names the part and what is wrong."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(weights)
    save_file({name: value for name, value in whole.items() if name != "conv_in.bias"}, weights)
    with pytest.raises(UserError, match=r"models\.generator: .*unet' cannot be loaded.* conv_in\.bias are missing"):
        load(copy)
    save_file(whole | {"conv_in.bias": torch.zeros(5)}, weights)
    with pytest.raises(UserError, match=r"unet' cannot be loaded.* conv_in\.bias has the shape \[5\], not \[32\]"):
        load(copy)
    save_file(whole | {"conv_in.bias": torch.full((32,), torch.nan)}, weights)
    with pytest.raises(UserError, match=r"unet' cannot be loaded.*weights conv_in\.bias are not finite in float32"):
        load(copy)
    weights.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"models\.generator: .*unet' cannot be loaded"):
        load(copy)
    with pytest.raises(UserError, match=r"models\.generator: .*holds no model_index\.json"):
        load(tmp_path)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_weights_of_the_upsampler_in_the_base_models_folder(component: str, folder: Path, tmp_path: Path):
    """Another architecture: the message says what does not fit, and has none of diffusers' advice to go on."""
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(copy / f"upsampler_{component}" / name, copy / component / name)
    with pytest.raises(
        UserError, match=rf"{component}' cannot be loaded.*has the shape.*download or convert"
    ) as caught:
        load(copy)
    assert "ignore_mismatched_sizes" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_is_read_of_a_prompt(generator: Any):
    """A short one is read whole; of a long one the beginning, and no more letters than make up the tokens that fit."""
    from pipeline_lib.generators.glide.tokens import encode

    prompt = "a photo of a cat with very many words behind it, which GLIDE does not read"
    assert generator.read("a Cat") == "a Cat"
    beginning = generator.read(prompt)
    assert prompt.startswith(beginning) and len(beginning) < len(prompt)
    pipeline = generator._pipeline
    context = pipeline.text_encoder.config.context
    read, _ = encode(pipeline.tokenizer, [beginning], context)
    cut, _ = encode(pipeline.tokenizer, [prompt], context)
    assert (read == cut).all()
    assert encode(pipeline.tokenizer, [beginning + prompt[len(beginning)]], context + 1)[1].all()
