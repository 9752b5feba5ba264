"""Ctrl-C: all processes of a run end at once, whatever they are doing. Being interrupted is being killed: what was
finished stays, and what was half-written is cleared like after `kill -9`."""

import signal
import threading
import time
from contextlib import suppress
from types import FrameType

_SECONDS_BETWEEN_SIGNALS = 0.5


def end_at_once() -> None:
    """From now on Ctrl-C ends this process without Python being asked, as it ends programs in C.

    A KeyboardInterrupt comes late, or never: it waits for the call into a library that is being made and for threads
    that work, and is lost where it meets a callback, a destructor or an `except:` in somebody's import.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # started with `nohup` or `&`: it is not meant
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_as_python_does() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again, for what has something to put in order before it ends."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_jobs_too() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt here, and interrupts this process's jobs again and again until it
    ends; a second one ends it at once.

    A terminal interrupts every process that is there. It misses one that is being started, which would then run to its
    end, with this process waiting for it; and `kill -INT` of this process alone misses them all.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        threading.Thread(target=_interrupt_jobs, daemon=True).start()
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)


def _interrupt_jobs() -> None:
    import psutil  # comes with Snakemake, whose process this is

    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.send_signal(signal.SIGINT)
        time.sleep(_SECONDS_BETWEEN_SIGNALS)
