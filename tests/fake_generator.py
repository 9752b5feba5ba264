"""A generator that draws noise from the seed alone, counts what it is asked for, and can be made to fail."""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class FakeGenerator:
    """Implements `pipeline_lib.generators.Generator`."""

    device = "fake"
    dtype = "float32"

    def __init__(self, *, size: int = 12, memory: int = 10**9, fail_after: int | None = None):
        self.batches: list[tuple[list[str], list[int]]] = []
        self.blank: set[int] = set()  # numbers of drawn images that come out constant
        self.not_finite: set[int] = set()
        self._size, self._memory, self._fail_after = size, memory, fail_after
        self._lock = threading.Lock()

    @property
    def n_drawn(self) -> int:
        return sum(len(seeds) for _, seeds in self.batches)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.float32]:
        """See `Generator.generate`."""
        if len(seeds) > self._memory:
            raise MemoryError
        with self._lock:
            first = self.n_drawn
            if self._fail_after is not None and first + len(seeds) > self._fail_after:
                raise RuntimeError("the machine was taken away")
            self.batches.append((list(prompts), list(seeds)))
        images = np.stack([self._draw(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])
        for number in range(len(seeds)):
            if first + number in self.blank:
                images[number] = 0.5
            if first + number in self.not_finite:
                images[number, 0, 0, 0] = np.nan
        return images

    def _draw(self, prompt: str, seed: int) -> NDArray[np.float32]:
        random = np.random.default_rng([seed, len(prompt)])
        return random.random((self._size, self._size, 3), np.float32)
