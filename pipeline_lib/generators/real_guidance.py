"""Real guidance, RG: denoising starts from a real image, noised to time step t* of T (paper, section 3.2 and A.2).

The start is x_t* = sqrt(alpha_bar_t*) x_ref + sqrt(1 - alpha_bar_t*) eps (Equation 9); all else is as without a
reference (Algorithm 1). Models of flow matching (Stable Diffusion 3, FLUX) mix noise in along a straight line,
x = (1 - sigma) x_ref + sigma eps, which is the same idea.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.errors import UserError

KEY = "few_shot.real_guidance.starts"
FINEST = 1000  # parts of T: time steps that models are trained with


@dataclass(frozen=True)
class Grid:
    """Sampling in `steps` steps of which only the last `made` are made."""

    steps: int
    made: int


@dataclass(frozen=True)
class Start:
    """t*/T as a fraction: 1 is no guidance, 0 the reference itself."""

    share: Fraction

    @property
    def is_noise(self) -> bool:
        """Whether nothing of the reference is left: images are drawn from text alone."""
        return self.share == 1

    @property
    def is_reference(self) -> bool:
        """Whether there is nothing to denoise."""
        return self.share == 0

    def grid(self, steps: int, most: int = FINEST) -> Grid:
        """The coarsest grid of at least `steps` steps that has t* among its points.

        On a coarser one, a start between two points would become another one: of 8 steps, one would be made for
        t*/T = 0.15 and 0.2 alike. Raises `UserError` where it takes more than `most` steps, which the model has.
        """
        parts = self.share.denominator
        refined = -(-steps // parts) * parts
        if refined > most:
            raise UserError(
                f"{KEY}: {float(self.share)} is a point of a grid of {refined} steps at images.steps: {steps}, and the "
                f"model has {most}; write a rounder number, or fewer steps"
            )
        return Grid(refined, int(refined * self.share))


def start_of(settings: Mapping[str, Any]) -> Start | None:
    """Where drawing starts: `settings["real_guidance"]["start"]`, t*/T to a thousandth; None without real guidance.

    Raises `UserError` for a start that is not in [0, 1].
    """
    guidance = settings.get("real_guidance")
    if guidance is None:
        return None
    start = guidance["start"]
    if not 0 <= start <= 1:
        raise UserError(f"{KEY}: {start} is not allowed: t*/T is 0 (the real image itself) to 1 (no guidance)")
    share = Fraction(start).limit_denominator(FINEST)
    if 0 < start < 1:  # the ends mean something else
        share = min(max(share, Fraction(1, FINEST)), Fraction(FINEST - 1, FINEST))
    return Start(share)


def checked(
    references: Sequence[Image.Image] | None, prompts: Sequence[str], start: Start | None
) -> Sequence[Image.Image]:
    """The references of a batch, none without real guidance. Raises ValueError unless there is one for each prompt with
    it, and None without."""
    if start is None and references is not None:
        raise ValueError("references: this generator was loaded without real_guidance")
    found = () if references is None else references
    if start is not None and len(found) != len(prompts):
        raise ValueError(f"references: {len(found)} for {len(prompts)} prompts; real_guidance needs one for each")
    return found


def prepare(reference: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """A reference as RGB, uint8 [height, width, 3]: resized (bicubic) until it just covers that, and cropped around
    its centre. One that has the size already is left as it is.

    The released code resizes likewise, to the 64 pixels of GLIDE's base model, and crops nothing: it has square
    images only.
    """
    image = reference.convert("RGB")
    if width * image.height >= height * image.width:
        size = width, width * image.height // image.width
    else:
        size = height * image.width // image.height, height
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def prepare_all(references: Sequence[Image.Image], height: int, width: int) -> list[NDArray[np.uint8]]:
    """`prepare` for each; an object that occurs several times is prepared once, and its array too is one."""
    prepared = {id(reference): reference for reference in references}
    arrays = {key: prepare(reference, height, width) for key, reference in prepared.items()}
    return [arrays[id(reference)] for reference in references]


def as_images(prepared: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Prepared references as a batch of images: float32 [N, height, width, 3] in [0, 1]."""
    return np.stack(prepared).astype(np.float32) / np.float32(255)
