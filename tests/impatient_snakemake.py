"""Snakemake that looks at its queue every second; by itself it looks less and less often, down to every three minutes.

It takes the arguments that `snakemake` takes.
"""

import asyncio
import sys
from typing import Any

from snakemake.cli import main

sleep = asyncio.sleep


def sleep_a_second(seconds: float, *result: Any) -> Any:
    return sleep(min(seconds, 1), *result)


if __name__ == "__main__":
    asyncio.sleep = sleep_a_second
    main(sys.argv[1:])
