"""CLIP models through open_clip: features of images and of class prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.errors import UserError


class Encoder:
    """An open_clip model in evaluation mode. `model` is `local-dir:FOLDER`, `hf-hub:ID` or an architecture name."""

    def __init__(self, model: str, pretrained: str | None, batch_size: int):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batch_size = batch_size
        name = model
        if model.startswith("local-dir:"):
            folder = Path(model.removeprefix("local-dir:")).resolve()
            name = f"local-dir:{folder}"
        try:
            loaded, preprocess = open_clip.create_model_from_pretrained(name, pretrained=pretrained, device=self.device)
            self._tokenizer = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"models.encoder: {model!r} (pretrained {pretrained!r}) cannot be loaded: {error}"
            ) from error
        self._model = loaded.eval().to(memory_format=torch.channels_last)
        self._preprocess: Callable[[Image.Image], torch.Tensor] = preprocess
        self.dimension = int(self.text(["a"]).shape[1])
        self.logit_scale = float(self._model.logit_scale.detach().exp())

    @torch.inference_mode()
    def text(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """L2-normalised text features, float32 [len(prompts), dimension]."""
        features = [
            self._model.encode_text(self._tokenizer(list(prompts[i : i + 256])).to(self.device), normalize=True)
            for i in range(0, len(prompts), 256)
        ]
        array: NDArray[np.float32] = torch.cat(features).float().cpu().numpy()
        return array

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """L2-normalised image features, float32 [len(images), dimension]."""
        features = [self._encode(images[i : i + self.batch_size]) for i in range(0, len(images), self.batch_size)]
        return np.concatenate(features)

    @torch.inference_mode()
    def _encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        batch = torch.stack([self._preprocess(image) for image in images]).to(self.device)
        features = self._model.encode_image(batch.to(memory_format=torch.channels_last), normalize=True)
        array: NDArray[np.float32] = features.float().cpu().numpy()
        return array
