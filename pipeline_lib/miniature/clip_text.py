"""Second phase of the small CLIP: image encoder locked, text encoder trained on (LiT; Zhai et al., 2022).

The corpus of this phase uses class names loosely: a t-shirt is often called "shirt". The image features stay good,
while class prompts point only roughly at their classes, as CLIP's do on specialised data sets. Classifier tuning is
there to mend exactly this.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline_lib.miniature import clip, corpus, tokenizer, training
from pipeline_lib.miniature.evaluation import image_features


def train(model: Any, features: torch.Tensor, tokens: torch.Tensor, chosen: dict[str, Any]) -> Any:
    """Train the text encoder against fixed image features, float32 [N, D]; tokens int64 [N, CONTEXT]."""
    torch.manual_seed(chosen["seed"])
    model.requires_grad_(False)
    texts = [value for name, value in model.named_parameters() if not name.startswith("visual.")]
    for value in texts:
        value.requires_grad_(True)
    optimizer = torch.optim.AdamW(texts, lr=chosen["lr"], weight_decay=chosen["weight_decay"], betas=(0.9, 0.98))
    notes: dict[str, float] = {}
    for step in training.progress("clip_text", 0, chosen["steps"], notes):
        rows = training.batch_rows(chosen["seed"], step, chosen["batch"], len(tokens))
        rate = training.learning_rate(step, chosen["lr"], chosen["warmup"], chosen["steps"])
        training.set_learning_rate(optimizer, rate)
        with torch.autocast("cpu", torch.bfloat16):
            text = model.encode_text(tokens[rows], normalize=True)
        value = clip.contrastive(features[rows], text.float(), model.logit_scale.exp())
        training.update(optimizer, value)
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        notes["loss"] = value.item()
    return model.eval()


def main() -> None:
    """`python -m pipeline_lib.miniature.clip_text --corpus FOLDER --clip FOLDER --tokenizer FOLDER --out FOLDER`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the loose corpus")
    parser.add_argument("--clip", type=Path, required=True, help="what the first phase wrote")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=training.SETTINGS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = corpus.load(args.corpus)
    model, _, _ = clip.load_clip(args.clip)
    features = image_features(model, found.images)
    words = tokenizer.clip_tokenizer(args.tokenizer)
    ids = words(found.captions, padding="max_length", max_length=tokenizer.CONTEXT, truncation=True)["input_ids"]
    model = train(model, features, torch.tensor(ids), training.settings(args.settings, "clip_text"))
    clip.export(model, clip.read_config(args.clip), args.tokenizer, args.out)


if __name__ == "__main__":
    main()
