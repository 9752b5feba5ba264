"""A generator that draws noise from the seed, counts what it is asked for, and can be made to fail.

With a `start` it works like one that was loaded with real guidance: it mixes the reference into the noise.
"""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class FakeGenerator:
    """Implements `pipeline_lib.generators.Generator`."""

    device = "fake"
    dtype = "float32"

    def __init__(
        self,
        *,
        size: int = 12,
        memory: int = 10**9,
        fail_after: int | None = None,
        start: float | None = None,
        reads: int = 10**9,
    ):
        self.batches: list[tuple[list[str], list[int]]] = []
        self.blank: set[int] = set()  # numbers of drawn images that come out constant
        self.not_finite: set[int] = set()
        self._size, self._memory, self._fail_after, self._start = size, memory, fail_after, start
        self._reads = reads  # characters of a prompt
        self._lock = threading.Lock()

    @property
    def n_drawn(self) -> int:
        return sum(len(seeds) for _, seeds in self.batches)

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], references: Sequence[Image.Image] | None = None
    ) -> NDArray[np.float32]:
        """See `Generator.generate`."""
        if (references is None) != (self._start is None) or len(references or prompts) != len(prompts):
            raise ValueError(f"start {self._start} and references {references}")
        if len(seeds) > self._memory:
            raise MemoryError
        with self._lock:
            first = self.n_drawn
            if self._fail_after is not None and first + len(seeds) > self._fail_after:
                raise RuntimeError("the machine was taken away")
            self.batches.append((list(prompts), list(seeds)))
        images = np.stack([self._draw(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])
        if references is not None and self._start is not None:
            real = [np.asarray(image.resize((self._size, self._size)), np.float32) / 255 for image in references]
            images = self._start * images + (1 - self._start) * np.stack(real)
        for number in range(len(seeds)):
            if first + number in self.blank:
                images[number] = 0.5
            if first + number in self.not_finite:
                images[number, 0, 0, 0] = np.nan
        return images

    def read(self, prompt: str) -> str:
        """See `Generator.read`."""
        return prompt[: self._reads]

    def _draw(self, prompt: str, seed: int) -> NDArray[np.float32]:
        random = np.random.default_rng([seed, len(prompt)])
        return random.random((self._size, self._size, 3), np.float32)
