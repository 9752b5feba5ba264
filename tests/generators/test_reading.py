"""What the text encoders of a pipeline read of a prompt, and what is lost of it."""

import numpy as np
import pytest
from tiny_pipelines import TinyPipeline

from pipeline_lib.generators.reading import TextLimit, lost_name, pipeline_limits, read_part

LONG = "a photo of a red cat " * 6


def test_the_longest_beginning_that_fits():
    """Of a text encoder that reads three words: all of a short text, else as much as makes up three words."""
    three = TextLimit(lambda text: len(text.split()), 3)
    assert three.read("one two three") == "one two three"
    assert three.read("one two three four five").strip() == "one two three"
    assert TextLimit(len, 5).read("x" * 10_000) == "xxxxx"
    assert TextLimit(len, 0).read("x") == ""


def test_the_encoder_that_reads_most_counts():
    assert read_part([TextLimit(len, 3), TextLimit(len, 5)], "abcdefgh") == "abcde"
    assert read_part([], "abcdefgh") == "abcdefgh"


@pytest.mark.parametrize(
    ("class_name", "prompt", "read", "is_lost"),
    [
        ("cat", "a photo of a cat", "a photo of a cat", False),
        ("cat", "a photo of a cat", "a photo of a", True),
        ("cat", "two Cats", "two Cats", False),
        ("siamese cat", "a siamese cat", "a siamese", True),
        ("cat", "a photo of a dog", "a photo", False),  # the sentence never had it: language enhancement counts those
        ("t-shirt", "a t - shirt on a bed", "a t - shirt", False),
        ("猫", "一只猫在床上", "一只", True),
    ],
)
def test_lost_names(class_name: str, prompt: str, read: str, is_lost: bool):
    fault = lost_name(class_name, prompt, read)
    assert (fault is not None) == is_lost
    if fault:
        assert class_name in fault and prompt in fault and "shorten" in fault


@pytest.mark.parametrize("family", ["stable_diffusion_1", "stable_diffusion_xl"])
def test_what_is_not_read_changes_nothing(tiny_pipeline: TinyPipeline, family: str):
    """CLIP's: the embedding of the beginning is that of the whole prompt, and one letter less is another."""
    torch = pytest.importorskip("torch")
    from pipeline_lib.generators.folders import PipelineFolder
    from pipeline_lib.generators.loading import load_pipeline
    from pipeline_lib.generators.text import TextEncoder

    pipeline = load_pipeline(PipelineFolder(tiny_pipeline(family)), torch.float32)
    beginning = read_part(list(pipeline_limits(pipeline)), LONG)
    assert LONG.startswith(beginning) and len(beginning) < len(LONG)

    def embedding(text: str) -> np.ndarray:
        return TextEncoder(pipeline, None).arguments([text])["prompt_embeds"].detach().numpy()

    np.testing.assert_array_equal(embedding(beginning), embedding(LONG))
    shorter = beginning.strip()[:-1]
    assert (embedding(shorter) != embedding(LONG)).any()


@pytest.mark.parametrize("family", ["stable_diffusion_3", "flux_dev"])
def test_t5_reads_on(tiny_pipeline: TinyPipeline, family: str):
    """Where T5 stands beside CLIP, it reads what CLIP cuts; but not beyond what the pipeline asks for."""
    torch = pytest.importorskip("torch")
    from pipeline_lib.generators.folders import PipelineFolder
    from pipeline_lib.generators.loading import load_pipeline

    limits = list(pipeline_limits(load_pipeline(PipelineFolder(tiny_pipeline(family)), torch.float32)))
    assert read_part(limits, LONG) == LONG
    assert len(read_part(limits, "cat " * 10_000)) < 40_000
