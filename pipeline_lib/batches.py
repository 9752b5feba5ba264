"""Batches that are halved when memory runs out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class Batches:
    """A batch size that is halved, for good, when a batch does not fit into memory."""

    def __init__(self, size: int, unit: str):
        self.size, self._unit = size, unit

    def map(self, function: Callable[[Sequence[T]], R], items: Sequence[T]) -> Iterator[R]:
        """The function's results for consecutive batches of the items, in order.

        `function` says with MemoryError that a batch is too large (see `devices.memory_errors`); it is raised again
        where not even one item fits.
        """
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            try:
                result = function(batch)
            except MemoryError:
                if len(batch) == 1:
                    raise
                self.size = len(batch) // 2
                log.warning("out of memory: the batch is halved to %d %s", self.size, self._unit)
                continue
            yield result
            start += len(batch)
