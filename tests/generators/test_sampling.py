"""Settings become a pipeline's arguments, or are refused by the key that they were written under."""

import inspect
import re
from typing import Any

import pytest

from pipeline_lib.errors import UserError

pytest.importorskip("diffusers")
SETTINGS: dict[str, Any] = {"steps": 2, "guidance_scale": 3.0, "negative_prompt": "", "height": None, "width": None}


def pipeline_of(class_name: str, *, transformer: Any = None, unet: Any = None, **config: Any) -> Any:
    """A pipeline that can be asked for its class and its configuration, without any model."""
    import diffusers

    class Model:
        def __init__(self, config: dict[str, Any]):
            self.config = config

    pipeline = object.__new__(getattr(diffusers, class_name))
    pipeline.__dict__ |= {"_internal_dict": config, "transformer": Model(transformer or {}), "unet": Model(unet or {})}
    return pipeline


def arguments(pipeline: Any, **settings: Any) -> dict[str, Any]:
    from pipeline_lib.generators.sampling import sampling_arguments

    return sampling_arguments(pipeline, SETTINGS | settings)


def test_every_pipeline_takes_the_settings_or_refuses_them():
    """Of whatever families the installed diffusers knows: what it is called with, it takes, guidance included."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    refused = []
    for cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        names = inspect.signature(cls.__call__).parameters
        try:
            found = arguments(pipeline_of(cls.__name__), height=64, width=64)
        except UserError as error:
            assert re.match(r"images\.(steps|guidance_scale): ", str(error))
            refused.append(cls.__name__)
            continue
        assert found.keys() <= names.keys()
        assert {"num_inference_steps": 2, "height": 64, "width": 64}.items() <= found.items()
        assert found.keys() & {"guidance_scale", "true_cfg_scale"}
    assert not {"StableDiffusionPipeline", "FluxPipeline", "PixArtSigmaPipeline"} & set(refused)
    assert "StableCascadeCombinedPipeline" in refused  # two scales of two models


# (pipeline, its models' configuration, scale s of Equation 8) -> what its call takes, by its own documentation
GUIDANCE = [
    ("StableDiffusionPipeline", {}, 3.0, {"guidance_scale": 3.0}),
    ("StableDiffusionPipeline", {}, 1.0, {"guidance_scale": 1.0}),  # at most 1 is off
    ("StableDiffusionXLPipeline", {}, 5.0, {"guidance_scale": 5.0}),
    ("StableDiffusion3Pipeline", {}, 5.0, {"guidance_scale": 5.0}),
    # FLUX.1-dev: an input; true guidance is off. FLUX.1-schnell has no such input, so guidance is true guidance.
    ("FluxPipeline", {"transformer": {"guidance_embeds": True}}, 3.5, {"guidance_scale": 3.5, "true_cfg_scale": 1.0}),
    ("FluxPipeline", {"transformer": {"guidance_embeds": False}}, 1.0, {"true_cfg_scale": 1.0}),
    ("FluxPipeline", {"transformer": {"guidance_embeds": False}}, 2.0, {"true_cfg_scale": 2.0}),
    # v = v_text + g (v_text - v_none): g = s - 1
    ("ZImagePipeline", {}, 5.0, {"guidance_scale": 4.0}),
    ("ZImagePipeline", {}, 1.0, {"guidance_scale": 0.0}),
    ("LatentConsistencyModelPipeline", {"unet": {"time_cond_proj_dim": 256}}, 8.0, {"guidance_scale": 8.0}),
]


@pytest.mark.parametrize(("class_name", "configs", "scale", "expected"), GUIDANCE)
def test_guidance_is_told_in_the_pipelines_terms(
    class_name: str, configs: dict[str, Any], scale: float, expected: dict[str, float]
):
    """One scale, that of the paper's Equation 8, whatever a family calls it."""
    if class_name == "ZImagePipeline":
        pytest.importorskip("diffusers", minversion="0.36")
    found = arguments(pipeline_of(class_name, **configs), guidance_scale=scale)
    assert {name: value for name, value in found.items() if "scale" in name} == expected


def test_a_model_distilled_to_draw_without_guidance_refuses_it():
    """It would ignore the scale; 1 is off, and allowed."""
    pytest.importorskip("diffusers", minversion="0.37")
    pipeline = pipeline_of("Flux2KleinPipeline", is_distilled=True)
    with pytest.raises(UserError, match=r"images\.guidance_scale: 3\.0 is not allowed.*write 1"):
        arguments(pipeline)
    assert arguments(pipeline, guidance_scale=1.0)["guidance_scale"] == 1.0


@pytest.mark.parametrize(
    ("class_name", "configs", "scale"),
    [
        ("FluxPipeline", {"transformer": {"guidance_embeds": True}}, 3.5),
        ("LatentConsistencyModelPipeline", {}, 3.0),
        ("StableDiffusionPipeline", {"unet": {"time_cond_proj_dim": 256}}, 3.0),
    ],
)
def test_a_negative_prompt_that_the_model_does_not_take_is_refused(class_name: str, configs: Any, scale: float):
    """Its call has no such argument, or guidance is an input of the model and compares no two predictions."""
    with pytest.raises(UserError, match=r"images\.negative_prompt: 'blurry' is not allowed.*does not take"):
        arguments(pipeline_of(class_name, **configs), guidance_scale=scale, negative_prompt="blurry")


def test_a_negative_prompt_without_guidance_is_refused():
    """It would change nothing."""
    with pytest.raises(UserError, match=r"images\.negative_prompt: 'blurry' does not act without guidance"):
        arguments(pipeline_of("StableDiffusionPipeline"), guidance_scale=1.0, negative_prompt="blurry")
    arguments(pipeline_of("StableDiffusionPipeline"), guidance_scale=1.5, negative_prompt="blurry")


def test_size_and_steps_that_a_pipeline_has_no_argument_for_are_refused(monkeypatch: pytest.MonkeyPatch):
    """The message names the key."""
    monkeypatch.setattr("pipeline_lib.generators.sampling.parameters", lambda _: {"guidance_scale", "height"})
    pipeline = pipeline_of("StableDiffusionPipeline")
    with pytest.raises(UserError, match=r"images\.steps: 2 is not allowed.*name another model"):
        arguments(pipeline)
    monkeypatch.setattr("pipeline_lib.generators.sampling.parameters", lambda _: {"num_inference_steps", "height"})
    with pytest.raises(UserError, match=r"images\.width: 64 is not allowed.*write null"):
        arguments(pipeline, height=64, width=64)


# --- scheduler --------------------------------------------------------------------------------------------------------


def with_scheduler(name: str | None) -> Any:
    from diffusers import EulerDiscreteScheduler

    from pipeline_lib.generators.sampling import set_scheduler

    pipeline = pipeline_of("StableDiffusionPipeline")
    pipeline.__dict__["scheduler"] = EulerDiscreteScheduler(beta_start=0.001, prediction_type="v_prediction")
    set_scheduler(pipeline, name)
    return pipeline.scheduler


def test_a_scheduler_is_set_up_as_the_models_own_was():
    """Noise schedule and kind of prediction belong to the model."""
    scheduler = with_scheduler("DDIMScheduler")
    assert type(scheduler).__name__ == "DDIMScheduler"
    assert (scheduler.config.beta_start, scheduler.config.prediction_type) == (0.001, "v_prediction")


@pytest.mark.parametrize(
    ("own", "expected"), [({}, False), ({"clip_sample": True}, True), ({"clip_sample": False}, False)]
)
def test_latents_are_not_clipped(own: dict[str, bool], expected: bool):
    """Unless the model's own configuration says so, as one for pixels does; the scheduler's default is to clip."""
    from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

    from pipeline_lib.generators.sampling import set_scheduler

    assert DDIMScheduler().config.clip_sample
    pipeline = pipeline_of("StableDiffusionPipeline")
    pipeline.__dict__["scheduler"] = DDPMScheduler(**own) if own else EulerDiscreteScheduler()
    set_scheduler(pipeline, "DDIMScheduler")
    assert pipeline.scheduler.config.clip_sample is expected


@pytest.mark.parametrize("name", [None, "EulerDiscreteScheduler"])
def test_the_models_own_scheduler_stays(name: str | None):
    """Unnamed or named."""
    assert type(with_scheduler(name)).__name__ == "EulerDiscreteScheduler"


@pytest.mark.parametrize(
    "name",
    [
        "ddim",
        "StableDiffusionPipeline",
        "FlowMatchEulerDiscreteScheduler",  # of models that were trained otherwise
        "EDMEulerScheduler",
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused(name: str):
    """With the ones that do."""
    with pytest.raises(UserError, match=rf"images\.scheduler: '{name}' is not allowed.*DDIMScheduler, DDPMScheduler"):
        with_scheduler(name)


def test_a_scheduler_that_lacks_a_library_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The message says which."""
    from diffusers import DDIMScheduler

    def needs(*_: Any, **__: Any) -> None:
        raise ImportError("DDIMScheduler requires the torchsde library")

    monkeypatch.setattr(DDIMScheduler, "from_config", needs)
    with pytest.raises(UserError, match=r"images\.scheduler: 'DDIMScheduler' cannot be used.*torchsde"):
        with_scheduler("DDIMScheduler")
