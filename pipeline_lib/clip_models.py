"""Finding and building the CLIP model that a configuration names: open_clip's own, a checkpoint, a folder, a hub id."""

import difflib
import logging
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config, load_state_dict
from open_clip.model import set_model_preprocess_cfg
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2

from pipeline_lib.errors import UserError
from pipeline_lib.foreign_code import refuse_code
from pipeline_lib.hub import hub_folder
from pipeline_lib.sections import HUB, LOCAL

log = logging.getLogger(__name__)
KEY = "models.encoders"
_WEIGHTS = ("open_clip*.safetensors", "open_clip*.bin")
# What OpenAI's checkpoints hold beside the weights: no other layout has these entries.
_OPENAI_ENTRIES = frozenset({"input_resolution", "context_length", "vocab_size"})


def load_clip(model: str, pretrained: str | None, revision: str | None) -> tuple[Any, Any, Any]:
    """An open_clip model with all its weights, float32, in evaluation mode, on the CPU; its image transform (a
    torchvision `Compose`) and its tokenizer.

    model, pretrained, revision: `local-dir:FOLDER`; or `hf-hub:OWNER/NAME` with the commit; or the name of an
    architecture with a pretrained tag of open_clip (revision: the commit of the tag's hub repository, if it is to be
    pinned) or with a checkpoint file, open_clip's or the state dict of OpenAI's.

    QuickGELU, with which OpenAI's models were trained, is turned on where the tag, the folder's configuration or the
    layout of the checkpoint asks for it, whatever the name: "RN50" with "openai" is "RN50-quickgelu". (open_clip 3
    only warns.)

    Raises `UserError` where a model is missing, unreachable, of another architecture, damaged, or would run code.
    """
    named = f"{KEY}: {model!r}" + (f" (pretrained {pretrained!r})" if pretrained else "")
    try:
        loaded, tokenizer = _load(model, pretrained, revision)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{named} is a pickle that holds more than weights: loading it could run code, so it was not read; "
            f"use a safetensors file of the same weights"
        ) from error
    except Exception as error:  # open_clip, torch, transformers, timm and safetensors have a class for every fault
        raise UserError(
            f"{named} cannot be loaded: {_reason(error)}. Name another model, or get this one "
            f"again: its files are damaged or missing"
        ) from error
    damaged = [name for name, tensor in loaded.state_dict().items() if not torch.isfinite(tensor).all()]
    if damaged:
        raise UserError(
            f"{named}: {len(damaged)} weights are not finite, the first is {damaged[0]}; the file is damaged: get it "
            f"again"
        )
    transform = image_transform_v2(PreprocessCfg(**loaded.visual.preprocess_cfg), is_train=False)
    return loaded.eval(), transform, _Tokenizer(tokenizer)


class _Tokenizer:
    """open_clip's tokenizer, which cuts what is longer than the text tower's context; this one refuses to.

    (OpenAI's `clip.tokenize` refuses it as well.) Where the caller gives the context length, it has seen to that.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __call__(self, texts: list[str], context_length: int | None = None) -> Any:
        if context_length is not None:
            return self._tokenizer(texts, context_length=context_length)
        tokens = self._tokenizer(texts)
        length = tokens.shape[1]
        # With room for one token more, a text that was not cut stays as it is, and padding follows.
        empty, *longer = self._tokenizer(["", *texts], context_length=length + 1)
        for text, found, wide in zip(texts, tokens, longer, strict=True):
            if wide[-1] != empty[-1] or not torch.equal(wide[:-1], found):
                raise UserError(
                    f"{KEY}: the text encoder reads {length} tokens, and the prompt {text[:100]!r}... has more: its "
                    f"end would be cut; shorten the class name or the templates of the data set"
                )
        return tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _load(model: str, pretrained: str | None, revision: str | None) -> tuple[Any, Any]:
    if model.startswith(HUB):
        repository = model.removeprefix(HUB)
        folder = hub_folder(repository, revision, _WEIGHTS, key=KEY, local_prefix=LOCAL)
        return _from_folder(folder)
    if model.startswith(LOCAL):
        return _from_folder(Path(model.removeprefix(LOCAL)).resolve())
    architecture = model.replace("/", "-")
    if architecture not in open_clip.list_models():
        close = difflib.get_close_matches(architecture, open_clip.list_models(), n=5, cutoff=0.4)
        raise UserError(
            f"{KEY}: open_clip knows no model {model!r}; close are {', '.join(close) or 'none'}; or name "
            f"{LOCAL}FOLDER or {HUB}OWNER/NAME"
        )
    if tag := get_pretrained_cfg(architecture, pretrained or ""):
        loaded = _from_tag(architecture, tag, revision)
    elif pretrained and Path(pretrained).is_file():
        loaded = _from_file(architecture, Path(pretrained))
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(
            f"{KEY}: {model!r} needs pretrained weights, {pretrained!r} is none of its tags ({tags}) and no file here; "
            f"write a tag or the path of a checkpoint below pretrained"
        )
    return loaded, open_clip.get_tokenizer(architecture)


def _from_folder(folder: Path) -> tuple[Any, Any]:
    refuse_code(folder, KEY)  # open_clip hands the tokenizer's settings on, with the permission to run code
    name = f"{LOCAL}{folder}"
    return open_clip.create_model(name, require_pretrained=True), open_clip.get_tokenizer(name)


def _from_tag(architecture: str, settings: dict[str, Any], revision: str | None) -> Any:
    repository, _, file = settings["hf_hub"].rpartition("/")
    folder = hub_folder(repository, revision, [file] if file else _WEIGHTS, key=KEY, local_prefix=LOCAL)
    path = folder / file if file else next(found for name in _WEIGHTS for found in folder.glob(name))
    return open_clip.create_model(
        architecture,
        pretrained=str(path),
        require_pretrained=True,
        force_quick_gelu=bool(settings.get("quick_gelu", False)),
        # A path says nothing of the pixels that the weights were trained on; the tag does.
        force_preprocess_cfg={
            name: settings[name] for name in ("mean", "std", "interpolation", "resize_mode") if settings.get(name)
        },
    )


def _from_file(architecture: str, path: Path) -> Any:
    state = _read_checkpoint(path)
    if state.keys() >= _OPENAI_ENTRIES:
        config = get_model_config(architecture) | {"quick_gelu": True}
        log.info("%s is a checkpoint of OpenAI's: QuickGELU is on", path)
        model = open_clip.CLIP(**config)
        model.load_state_dict({name: value for name, value in state.items() if name not in _OPENAI_ENTRIES})
        set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=model.visual.image_size)))
        return model
    quick = get_model_config(architecture).get("quick_gelu", False)
    log.warning(
        "%s says nothing of activation and pixels: taken are %s and open_clip's usual mean and standard deviation. If "
        "it was trained otherwise, name another architecture, or a folder with an open_clip_config.json",
        path,
        "QuickGELU" if quick else "GELU",
    )
    return open_clip.create_model(architecture, pretrained=str(path), require_pretrained=True)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = load_state_dict(str(path), weights_only=True)
    except StopIteration:  # open_clip looks at the first weight's name
        raise UserError(f"{KEY}: {str(path)!r} holds no weights; name another checkpoint") from None
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
        raise UserError(
            f"{KEY}: {str(path)!r} is a TorchScript archive, weights and a program, as OpenAI published its models: it "
            f"was not run. Use the same weights without the program: a pretrained tag (openai), or a folder from the "
            f"hub, {LOCAL}FOLDER (timm/resnet50_clip.openai and timm/vit_base_patch16_clip_224.openai are RN50 and "
            f"ViT-B/16)"
        ) from error
    return state


def _reason(error: Exception) -> str:
    """What is wrong, in a line or two; torch lists every weight that does not fit."""
    text = str(error).strip() or type(error).__name__
    if "loading state_dict" not in text:
        return text if isinstance(error, OSError | RuntimeError | ValueError) else f"{type(error).__name__}: {text}"
    faults = [line.strip() for line in text.splitlines()[1:]]
    return (
        f"the weights are of another architecture ({faults[0][:200]}); name the architecture that the checkpoint was "
        f"trained as"
    )
