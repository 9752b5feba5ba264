"""CLIP models through open_clip: features of images and of class prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

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
        # Of the image tower; the base class of torch's and of timm's layers. A frozen one is none of these.
        self._batch_norms = [
            layer
            for layer in self._model.visual.modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None
        ]
        self._own_statistics = [
            {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in self._batch_norms
        ]
        self._adapting = False
        self._text_batches = Batches(_TEXTS_PER_BATCH, "texts")
        self.logit_scale = float(self._model.logit_scale.detach().exp())

    def text(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """L2-normalised text features, float32 [len(prompts), dimension]."""
        return np.concatenate(list(self._text_batches.map(self._encode_text, prompts)))

    @memory_errors
    @torch.inference_mode()
    def _encode_text(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(list(prompts)).to(self.device)
        array: NDArray[np.float32] = _normalised(self._model.encode_text(tokens)).cpu().numpy()
        return array

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
        array: NDArray[np.float32] = self._image_features(prepared).cpu().numpy()
        return array

    @property
    def has_batch_norm(self) -> bool:
        """Whether the image tower has batch-norm layers: ResNets have, vision transformers have not."""
        return bool(self._batch_norms)

    @contextmanager
    def adapting(self) -> Iterator[None]:
        """Within it `encode_training` moves the running statistics of batch norm, and `encode` uses them as they have
        become; at its end they are put back."""
        self._adapting = True
        try:
            yield
        finally:
            self._adapting = False
            self.reset_batch_norm()

    @memory_errors
    @torch.no_grad()
    def encode_training(self, prepared: Sequence[Tensor]) -> Tensor:
        """What `encode` gives, but with the batch-norm layers of the image tower in train mode, and as a tensor on the
        device that a head can be trained on.

        Each layer normalises the batch by its own mean and variance, and moves the running statistics towards them.
        No weight changes, and everything else stays in evaluation mode.

        Raises RuntimeError outside of `adapting`, and MemoryError where the batch is too large.
        """
        if not self._adapting:
            raise RuntimeError("encode_training changes the encoder; call it within `with encoder.adapting():`")
        try:
            for layer in self._batch_norms:
                layer.training = True
            return self._image_features(prepared)
        finally:
            for layer in self._batch_norms:
                layer.training = False

    @torch.no_grad()
    def reset_batch_norm(self) -> None:
        """Put the running statistics of batch norm back to what the model came with."""
        for layer, statistics in zip(self._batch_norms, self._own_statistics, strict=True):
            for name, buffer in layer.named_buffers(recurse=False):
                buffer.copy_(statistics[name])

    def _image_features(self, prepared: Sequence[Tensor]) -> Tensor:
        batch = torch.stack(list(prepared))
        if self.device == "cuda":
            batch = batch.pin_memory()
        # [N, height, width, 3] seen as [N, 3, height, width] is the channels_last format.
        pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        pixels.sub_(self._mean).div_(self._std)
        with torch.autocast(self.device, _DTYPES[self.dtype], enabled=self.dtype != "float32"):
            features = self._model.encode_image(pixels)
        return _normalised(features)


def _normalised(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)
