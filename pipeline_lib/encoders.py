"""CLIP models through open_clip: features of images and of class prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline_lib.batches import Batches
from pipeline_lib.clip_models import load_clip
from pipeline_lib.devices import memory_errors, resolve

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TEXTS_PER_BATCH = 256


class Encoder:
    """An open_clip model in evaluation mode; `clip_models.load_clip` says what it can be.

    dtype: precision of the arithmetic on images; "auto" is float16 on a GPU and float32 on a CPU. Weights, text,
    normalisation and results are float32 in any case: lower precision is torch's autocast, which every architecture
    takes. `device` and `dtype` are what was resolved, `batch_size` images fit into memory as far as is known, and
    `logit_scale` is exp(model.logit_scale), the factor of cosines in logits.

    Raises `UserError` for a model that cannot be loaded and for a GPU that is asked for and absent.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None,
        batch_size: int,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
    ):
        self.device = resolve(device)
        self.dtype = ("float16" if self.device == "cuda" else "float32") if dtype == "auto" else dtype
        self.batch_size = batch_size
        loaded, transform, self._tokenizer = load_clip(model, pretrained, revision)
        self._model: Any = loaded.to(self.device).to(memory_format=torch.channels_last)
        # What comes before them works on one PIL image; the last two are arithmetic, for a whole batch on the device.
        *geometry, _to_tensor, normalize = transform.transforms
        self._geometry: list[Callable[[Image.Image], Image.Image]] = geometry
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (normalize.mean, normalize.std)
        )
        self._text_batches = Batches(_TEXTS_PER_BATCH, "texts")
        self.logit_scale = float(self._model.logit_scale.detach().exp())

    def text(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """L2-normalised text features, float32 [len(prompts), dimension]."""
        return np.concatenate(list(self._text_batches.map(self._encode_text, prompts)))

    @memory_errors
    @torch.inference_mode()
    def _encode_text(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(list(prompts)).to(self.device)
        return _normalised(self._model.encode_text(tokens))

    def prepare(self, image: Image.Image) -> Tensor:
        """One RGB image as the model wants to see it, resized and cropped: uint8 [height, width, 3]. Thread-safe."""
        for step in self._geometry:
            image = step(image)
        return torch.from_numpy(np.array(image))

    @memory_errors
    @torch.inference_mode()
    def encode(self, prepared: Sequence[Tensor]) -> NDArray[np.float32]:
        """L2-normalised features, float32 [len(prepared), dimension], of images that `prepare` gave, as one batch.

        Raises MemoryError where the batch is too large.
        """
        batch = torch.stack(list(prepared))
        if self.device == "cuda":
            batch = batch.pin_memory()
        # [N, height, width, 3] seen as [N, 3, height, width] is the channels_last format.
        pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        pixels.sub_(self._mean).div_(self._std)
        with torch.autocast(self.device, _DTYPES[self.dtype], enabled=self.dtype != "float32"):
            features = self._model.encode_image(pixels)
        return _normalised(features)


def _normalised(features: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return array
