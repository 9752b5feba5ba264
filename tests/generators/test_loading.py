"""Loading pipelines: nothing random in place of missing weights, nothing that alters what was drawn."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_pipelines import TinyPipeline, unconditional

from pipeline_lib.errors import UserError
from pipeline_lib.generators.folders import PipelineFolder

pytest.importorskip("diffusers")
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
Weights = dict[str, Any]


def load(folder: Path) -> Any:
    import torch

    from pipeline_lib.generators.loading import load_pipeline

    return load_pipeline(PipelineFolder(folder), torch.float32)


@pytest.fixture
def changed(tiny_pipeline: TinyPipeline, tmp_path: Path) -> Callable[[str, Callable[[Weights], None]], Path]:
    """A copy of a pipeline in which the weights of one file were changed."""

    def change(file: str, edit: Callable[[Weights], None]) -> Path:
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(tiny_pipeline("stable_diffusion_2"), tmp_path / "changed")
        weights = load_file(folder / file)
        edit(weights)
        save_file(weights, folder / file, metadata={"format": "pt"})
        return folder

    return change


def first(weights: Weights) -> str:
    return min(weights)


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_missing_weights_are_an_error(changed: Any, file: str):
    """The libraries would draw them at random, and the images would be noise without anyone knowing why."""
    with pytest.raises(UserError, match=rf"{Path(file).parent}' cannot be loaded.* are missing.*another architecture"):
        load(changed(file, lambda weights: weights.pop(first(weights))))


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_weights_of_another_shape_are_an_error(
    changed: Any, file: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    """The checkpoint of another architecture."""

    def widen(weights: Weights) -> None:
        weights[first(weights)] = weights[first(weights)].new_zeros(3, 5)

    folder = changed(file, widen)
    caplog.clear()
    capfd.readouterr()
    message = rf"{Path(file).parent}' cannot be loaded.*has the shape \[3, 5\], not \[.*another architecture"
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "ignore_mismatched_sizes" not in str(caught.value)  # the libraries advise to load random numbers
    assert caplog.text == ""
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("file", [UNET, TEXT])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_an_error(changed: Any, file: str, number: str):
    """A single one is enough to spoil every image."""
    name = {UNET: "conv_in.weight", TEXT: "final_layer_norm.weight"}[file]

    def spoil(weights: Weights) -> None:
        (found,) = (weight for key, weight in weights.items() if key.removeprefix("text_model.") == name)
        found.view(-1)[-1] = float(number)

    message = (
        rf"{Path(file).parent}' cannot be loaded.*weights (text_model\.)?{re.escape(name)} are not finite in float32"
    )
    with pytest.raises(UserError, match=message):
        load(changed(file, spoil))


def test_weights_that_overflow_in_the_precision_asked_for_are_an_error(changed: Any):
    """Finite in their file: the message says in which precision they are not."""
    import torch

    from pipeline_lib.generators.loading import load_pipeline

    def enlarge(weights: Weights) -> None:
        weights[first(weights)].view(-1)[0] = 1e5

    folder = changed(UNET, enlarge)
    load(folder)
    with pytest.raises(UserError, match=r"unet' cannot be loaded.* are not finite in float16"):
        load_pipeline(PipelineFolder(folder), torch.float16)


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_damaged_weights_are_an_error(changed: Any, file: str):
    """A file that ends too early."""
    folder = changed(file, lambda _: None)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{Path(file).parent}' cannot be loaded.*download"):
        load(folder)


def test_a_pipeline_without_a_component_is_an_error(tiny_pipeline: TinyPipeline, tmp_path: Path):
    """A folder that was copied in part."""
    folder = shutil.copytree(tiny_pipeline("stable_diffusion_2"), tmp_path / "part")
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(UserError, match=r"part' cannot be loaded"):
        load(folder)


def test_a_pipeline_that_takes_no_text_is_an_error(tmp_path: Path):
    """The message says what it is, and lists what may be."""
    unconditional(tmp_path)
    with pytest.raises(UserError, match=r"it is a DDPMPipeline; text-to-image pipelines .*StableDiffusionPipeline"):
        load(tmp_path)


def test_the_safety_checker_is_off(tiny_pipeline: TinyPipeline):
    """One that finds every image unsafe blackens nothing; with it, the pipeline draws black."""
    from diffusers import StableDiffusionPipeline

    folder = tiny_pipeline("stable_diffusion_1")
    for pipeline, is_black in ((StableDiffusionPipeline.from_pretrained(folder), True), (load(folder), False)):
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline("a photo of a red cat", num_inference_steps=1, output_type="np").images
        assert bool(np.ptp(images) == 0) is is_black


def test_the_log_stays_readable(
    tiny_pipeline: TinyPipeline, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    """No progress bar, no advice, with half precision neither: loading and drawing say nothing."""
    import torch

    from pipeline_lib.generators.loading import load_pipeline

    caplog.set_level(logging.INFO)
    pipeline = load_pipeline(PipelineFolder(tiny_pipeline("stable_diffusion_xl")), torch.float16)
    pipeline.to("cpu")
    for _ in range(2):
        pipeline("a photo of a red cat", num_inference_steps=1)
    assert caplog.text == ""
    assert capfd.readouterr().err == ""
