"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from typing import Any

import pytest

LONG = 240.0
"""Seconds after which a test gives up waiting."""


def until(is_done: Callable[[], Any], what: str) -> Any:
    """The first true value of `is_done`."""
    deadline = time.monotonic() + LONG
    while not (value := is_done()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {LONG:.0f} s for {what}")
        time.sleep(0.1)
    return value
