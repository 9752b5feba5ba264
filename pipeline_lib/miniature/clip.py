"""Train the small CLIP (Radford et al., 2021) on the web corpus, with `open_clip`'s own model.

The image encoder is a ModifiedResNet, the text encoder a small transformer. The folder written loads as
`open_clip.create_model_from_pretrained("local-dir:FOLDER")`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline_lib.miniature import corpus, tokenizer, training
from pipeline_lib.sections import LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def model_config(vocabulary: int, width: int, text_width: int, embed_dim: int) -> dict[str, Any]:
    """`open_clip` model configuration; layers as a list means a ModifiedResNet."""
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": width, "patch_size": None},
        "text_cfg": {
            "context_length": tokenizer.CONTEXT,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "local",  # with local-dir: the folder itself
            "width": text_width,
            "heads": text_width // 32,
            "layers": 2,
        },
    }


def create(config: dict[str, Any]) -> Any:
    """An untrained `open_clip` model."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"]))


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, 32, 32, 3] -> float32 [N, 3, 32, 32], normalised with MEAN and STD, channels last."""
    tensor = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def contrastive(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy over the batch; features [N, D] of unit length."""
    logits = scale * image @ text.t()
    targets = torch.arange(len(image))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2


def train(found: corpus.Corpus, tokens: torch.Tensor, work: Path, chosen: dict[str, Any], vocabulary: int) -> Any:
    """Train from the last checkpoint in `work`, if any; tokens are int64 [N, CONTEXT]. Returns model, configuration."""
    torch.manual_seed(chosen["seed"])
    config = model_config(vocabulary, chosen["width"], chosen["text_width"], chosen["embed_dim"])
    model = create(config).to(memory_format=torch.channels_last).train()
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": chosen["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=chosen["lr"],
        betas=(0.9, 0.98),
    )
    saved = training.load_checkpoint(work / "checkpoint.pt", chosen)
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    notes: dict[str, float] = {}
    for step in training.progress("clip", first, chosen["steps"], notes):
        rows = training.batch_rows(chosen["seed"], step, chosen["batch"], len(tokens)).sort().values
        rate = training.learning_rate(step, chosen["lr"], chosen["warmup"], chosen["steps"])
        training.set_learning_rate(optimizer, rate)
        with torch.autocast("cpu", torch.bfloat16):
            image = model.encode_image(to_tensor(found.images[rows.numpy()]), normalize=True)
            text = model.encode_text(tokens[rows], normalize=True)
        value = contrastive(image.float(), text.float(), model.logit_scale.exp())
        training.update(optimizer, value)
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        notes["loss"] = value.item()
        if (step + 1) % chosen["checkpoint_every"] == 0 or step + 1 == chosen["steps"]:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            training.save_checkpoint(work / "checkpoint.pt", state, chosen)
    return model.eval(), config


def export(model: Any, config: dict[str, Any], bpe: Path, out: Path) -> None:
    """Write open_clip_config.json, open_clip_model.safetensors (half precision) and the tokenizer."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    save_file(state, out / "open_clip_model.safetensors")
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (out / "open_clip_config.json").write_text(text + "\n", encoding="utf-8")
    tokenizer.clip_tokenizer(bpe).save_pretrained(out)


def read_config(folder: Path) -> dict[str, Any]:
    """The `open_clip` model configuration `export` wrote."""
    config: dict[str, Any] = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    return config


def load_clip(folder: Path | str) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """Load any `open_clip` folder: model (evaluation mode, float32), preprocess (PIL -> tensor), tokenizer."""
    import open_clip

    name = f"{LOCAL}{Path(folder).resolve()}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def main() -> None:
    """`python -m pipeline_lib.miniature.clip --corpus FOLDER --tokenizer FOLDER --work FOLDER --out FOLDER`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the web corpus")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=training.SETTINGS)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = corpus.load(args.corpus)
    words = tokenizer.clip_tokenizer(args.tokenizer)
    ids = words(found.captions, padding="max_length", max_length=tokenizer.CONTEXT, truncation=True)["input_ids"]
    chosen = training.settings_for(args.settings, "clip", [args.corpus / "captions.jsonl", args.tokenizer / "bpe.json"])
    model, config = train(found, torch.tensor(ids), args.work, chosen, len(words))
    export(model, config, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
