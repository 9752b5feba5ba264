"""Processes that claim simulated GPUs, those that CUDA_VISIBLE_DEVICES names.

    python claimants.py waves FOLDER    64 in waves of 16; what happened is in FOLDER/claims
    python claimants.py users A B       two processes, of the users with these numbers, in turn

All are forked after the imports: another user may not be able to read this file.
"""

import logging
import os
import random
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

from pipeline_lib import devices

N, PER_WAVE, N_KILLED = 64, 16, 16
SECONDS = 500  # nothing here lasts longer, whatever is broken


def waves(folder: Path) -> None:
    """Each process claims a GPU, notes whether it has it alone, holds it for a moment, and ends; or, every fourth (a
    seeded choice), is killed -9 while it holds it."""
    devices._SECONDS_BETWEEN_TRIES = 0.01
    chance = random.Random(5)
    victims = set(chance.sample(range(3, N), N_KILLED))
    seconds = [chance.uniform(0, 0.05) for _ in range(N)]
    (folder / "killed").mkdir()
    for first in range(0, N, PER_WAVE):
        children = {}
        for number in range(first, first + PER_WAVE):
            if (child := os.fork()) == 0:
                signal.alarm(SECONDS)
                hold(folder, number, None if number in victims else seconds[number])
                os._exit(0)
            children[number] = child
        for number in victims & children.keys():
            while str(number) not in map(holder, marks(folder)):
                time.sleep(0.01)
            (folder / "killed" / str(number)).touch()
            os.kill(children[number], signal.SIGKILL)
        for child in children.values():
            os.waitpid(child, 0)


def hold(folder: Path, number: int, seconds: float | None) -> None:
    """Claim a GPU and hold it: for `seconds`, or for ever. The mark of a holder is a file named like the GPU."""
    gpu = devices.claim()
    mark = folder / f"{gpu}.held"
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        alone = True
    except FileExistsError:  # its holder was killed, or holds it still
        alone = (folder / "killed" / (holder(mark) or "nobody")).exists()
    mark.write_text(str(number))
    with (folder / "claims").open("a") as claims:
        claims.write(f"{number} {gpu} {'alone' if alone else 'together'}\n")
    if seconds is None:
        signal.pause()
    while number < 3 and len(marks(folder)) < 3:  # the first three: all GPUs are held at the same time
        time.sleep(0.01)
    time.sleep(seconds or 0)
    mark.unlink()
    devices.release()


def marks(folder: Path) -> list[Path]:
    return list(folder.glob("*.held"))


def holder(mark: Path) -> str:
    """The number of the process whose mark this is; "" where it has gone meanwhile."""
    try:
        return mark.read_text()
    except FileNotFoundError:
        return ""


def users(first: int, second: int) -> None:
    """The second user's process claims the GPU that the first's holds, and which ends when that waits."""
    has_it, may_end = os.pipe(), os.pipe()
    if os.fork() == 0:
        become(first)
        devices.claim()
        print(first, "has it", flush=True)
        os.write(has_it[1], b".")
        select.select([may_end[0]], [], [], SECONDS)
        print(first, "ends", flush=True)
        os._exit(0)
    os.read(has_it[0], 1)
    become(second)

    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting" in record.getMessage():
                print(second, "waits", flush=True)
                os.write(may_end[1], b".")

    logging.getLogger("pipeline_lib").setLevel(logging.INFO)
    logging.getLogger("pipeline_lib").addHandler(Waiting())
    devices.claim()
    print(second, "has it", flush=True)
    os.write(may_end[1], b".")


def become(user: int) -> None:
    """Take the rights of a user, and a folder for temporary files that others do not have."""
    signal.alarm(SECONDS)
    os.environ["TMPDIR"] = tempfile.tempdir = f"/nowhere/{user}"
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


if __name__ == "__main__":
    signal.alarm(SECONDS)
    if sys.argv[1] == "waves":
        waves(Path(sys.argv[2]))
    else:
        users(*map(int, sys.argv[2:]))
