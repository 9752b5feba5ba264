"""From a pipeline folder to a diffusers pipeline whose weights are all the folder's."""

import importlib
import inspect
import warnings
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from pipeline_lib.errors import UserError
from pipeline_lib.generators.folders import KEY, Component, PipelineFolder

# What the libraries raise for files that are missing, damaged or of another model.
_UNUSABLE = (AttributeError, ImportError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)
# Once a pipeline is loaded, they warn of casts alone, with every batch: SDXL draws in float16, decodes in float32.
_CASTS = ("diffusers.models.modeling_utils", "diffusers.pipelines.pipeline_utils")
# Images for research are kept as they were drawn. What a pipeline's constructor takes to leave them alone:
_UNALTERED = {"safety_checker": None, "requires_safety_checker": False, "watermarker": None, "add_watermarker": False}


def load_pipeline(folder: PipelineFolder, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline in CPU memory, in evaluation mode, without safety checker and watermark.

    Raises `UserError` for a pipeline that draws no images from text alone, and for weights that do not fit their
    configuration; the libraries would fill missing weights with random numbers.
    """
    pipeline_class = _text_to_image_class(folder)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    arguments = {name: value for name, value in _UNALTERED.items() if name in _parameters(pipeline_class)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that the installed versions still know
        for component in folder.models():
            if component.library in ("diffusers", "transformers"):
                arguments[component.name] = _load_model(component, dtype)
        try:
            pipeline = pipeline_class.from_pretrained(
                folder.path, torch_dtype=dtype, local_files_only=True, use_safetensors=True, **arguments
            )
        except _UNUSABLE as error:
            raise UserError(f"{KEY}: {str(folder.path)!r} cannot be loaded: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    for name in _CASTS:
        diffusers_logging.get_logger(name).setLevel(diffusers_logging.ERROR)
    return pipeline


def _text_to_image_class(folder: PipelineFolder) -> Any:
    """The pipeline's class, if it is one that AutoPipelineForText2Image gives and needs nothing but text."""
    allowed = sorted(
        {cls.__name__ for cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() if "Control" not in cls.__name__}
    )
    if folder.class_name not in allowed:
        raise UserError(
            f"{KEY}: {str(folder.path)!r} cannot be loaded: it is a {folder.class_name}; text-to-image pipelines of "
            f"the installed diffusers {diffusers.__version__} are GlidePipeline, {', '.join(allowed)}"
        )
    return getattr(diffusers, folder.class_name)


def _parameters(pipeline_class: Any) -> frozenset[str]:
    return frozenset(inspect.signature(pipeline_class.__init__).parameters)


def _load_model(component: Component, dtype: torch.dtype) -> Any:
    try:
        model, report = getattr(importlib.import_module(component.library), component.class_name).from_pretrained(
            component.folder,
            variant=component.variant,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **{"torch_dtype" if component.library == "diffusers" else "dtype": dtype},
        )
    except _UNUSABLE as error:
        reason = str(error).rstrip(".!")
    else:
        missing = sorted(report["missing_keys"])
        if not missing:
            return model
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        reason = f"weights {', '.join(missing[:3])}{more} are missing"
    raise UserError(
        f"{KEY}: {str(component.folder)!r} cannot be loaded as the {component.class_name} of its config.json: "
        f"{reason}. It is damaged, or the checkpoint of another architecture: download or convert the model again"
    )
