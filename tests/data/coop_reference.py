"""Makes tests/data/coop_reference.npz: what the original implementation of CoOp computes with tiny, drawn weights.

    git clone https://github.com/KaiyangZhou/CoOp              (commit ff61507c790454bce7c5052c3ac39e60772f1f89)
    git clone https://github.com/KaiyangZhou/Dassl.pytorch     (commit c61a1b570ac6333bd50fb5ae06aea59002fb20bb)
    PYTHONPATH=CoOp:Dassl.pytorch:tests:tests/classifiers:tests/generators python tests/data/coop_reference.py CoOp

Its prompt learner, text encoder, model, optimiser and schedule are run as they are, with the values of its
configuration rn50.yaml, in float32; only the image encoder is left out: images are their features. Then its linear
probe is run as it is. Written are tokens, text features, logits, the learning rate of each epoch, logits after
training (all shots in each batch, so that their order does not matter), and what the linear probe chose.
"""

import contextlib
import copy
import io
import os
import re
import runpy
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import yaml
from coop_models import CONFIG, REFERENCE, TEXT, text_weights


class Configuration(SimpleNamespace):
    """As much as is needed of the class that the original's library keeps its settings in."""

    def merge(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                getattr(self, name).merge(value)
            else:
                setattr(self, name, value)


sys.modules["yacs"], sys.modules["yacs.config"] = ModuleType("yacs"), SimpleNamespace(CfgNode=Configuration)  # type: ignore
sys.modules |= {name: MagicMock() for name in ("dassl.engine", "dassl.metrics", "dassl.utils")}
# A newer torch no longer has the schedulers' last argument.
_Scheduler = torch.optim.lr_scheduler.LRScheduler
_begin = _Scheduler.__init__
_Scheduler.__init__ = lambda self, optimizer, last_epoch=-1, _=None: _begin(self, optimizer, last_epoch)  # type: ignore

from clip.model import CLIP  # noqa: E402
from dassl.config.defaults import _C as DEFAULTS  # noqa: E402
from dassl.optim import build_lr_scheduler, build_optimizer  # noqa: E402
from trainers.coop import CustomCLIP  # noqa: E402

NAMES = ["cat", "golden_retriever", "Airbus A320-200", "oak tree", "déjà vu (café)"]
CONTEXT, EPOCHS, SHOTS = 16, 40, 6


def original_clip() -> Any:
    """The original's class, with the drawn weights."""
    model = CLIP(CONFIG["embed_dim"], 32, 1, 64, 16, TEXT["context_length"], TEXT["vocab_size"], 32, 2, 2)
    missing, unexpected = model.load_state_dict(text_weights(), strict=False)
    assert not unexpected
    assert all(name.startswith("visual.") for name in missing)
    return model.float().eval()


def settings(folder: Path) -> Any:
    """The original's defaults, overlaid by rn50.yaml."""
    chosen = copy.deepcopy(DEFAULTS)
    # As PyYAML reads it, 1e-5 is text.
    text = re.sub(r"\b1e-5\b", "1.0e-5", (folder / "configs/trainers/CoOp/rn50.yaml").read_text())
    chosen.merge(yaml.safe_load(text))
    chosen.merge({"INPUT": {"SIZE": (32, 32)}, "OPTIM": {"MAX_EPOCH": EPOCHS}})
    chosen.TRAINER = Configuration(
        COOP=Configuration(N_CTX=CONTEXT, CTX_INIT="", CSC=False, CLASS_TOKEN_POSITION="end", PREC="fp32")
    )
    return chosen


def coop(folder: Path) -> dict[str, Any]:
    """Forward pass, training and forward pass again."""
    chosen = settings(folder)
    torch.manual_seed(0)
    model = CustomCLIP(chosen, NAMES, original_clip())
    model.image_encoder = torch.nn.Identity()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prompt_learner" in name)
    numbers = np.random.RandomState(1)
    features = numbers.standard_normal((SHOTS * len(NAMES), CONFIG["embed_dim"])).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.repeat(np.arange(len(NAMES)), SHOTS)
    images, targets = torch.tensor(features), torch.tensor(labels)
    result = {
        "class_names": np.array(NAMES),
        "features": features,
        "labels": labels,
        "tokens": model.tokenized_prompts.numpy().astype(np.int32),
        "context": model.prompt_learner.ctx.detach().numpy().copy(),
        "text_features": model.text_encoder(model.prompt_learner(), model.tokenized_prompts).detach().numpy(),
        "logits": model(images).detach().numpy(),
    }
    optimizer = build_optimizer(model.prompt_learner, chosen.OPTIM)
    scheduler = build_lr_scheduler(optimizer, chosen.OPTIM)
    rates, losses = [], []
    for _ in range(EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return result | {
        "rates": np.array(rates),
        "losses": np.array(losses),
        "trained_logits": model(images).detach().numpy(),
        "rate": np.array(chosen.OPTIM.LR),
        "batch_size": np.array(chosen.DATALOADER.TRAIN_X.BATCH_SIZE),
    }


def linear_probe(folder: Path) -> dict[str, Any]:
    """What its script fits last and reports, for each number of shots; the draws of shots are its own."""
    from sklearn.linear_model import LogisticRegression

    numbers = np.random.RandomState(2)
    centres = numbers.standard_normal((4, 8))
    splits = {}
    for split, each in (("train", 16), ("val", 4), ("test", 25)):
        labels = np.repeat(np.arange(4), each)
        drawn = centres[labels] + 1.5 * numbers.standard_normal((len(labels), 8))
        splits[split] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True), labels)
    fitted, fit = [], LogisticRegression.fit

    def recorded(self: Any, features: Any, labels: Any) -> Any:
        fitted.append((features, labels))
        return fit(self, features, labels)

    LogisticRegression.fit = recorded
    result: dict[str, Any] = {"probe_test": splits["test"][0], "probe_test_labels": splits["test"][1]}
    predicted, predict = [], LogisticRegression.predict

    def remembered(self: Any, features: Any) -> Any:
        found = predict(self, features)
        if len(features) == len(splits["test"][0]):
            predicted.append((self.C, self.decision_function(features), fitted[-1]))
        else:
            result[f"probe_{len(fitted[-1][0]) // 4}_validation"] = features
        return found

    LogisticRegression.predict = remembered
    script = (folder / "lpclip/linear_probe.py").resolve()
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "clip_feat/drawn").mkdir(parents=True)
        for split, (features, labels) in splits.items():
            np.savez(Path(work) / f"clip_feat/drawn/{split}.npz", feature_list=features, label_list=labels)
        here, arguments = Path.cwd(), sys.argv
        os.chdir(work)
        sys.argv = [str(script), "--dataset", "drawn", "--num_run", "1"]
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            runpy.run_path(str(script), run_name="__main__")
        os.chdir(here)
        sys.argv = arguments
    # The test images are predicted eight times for each number of shots, after each halving; the last time counts.
    for last, shots in zip(predicted[7::8], (1, 2, 4, 8, 16), strict=True):
        c, decisions, (features, labels) = last
        result |= {f"probe_{shots}_shots": features, f"probe_{shots}_labels": labels}
        result |= {f"probe_{shots}_c": np.array(c), f"probe_{shots}_decisions": decisions}
    return result


if __name__ == "__main__":
    original = Path(sys.argv[1])
    np.savez_compressed(REFERENCE, **coop(original), **linear_probe(original))
