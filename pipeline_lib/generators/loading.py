"""From a pipeline folder to a diffusers pipeline whose weights are all the folder's."""

import importlib
import inspect
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from pipeline_lib.errors import UserError
from pipeline_lib.foreign_code import refuse_code
from pipeline_lib.generators.folders import KEY, Component, PipelineFolder
from pipeline_lib.generators.glide.pipeline import GlidePipeline

# Where the models of a pipeline come from: libraries as model_index.json names them.
_LIBRARIES = ("diffusers", "transformers", "pipeline_lib.generators.glide.text")
_NAMED = 3  # weights in a message
# Modules that say nothing of use below an error: of weights that do not fit, which is an error here; and with every
# batch of casts, because SDXL draws in float16 and decodes in float32.
_TALKATIVE = {
    diffusers_logging: ("diffusers.models.modeling_utils", "diffusers.pipelines.pipeline_utils"),
    # The second one complains of what is not sharded as soon as the first one is quiet.
    transformers_logging: ("transformers.modeling_utils", "transformers.distributed.tensor_parallel"),
}
# Images for research are kept as they were drawn. What a pipeline's constructor takes to leave them alone:
_UNALTERED = {"safety_checker": None, "requires_safety_checker": False, "watermarker": None, "add_watermarker": False}


def load_pipeline(folder: PipelineFolder, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline in CPU memory, in evaluation mode, without safety checker and watermark.

    Raises `UserError` for a pipeline that draws no images from text alone, for weights that do not fit their
    configuration (the libraries would fill missing ones with random numbers), and for weights that are not finite.
    """
    pipeline_class = _text_to_image_class(folder)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    for library, names in _TALKATIVE.items():
        for name in names:
            library.get_logger(name).setLevel(library.ERROR)
    arguments = unaltered(pipeline_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that the installed versions still know
        for component in folder.components():
            _require_library(component)
            refuse_code(component.folder, KEY)
        for component in folder.models():
            if component.library in _LIBRARIES:
                arguments[component.name] = _load_model(component, dtype)
        try:
            pipeline = pipeline_class.from_pretrained(
                folder.path, torch_dtype=dtype, local_files_only=True, use_safetensors=True, **arguments
            )
        except Exception as error:  # the libraries have a class for every fault
            raise UserError(f"{KEY}: {str(folder.path)!r} cannot be loaded: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _text_to_image_class(folder: PipelineFolder) -> Any:
    """The pipeline's class, if it is GLIDE or one that AutoPipelineForText2Image gives and needs nothing but text."""
    if folder.class_name == GlidePipeline.__name__:
        return GlidePipeline
    allowed = sorted(
        {cls.__name__ for cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() if "Control" not in cls.__name__}
    )
    if folder.class_name not in allowed:
        raise UserError(
            f"{KEY}: {str(folder.path)!r} cannot be loaded: it is a {folder.class_name}; text-to-image pipelines of "
            f"the installed diffusers {diffusers.__version__} are GlidePipeline, {', '.join(allowed)}"
        )
    return getattr(diffusers, folder.class_name)


def _require_library(component: Component) -> None:
    """Raises `UserError` where a component comes from a module that is neither diffusers' own nor ours: importing it
    runs code."""
    ours = component.library.startswith(f"{GlidePipeline.__module__.rpartition('.')[0]}.")
    if not ours and component.library not in _LIBRARIES and not hasattr(diffusers.pipelines, component.library):
        raise UserError(
            f"{KEY}: {str(component.folder.parent)!r} cannot be loaded: its component {component.name} is a class of "
            f"the Python module {component.library!r}, which would run other code; it was not imported. Name a model "
            f"whose components are of diffusers and transformers"
        )


def unaltered(pipeline_class: Any) -> dict[str, Any]:
    """What a pipeline class's constructor takes to leave images as they were drawn."""
    taken = inspect.signature(pipeline_class.__init__).parameters
    return {name: value for name, value in _UNALTERED.items() if name in taken}


def _load_model(component: Component, dtype: torch.dtype) -> Any:
    try:
        model, report = getattr(importlib.import_module(component.library), component.class_name).from_pretrained(
            component.folder,
            variant=component.variant,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, where the libraries' own errors advise to load random numbers
            **{"dtype" if component.library == "transformers" else "torch_dtype": dtype},
        )
    except Exception as error:  # the libraries have a class for every fault
        reason = str(error).rstrip(".! ")
    else:
        fault = _fault(model, report)
        if fault is None:
            return model
        reason = fault
    raise UserError(
        f"{KEY}: {str(component.folder)!r} cannot be loaded as the {component.class_name} of its config.json: "
        f"{reason}. It is damaged, or the checkpoint of another architecture: download or convert the model again"
    )


def _fault(model: torch.nn.Module, report: Mapping[str, Any]) -> str | None:
    """What is wrong with a model's weights, None where nothing is; `report` is the libraries' loading info."""
    if misshapen := sorted(report["mismatched_keys"]):
        name, found, expected = misshapen[0]
        more = f", and {len(misshapen) - 1} more misfits" if len(misshapen) > 1 else ""
        return f"weight {name} has the shape {list(found)}, not {list(expected)}{more}"
    if missing := report["missing_keys"]:
        return f"weights {_named(missing)} are missing"
    if damaged := [name for name, weight in model.named_parameters() if not _is_finite(weight)]:
        return f"weights {_named(damaged)} are not finite in {str(model.dtype).removeprefix('torch.')}"
    return None


def _named(weights: Collection[str]) -> str:
    more = f" and {len(weights) - _NAMED} more" if len(weights) > _NAMED else ""
    return f"{', '.join(sorted(weights)[:_NAMED])}{more}"


def _is_finite(weight: torch.Tensor) -> bool:
    # Both ends are NaN where one number is; much faster than torch.isfinite of billions of them.
    return weight.numel() == 0 or all(end.isfinite() for end in torch.aminmax(weight))
