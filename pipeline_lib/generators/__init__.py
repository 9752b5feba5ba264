"""Text-to-image generators behind one interface: prompts and seeds in, and real images to start from; pixels out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image


class Generator(Protocol):
    """A text-to-image model with its sampling settings.

    Its images are as the model drew them: safety checkers, which blacken images, and watermarks are off.
    """

    device: str
    """Where it runs, for the record."""
    dtype: str
    """Its precision, for the record."""

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], references: "Sequence[Image.Image] | None" = None
    ) -> NDArray[np.float32]:
        """One image per prompt: float32 [N, height, width, 3] in [0, 1]; non-finite where sampling went wrong.

        `references` are the real images to start from (paper, A.2, Equation 9), one for each prompt, of any size and
        mode: required if the generator was loaded with `real_guidance`, else forbidden. They are made RGB, resized
        until they just cover the image, and cropped around the centre.

        Image i is determined by prompts[i], seeds[i] and references[i] (up to floating-point differences between batch
        sizes). Raises MemoryError where the device cannot hold the batch, ValueError for references as above.
        """
        ...

    def read(self, prompt: str) -> str:
        """What the text encoder reads of a prompt: all of it, or the beginning that fits into its positions."""
        ...


def load_generator(
    model: str, revision: str | None, settings: Mapping[str, Any], *, device: str, compile: bool
) -> Generator:
    """The generator of a configuration: a pipeline folder, or a hub id at `revision` (a commit).

    Which class runs it is decided by the pipeline's model_index.json. `settings` has the keys steps, guidance_scale,
    negative_prompt ("": none), scheduler (None: the pipeline's own), height, width (None: the pipeline's own) and
    dtype; real_guidance may be there, None or a mapping whose `start` is t*/T in [0, 1], where denoising starts (see
    `real_guidance`): at 1 images are those without it, at 0 they are the references. `device` is "auto", "cpu" or
    "cuda"; with `compile`, the model's networks go through torch.compile.

    Raises `UserError` for a model that is not there or cannot be loaded, and for a setting that it does not take.
    """
    from pipeline_lib.generators.folders import pipeline_folder

    folder = pipeline_folder(model, revision)
    if folder.class_name == "GlidePipeline":
        from pipeline_lib.generators.glide.generator import Glide

        return Glide(folder, settings, device=device, compile=compile)
    from pipeline_lib.generators.latent_diffusion import LatentDiffusion

    return LatentDiffusion(folder, settings, device=device, compile=compile)
