"""Text-to-image generators behind one interface: prompts and seeds in, pixels out."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Generator(Protocol):
    """A text-to-image model with its sampling settings."""

    device: str
    """Where it runs, for the record."""
    dtype: str
    """Its precision, for the record."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float32]:
        """One image per prompt: float32 [N, height, width, 3] in [0, 1]; non-finite where sampling went wrong.

        Image i is determined by prompts[i] and seeds[i] (up to floating-point differences between batch sizes).
        Raises MemoryError where the device cannot hold the batch.
        """
        ...
