"""Tiny, random CLIP models of every family that open_clip builds, as folders that it loads."""

import json
from pathlib import Path
from typing import Any

_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
_VIT = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
_RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}

RESNET = {"embed_dim": 16, "vision_cfg": _RESNET, "text_cfg": _TEXT}
VIT = {"embed_dim": 16, "vision_cfg": _VIT, "text_cfg": _TEXT}
FAMILIES: dict[str, dict[str, Any]] = {
    "resnet": RESNET,
    "vit": VIT,
    "vit_quickgelu": {**VIT, "quick_gelu": True},
    "siglip": {**VIT, "custom_text": True, "init_logit_bias": -10.0},
    "timm": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"},
        "text_cfg": _TEXT,
    },
    "coca": {
        "embed_dim": 32,
        "vision_cfg": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}


def build(config: dict[str, Any]) -> Any:
    """The random model, in evaluation mode. Its scale is CLIP's, so that softmaxes are far from uniform."""
    import open_clip
    import torch

    torch.manual_seed(0)
    config = dict(config)
    kind: Any = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CLIP
    if config.pop("custom_text", False) and kind is open_clip.CLIP:
        kind = open_clip.CustomTextCLIP
    model = kind(**config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(4.6052)
        if kind is open_clip.CoCa:  # open_clip leaves it as the memory was
            model.text_decoder.text_projection.normal_(std=0.02)
    return model


def write_folder(model: Any, config: dict[str, Any], folder: Path, **preprocess: Any) -> str:
    """Write a folder in open_clip's format; returns its name in a configuration."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
