"""Drawn garments in place of Fashion-MNIST, so that no test needs a download."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def garments() -> tuple[np.ndarray, np.ndarray]:
    """200 images uint8 [N, 28, 28] of bright boxes whose shape tells the class, and labels int64 [N]."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 10
    images = np.zeros((200, 28, 28), np.uint8)
    for row, label in enumerate(labels):
        top, left = 2 + label, 12 - label
        images[row, top : 26 - label // 2, left : 28 - left] = random.integers(120, 255)
    return images, labels.astype(np.int64)
