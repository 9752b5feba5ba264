"""Text embeddings: the pipeline's own, made once per prompt, and not more of them than fit."""

from typing import Any

import pytest
from tiny_pipelines import TINY_PIPELINES, TinyPipeline

pytest.importorskip("diffusers")
CAT, DOG = "a photo of a red cat", "a photo of a blue dog"


def encoder(tiny_pipeline: TinyPipeline, family: str, negative_prompt: str | None = "", **keywords: Any) -> Any:
    import torch

    from pipeline_lib.generators.folders import PipelineFolder
    from pipeline_lib.generators.loading import load_pipeline
    from pipeline_lib.generators.text import TextEncoder

    return TextEncoder(load_pipeline(PipelineFolder(tiny_pipeline(family)), torch.float32), negative_prompt, **keywords)


def counted(encoder: Any) -> list[str]:
    """The prompts that go through the text encoders from now on."""
    encode, seen = encoder.pipeline.encode_prompt, []

    def counting(prompt: str, **keywords: Any) -> Any:
        seen.append(prompt)
        return encode(prompt=prompt, **keywords)

    encoder.pipeline.encode_prompt = counting
    return seen


@pytest.mark.parametrize("family", TINY_PIPELINES)
def test_each_distinct_prompt_is_encoded_once(tiny_pipeline: TinyPipeline, family: str):
    """In a batch and over batches; the negative prompt too."""
    text = encoder(tiny_pipeline, family)
    seen = counted(text)
    for batch in ([CAT, DOG, CAT], [DOG], [CAT, CAT]):
        found = text.arguments(batch)
        assert {len(tensor) for tensor in found.values()} == {len(batch)}
    assert sorted(seen) == sorted([CAT, DOG, ""])


@pytest.mark.parametrize("negative_prompt", ["", "a dog"])
@pytest.mark.parametrize("family", ["stable_diffusion_1", "stable_diffusion_xl", "stable_diffusion_3"])
def test_embeddings_are_the_pipelines_own(tiny_pipeline: TinyPipeline, family: str, negative_prompt: str):
    """What encode_prompt gives for both prompts at once; no negative prompt is the model's own kind of nothing."""
    import torch

    text = encoder(tiny_pipeline, family, negative_prompt)
    more = {"stable_diffusion_xl": ("prompt_2",), "stable_diffusion_3": ("prompt_2", "prompt_3")}.get(family, ())
    expected = text.pipeline.encode_prompt(
        prompt=CAT,
        **dict.fromkeys(more),
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=negative_prompt or None,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    found = text.arguments([CAT])
    assert found.keys() == set(names[: len(expected)])
    for name, tensor in zip(names, expected, strict=False):
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_no_prompt_is_zeros_for_sdxl(tiny_pipeline: TinyPipeline):
    """As its model_index.json says (force_zeros_for_empty_prompt); an encoded "" is something else."""
    assert not encoder(tiny_pipeline, "stable_diffusion_xl").arguments([CAT])["negative_prompt_embeds"].any()
    assert encoder(tiny_pipeline, "stable_diffusion_2").arguments([CAT])["negative_prompt_embeds"].any()


def test_without_guidance_nothing_negative_is_encoded(tiny_pipeline: TinyPipeline):
    """Half the work."""
    text = encoder(tiny_pipeline, "stable_diffusion_xl", None)
    seen = counted(text)
    assert text.arguments([CAT]).keys() == {"prompt_embeds", "pooled_prompt_embeds"}
    assert seen == [CAT]


def test_what_was_used_least_recently_is_forgotten_first(tiny_pipeline: TinyPipeline):
    """The cache holds as many prompts as fit into its bytes, and a batch may be larger than that."""
    text = encoder(tiny_pipeline, "stable_diffusion_1", None)
    n_bytes = text.arguments([CAT])["prompt_embeds"].nbytes
    text = encoder(tiny_pipeline, "stable_diffusion_1", None, cache_bytes=2 * n_bytes)
    seen = counted(text)
    text.arguments(["1", "2", "1", "3"])  # 3 takes the place of 2
    text.arguments(["1", "3"])
    assert seen == ["1", "2", "3"]
    assert len(text.arguments(["1", "2", "3", "4", "5"])["prompt_embeds"]) == 5
    assert seen == ["1", "2", "3", "2", "3", "4", "5"]
    assert len(text._cache) == 2


def test_other_pipelines_get_the_prompts_themselves(tiny_pipeline: TinyPipeline):
    """With a negative prompt where there is one; where guidance needs a text to lead away from, a blank."""
    text = encoder(tiny_pipeline, "stable_diffusion_1", "a dog")
    text.pipeline = type("OtherPipeline", (), {"__call__": lambda self, prompt, negative_prompt: None})()
    assert text.arguments([CAT, DOG]) == {"prompt": [CAT, DOG], "negative_prompt": ["a dog"] * 2}
    for text.negative_prompt in ("", None):
        assert text.arguments([CAT]) == {"prompt": [CAT]}
    text.pipeline = type("TruePipeline", (), {"__call__": lambda self, prompt, negative_prompt, true_cfg_scale: None})()
    text.negative_prompt = ""
    assert text.arguments([CAT]) == {"prompt": [CAT], "negative_prompt": [" "]}
    text.negative_prompt = None
    assert text.arguments([CAT]) == {"prompt": [CAT]}
