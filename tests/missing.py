"""What a test needs and a machine may not have."""

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip the test, with the reason; where CI is set, fail: there everything must be had."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs what this test needs: {reason}")
    pytest.skip(reason)
