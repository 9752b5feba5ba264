"""Labelled image features, what classifiers are fitted to."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Examples:
    """N images: features float16 or float32 [N, d], L2-normalised; labels int64 [N], positions of class names.

    Raises ValueError where these disagree.
    """

    features: NDArray[np.floating[Any]]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64))
        if self.features.ndim != 2 or self.labels.shape != (len(self.features),):
            raise ValueError(
                f"features have shape {self.features.shape}, labels {self.labels.shape}; allowed are [N, d] and [N]"
            )

    def __len__(self) -> int:
        return len(self.labels)
