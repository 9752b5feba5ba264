"""Makes tests/data/tip_adapter_reference.npz: what the original implementation of Tip-Adapter computes.

    git clone https://github.com/gaopengcuhk/Tip-Adapter    (commit d0e2d6f8c5feb8b6ce937b757810761f7155d4d5)
    PYTHONPATH=Tip-Adapter python tests/data/tip_adapter_reference.py Tip-Adapter/configs

Its functions are run as they are, on the CPU and in float64: the training-free adapter, the fine-tuned one (all shots
in each batch, so that their order does not matter), and the search, with the ranges of each of its configurations.
Written are the drawn features and labels, the logits on the test features with the initial alpha and beta, and the best
accuracy on the validation features that each search finds.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import yaml

sys.modules |= {name: MagicMock() for name in ("clip", "datasets", "datasets.utils")}  # not needed for these functions
import main as original  # noqa: E402
import utils  # noqa: E402

CLASSES, SHOTS, DIMENSION = 5, 4, 16
ALPHA, BETA, EPOCHS, RATE = 1.17, 5.5, 20, 0.001


def draw() -> dict[str, Any]:
    """Unit vectors around class centres that overlap, and a head that is only roughly right."""
    numbers = np.random.RandomState(0)
    centres = numbers.standard_normal((CLASSES, DIMENSION))

    def around(each: int, noise: float) -> tuple[Any, Any]:
        labels = np.repeat(np.arange(CLASSES), each)
        return unit(centres[labels] + noise * numbers.standard_normal((len(labels), DIMENSION))), labels

    drawn = {}
    for name, each in (("shots", SHOTS), ("validation", 8), ("test", 10)):
        drawn[name], drawn[f"{name}_labels"] = around(each, 1.2)
    drawn["text"] = unit(centres + 2.5 * numbers.standard_normal(centres.shape))
    return {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in drawn.items()}


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def top1(output: Any, target: Any) -> float:
    """In percent. Takes the place of the original's function, which newer versions of numpy refuse to run."""
    return 100 * float((output.argmax(dim=1) == target).double().mean())


def main(configurations: Path) -> None:
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self
    drawn = draw()
    tensors = {name: torch.tensor(array) for name, array in drawn.items()}
    tensors |= {name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()}
    keys, weights = tensors["shots"].T.clone(), tensors["text"].T
    values = torch.nn.functional.one_hot(tensors["shots_labels"]).double()
    sides = [tensors[name] for name in ("validation", "validation_labels", "test", "test_labels")]

    logits: list[Any] = []

    def recorded(output: Any, target: Any) -> float:
        logits.append(output.detach().clone())
        return top1(output, target)

    utils.cls_acc = original.cls_acc = recorded
    result = dict(drawn, settings=np.array([ALPHA, BETA, EPOCHS, RATE]))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        fixed = {"search_hp": False, "init_alpha": ALPHA, "init_beta": BETA}
        original.search_hp = lambda *_, **__: (BETA, ALPHA)
        original.run_tip_adapter(fixed, keys, values, *sides, weights)
        result["tip_adapter"] = logits[-1].numpy()

        encoder = SimpleNamespace(dtype=torch.float64, encode_image=lambda images: images.clone())
        loader = [(tensors["shots"], tensors["shots_labels"])]
        logits.clear()
        with tempfile.TemporaryDirectory() as folder:
            tuned = fixed | {"lr": RATE, "train_epoch": EPOCHS, "cache_dir": folder, "shots": SHOTS}
            original.run_tip_adapter_F(tuned, keys.clone(), values, *sides, weights, encoder, loader)
        # An epoch has logits of the shots, then of the test features; what follows the last is of the best epoch.
        result["tip_adapter_f"] = logits[2 * EPOCHS - 1].numpy()

        scales, best = [], []
        for path in sorted(configurations.glob("*.yaml")):
            configuration = yaml.safe_load(path.read_text())
            accuracies: list[float] = []

            def remembered(output: Any, target: Any, found: list[float] = accuracies) -> float:
                found.append(top1(output, target))
                return found[-1]

            utils.cls_acc = remembered
            utils.search_hp(configuration, keys, values, *sides[:2], weights)
            scales.append([*configuration["search_scale"], *configuration["search_step"]])
            best.append(max(accuracies))
    result |= {"search": np.array(scales), "search_best": np.array(best)}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
