"""Progress for people: a bar on a terminal, a plain line now and then in a log."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts `units` ("images") up to `total`; use as a context manager."""

    def __init__(self, title: str, total: int, units: str):
        self._title, self._total, self._units = title, total, units
        self._bar = tqdm(total=total, desc=title, unit=f" {units}") if sys.stderr.isatty() else None
        self._done = 0
        self._started = self._last = time.monotonic()

    def update(self, n: int) -> None:
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last = time.monotonic()
        rate = self._done / max(self._last - self._started, 1e-9)
        log.info("%s: %d of %d %s, %.1f/s", self._title, self._done, self._total, self._units, rate)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._done:
            self._line()
