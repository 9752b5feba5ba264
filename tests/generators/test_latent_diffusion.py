"""Drawing with a diffusers pipeline: an image is a function of its prompt and seed, whatever else is in the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_lib.errors import UserError

pytest.importorskip("diffusers")
SETTINGS: dict[str, Any] = {"steps": 2, "guidance_scale": 3.0, "height": None, "width": None, "dtype": "float32"}
PROMPTS = ["a photo of a red cat", "a photo of a blue dog", "a photo of a red cat"]


@pytest.fixture(scope="module")
def generator(tiny_models: dict[str, str]) -> Any:
    return load(tiny_models)


def load(tiny_models: dict[str, str], **settings: Any) -> Any:
    from pipeline_lib.generators.latent_diffusion import LatentDiffusion

    return LatentDiffusion(tiny_models["generator"], None, SETTINGS | settings)


def test_images_are_finite_and_in_range(generator: Any):
    """float32 [N, height, width, 3] in [0, 1], not all alike."""
    images = generator.generate(PROMPTS, [1, 2, 3])
    assert images.dtype == np.float32
    assert images.shape == (3, 32, 32, 3)
    assert np.isfinite(images).all()
    assert 0 <= images.min() < images.max() <= 1


def test_an_image_is_a_function_of_prompt_and_seed(generator: Any, tiny_models: dict[str, str]):
    """Alone, in a batch, at another place in it, or by another instance: the same image."""
    together = generator.generate(PROMPTS, [11, 12, 13])
    for number in range(3):
        alone = generator.generate(PROMPTS[number : number + 1], [11 + number])
        np.testing.assert_allclose(alone[0], together[number], atol=1e-4)
    turned = load(tiny_models).generate(PROMPTS[::-1], [13, 12, 11])
    np.testing.assert_allclose(turned[::-1], together, atol=1e-4)


def test_seeds_are_per_image(generator: Any):
    """Two images of one prompt differ by their seed; the same seed gives the same image again, to the bit."""
    images = generator.generate([PROMPTS[0]] * 3, [5, 6, 5])
    assert np.abs(images[0] - images[1]).max() > 1e-3
    np.testing.assert_allclose(images[0], images[2], atol=1e-5)
    np.testing.assert_array_equal(generator.generate(PROMPTS, [7, 8, 9]), generator.generate(PROMPTS, [7, 8, 9]))


def test_seeds_of_63_bits_are_taken(generator: Any):
    """The largest seed works; of its bits torch's CPU generator uses the lower 32."""
    first, second = generator.generate([PROMPTS[0]] * 2, [2**63 - 1, 2**63 - 2])
    assert np.abs(first - second).max() > 1e-3


def test_the_callers_random_state_plays_no_part(generator: Any):
    """Whatever else drew random numbers, the images are the same, and nothing is drawn from the global state."""
    import torch

    torch.manual_seed(1)
    expected_next = torch.rand(3)
    torch.manual_seed(1)
    first = generator.generate(PROMPTS, [1, 2, 3])
    assert torch.equal(torch.rand(3), expected_next)
    np.testing.assert_array_equal(generator.generate(PROMPTS, [1, 2, 3]), first)


def test_prompts_steps_and_guidance_matter(generator: Any, tiny_models: dict[str, str]):
    """Each setting that is part of the key changes the image; a scale of 1 is no guidance and works."""
    base = generator.generate(PROMPTS[:1], [1])
    others = {
        "prompt": generator.generate(PROMPTS[1:2], [1]),
        "steps": load(tiny_models, steps=3).generate(PROMPTS[:1], [1]),
        "guidance": load(tiny_models, guidance_scale=1.0).generate(PROMPTS[:1], [1]),
    }
    for name, images in others.items():
        assert images.shape == base.shape
        assert np.isfinite(images).all()
        assert np.abs(images - base).max() > 1e-6, name


def test_without_guidance_the_batch_is_irrelevant_too(tiny_models: dict[str, str]):
    """Guidance off halves the work and keeps the promise."""
    plain = load(tiny_models, guidance_scale=1.0)
    together = plain.generate(PROMPTS, [1, 2, 3])
    np.testing.assert_allclose(plain.generate(PROMPTS[1:2], [2])[0], together[1], atol=1e-4)


def test_guidance_is_equation_8(tiny_models: dict[str, str]):
    """With scale s the prediction is e(no text) + s (e(text) - e(no text)): the pipeline's own, prompt by prompt."""
    import torch

    guided = load(tiny_models, guidance_scale=2.0)
    pipeline = guided._pipeline
    expected = pipeline(
        prompt=PROMPTS[0],
        negative_prompt="",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="np",
    ).images
    np.testing.assert_allclose(guided.generate(PROMPTS[:1], [3]), expected, atol=1e-4)


def test_size_is_a_setting(tiny_models: dict[str, str]):
    """height and width in pixels; null is the model's own."""
    assert load(tiny_models, height=16, width=40).generate(PROMPTS[:1], [1]).shape == (1, 16, 40, 3)


def test_out_of_memory_is_a_memory_error(generator: Any, monkeypatch: pytest.MonkeyPatch):
    """What the loop that halves batches waits for."""
    import torch

    def full(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generator, "_pipeline", full)
    monkeypatch.setattr(generator, "_text", lambda _: {})
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        generator.generate(PROMPTS, [1, 2, 3])


def test_a_folder_that_is_no_model_is_a_user_error(tmp_path: Path):
    """The message names the configuration key and the folder."""
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match=r"models\.generator.*cannot be loaded"):
        load({"generator": str(tmp_path)})
