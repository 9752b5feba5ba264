"""GLIDE against the original implementation: github.com/openai/glide-text2im, commit
69b530740eb6cef69442d6180579ef5ba9ef063e.

The numbers were computed by tests/data/glide_reference.py, in float32 on a CPU, with the original's own classes and
with the sampling cells of its notebook text2im.ipynb, as they are: 100 ancestral steps with guidance scale 3
(`p_sample_loop`), `fast27` DDIM (`ddim_sample_loop`), upsample_temp 0.997. The models have 16 x 16 and 32 x 32 pixels;
`glide_models` draws their weights and the noise here again.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from glide_models import DATA, SEEDS, draw_noise, original_shapes, signal_of, tiny_glide

pytest.importorskip("diffusers")
# Printed by the original's notebook, and what its models have on torch's meta device.
PARAMETERS = {"base": 385_030_726, "upsample": 398_361_286}
MODELS = tuple(PARAMETERS)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny pipeline, converted from checkpoints and loaded."""
    from pipeline_lib.generators.glide.pipeline import GlidePipeline

    folder = tiny_glide(tmp_path_factory.mktemp("glide") / "tiny")
    loaded = GlidePipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """Tensors of the original."""
    from safetensors.torch import load_file

    return load_file(DATA / "glide_reference.safetensors")


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """What they were computed for: prompts, timesteps, state_every."""
    from safetensors import safe_open

    with safe_open(DATA / "glide_reference.safetensors", "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["settings"])
    return found


def parts(pipeline: Any, model: str) -> tuple[Any, Any]:
    """Text encoder and UNet."""
    prefix = "" if model == "base" else "upsampler_"
    return getattr(pipeline, f"{prefix}text_encoder"), getattr(pipeline, f"{prefix}unet")


@pytest.mark.parametrize("model", MODELS)
def test_tokens(model: str, pipeline: Any, reference: dict[str, Any], settings: dict[str, Any]):
    """Lower case, any Unicode, cut where too long; padded with the end token, marked as no text."""
    import torch

    from pipeline_lib.generators.glide.tokens import encode

    tokens, is_text = encode(pipeline.tokenizer, settings["prompts"], parts(pipeline, model)[0].config.context)
    assert torch.equal(tokens, reference[f"{model}.tokens"])
    assert torch.equal(is_text, reference[f"{model}.mask"])


@pytest.mark.parametrize("model", MODELS)
def test_text_transformer(model: str, pipeline: Any, reference: dict[str, Any]):
    """Features of all positions, padding included, and the projected last one, to 1e-4."""
    import torch

    with torch.no_grad():
        features = parts(pipeline, model)[0](reference[f"{model}.tokens"], reference[f"{model}.mask"])
    torch.testing.assert_close(features.tokens, reference[f"{model}.features"], rtol=0, atol=1e-4)
    torch.testing.assert_close(features.pooled, reference[f"{model}.pooled"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_unet(model: str, pipeline: Any, reference: dict[str, Any], settings: dict[str, Any]):
    """Predicted noise and variance, at the first, a middle and the last time step, to 1e-4."""
    import torch
    from torch.nn import functional as F

    unet = parts(pipeline, model)[1]
    steps = torch.tensor(settings["timesteps"])
    count, size, noise = len(steps), unet.config.sample_size, draw_noise(1)
    images = noise((count, 3, size, size))
    if model == "upsample":
        small = noise((count, 3, size // 2, size // 2)).clamp(-1, 1)
        images = torch.cat([images, F.interpolate(small, (size, size), mode="bilinear", align_corners=False)], dim=1)
    text, pooled = reference[f"{model}.features"][:count], reference[f"{model}.pooled"][:count]
    with torch.no_grad():
        predicted = unet(images, steps, encoder_hidden_states=text, class_labels=pooled).sample
    torch.testing.assert_close(predicted, reference[f"{model}.prediction"], rtol=0, atol=1e-4)


def test_ancestral_sampling(pipeline: Any, reference: dict[str, Any], settings: dict[str, Any]):
    """Given the same noise, 100 guided steps lead through the same states to the same images, to 1e-3."""
    import torch

    drawn = draw_noise(SEEDS["base"])
    prompts = settings["prompts"][:1] * 2
    with recorded(pipeline.unet) as states:
        # The original draws each image twice, with the prompt and without, and keeps the first.
        images = pipeline.draw(prompts, lambda shape: drawn((4, *shape))[:2], 100, 3.0)
    assert len(states) == 100
    kept = torch.stack(states[:: settings["state_every"]["base"]])
    torch.testing.assert_close(kept[:, :2], reference["base.states"], rtol=0, atol=1e-3)
    torch.testing.assert_close(images, reference["base.images"], rtol=0, atol=1e-3)


def test_sampling_from_a_reference(pipeline: Any, reference: dict[str, Any], settings: dict[str, Any]):
    """Real guidance that starts where the original is after 80 of its 100 steps goes on as the original does: from the
    image that this state is a noised one of, given the same noise (paper, Equation 9), to 1e-3."""
    import torch

    from pipeline_lib.generators.glide.pipeline import Reference

    drawn = draw_noise(SEEDS["base"])
    prompts = settings["prompts"][:1] * 2
    every, made = settings["state_every"]["base"], 20
    state = reference["base.states"][(100 - made) // every][:2]
    first, *others = [drawn((4, *state.shape[1:]))[:2] for _ in range(101)][100 - made :]
    # The 20th of 100 time steps, which are spread over 0 to 999.
    signal = signal_of(round(19 * 999 / 99))
    clean = (state.double() - math.sqrt(1 - signal) * first.double()) / math.sqrt(signal)
    fresh = iter([first, *others])
    with recorded(pipeline.unet) as states:
        images = pipeline.draw(prompts, lambda _: next(fresh), 100, 3.0, Reference(clean.float(), made))
    assert len(states) == made
    kept = torch.stack(states[::every])
    torch.testing.assert_close(kept[:, :2], reference["base.states"][(100 - made) // every :], rtol=0, atol=1e-3)
    torch.testing.assert_close(images, reference["base.images"], rtol=0, atol=1e-3)


def test_the_start_has_the_mean_and_variance_of_equation_9(pipeline: Any):
    """Over 400 seeds, at the second of four time steps."""
    import torch

    scheduler = pipeline.scheduler
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[-2] == 333
    clean = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    noise = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(400)])
    start = scheduler.add_noise(clean, noise, 333).double()
    signal = signal_of(333)
    deviation = (start.mean(0) - math.sqrt(signal) * clean) / math.sqrt((1 - signal) / 400)
    assert deviation.abs().max() < 5
    assert deviation.std().item() == pytest.approx(1, abs=0.1)
    assert start.var(0).mean().item() == pytest.approx(1 - signal, rel=0.02)


def test_upsampling(pipeline: Any, reference: dict[str, Any], settings: dict[str, Any]):
    """Given the same noise, 27 DDIM steps from the rounded small images do so too."""
    import torch

    drawn = draw_noise(SEEDS["upsample"])
    prompts = settings["prompts"][:1] * 2
    with recorded(pipeline.upsampler_unet) as states:
        images = pipeline.upsample(prompts, reference["base.images"], lambda shape: drawn((2, *shape)))
    assert len(states) == 27
    kept = torch.stack(states[:: settings["state_every"]["upsample"]])
    torch.testing.assert_close(kept[:, :, :3], reference["upsample.states"], rtol=0, atol=1e-3)
    torch.testing.assert_close(images, reference["upsample.images"], rtol=0, atol=1e-3)


@contextmanager
def recorded(unet: Any) -> Iterator[list[Any]]:
    """The images that a UNet is given, step by step."""
    states: list[Any] = []
    hook = unet.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].clone()))
    try:
        yield states
    finally:
        hook.remove()


@pytest.mark.parametrize("model", MODELS)
def test_full_size(model: str):
    """The original's full model has our parameters, one to one: same number in all, same shapes."""
    import torch

    from pipeline_lib.generators.glide.convert import convert_parameters

    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape in original_shapes("full", model).items()}
    assert sum(value.numel() for value in theirs.values()) == PARAMETERS[model]
    text, unet = convert_parameters(theirs, model)
    assert sum(value.numel() for part in (text, unet) for value in part.parameters()) == PARAMETERS[model]
    sizes = {"base": (64, (192, 384, 576, 768), 3, 3), "upsample": (256, (192, 192, 384, 384, 768, 768), 2, 6)}
    config = unet.config
    found = (config.sample_size, config.block_out_channels, config.layers_per_block, config.in_channels)
    assert found == sizes[model]
    attends = [kind.startswith("SimpleCrossAttn") for kind in config.down_block_types]
    resolutions = [config.sample_size >> level for level, is_there in enumerate(attends) if is_there]
    assert resolutions == [32, 16, 8]  # the original's attention_resolutions
    text_sizes = {name: text.config[name] for name in ("vocabulary", "context", "width", "layers", "pooled_width")}
    assert text_sizes == {"vocabulary": 50257, "context": 128, "width": 512, "layers": 16, "pooled_width": 768}
    assert text.transformer.layers[0].self_attn.num_heads == 8


def test_fast27_is_the_papers():
    """The time steps of the upsampler: sections of 10, 10, 3, 2, 2 steps, and 997 for 999."""
    from pipeline_lib.generators.glide.schedulers import FAST27, GlideDDIMScheduler, evenly_spaced

    sections = [
        [200 * number + step for step in evenly_spaced(count, 200)] for number, count in enumerate((10, 10, 3, 2, 2))
    ]
    expected = [step for section in sections for step in section]
    assert expected[-1] == 999
    assert list(FAST27) == [*expected[:-1], 997]
    assert GlideDDIMScheduler().timesteps == list(FAST27)[::-1]


def test_spacing_of_every_number_of_steps():
    """2 to 1000 steps, where halves are rounded to even too: the original's lists, by their digest."""
    from pipeline_lib.generators.glide.schedulers import evenly_spaced

    spacings = json.dumps([evenly_spaced(steps, 1000) for steps in range(2, 1001)])
    expected = json.loads((DATA / "glide_parameters.json").read_text())["spacings_sha256"]
    assert hashlib.sha256(spacings.encode()).hexdigest() == expected


def test_betas():
    """Both schedules at chosen steps, from their formulas; others are refused."""
    from pipeline_lib.generators.glide.schedulers import betas

    linear, cosine = betas("linear", 1000), betas("squaredcos_cap_v2", 1000)
    assert linear[[0, 999]].tolist() == pytest.approx([1e-4, 2e-2], rel=1e-12)
    assert linear[500] == pytest.approx(1e-4 + (2e-2 - 1e-4) * 500 / 999, rel=1e-12)
    signal = [math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for step in (500, 501)]
    assert cosine[500] == pytest.approx(1 - signal[1] / signal[0], rel=1e-12)
    assert cosine[999] == 0.999
    with pytest.raises(ValueError, match="'quadratic' is neither"):
        betas("quadratic", 10)


def test_a_pipeline_saves_and_loads(pipeline: Any, tmp_path: Path):
    """Weights, tokenizer, time steps and temperature come back; so do the images."""
    import torch

    from pipeline_lib.generators.glide.pipeline import GlidePipeline
    from pipeline_lib.generators.glide.schedulers import GlideDDIMScheduler

    changed = GlidePipeline(
        **{
            **pipeline.components,
            "upsampler_scheduler": GlideDDIMScheduler(timesteps=[0, 500, 900]),
            "upsampler_temperature": 0.5,
        }
    )
    changed.save_pretrained(tmp_path / "again")
    again = GlidePipeline.from_pretrained(tmp_path / "again")
    assert again.upsampler_scheduler.timesteps == [900, 500, 0]
    assert again.config.upsampler_temperature == 0.5
    drawn = [
        model(["a red cat"], num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="np").images
        for model in (changed, again, pipeline)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert abs(drawn[0] - drawn[2]).max() > 1e-2


def test_the_pipeline_gives_pictures(pipeline: Any):
    """By default PIL images, of one prompt too; of several random generators there must be one per prompt."""
    import torch

    (picture,) = pipeline("a red cat", num_inference_steps=2).images
    assert picture.size == (32, 32)
    with pytest.raises(ValueError, match="1 random generators for 2 prompts"):
        pipeline(["a cat", "a dog"], num_inference_steps=2, generator=[torch.Generator()])
