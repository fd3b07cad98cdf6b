"""Calls that are repeated while what they need is away.

It knows time. It must not know what is called, nor which errors say that something is away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import retry, retry_if_exception, stop_after_delay, wait_exponential_jitter

OUTAGE_SECONDS = 120.0
"""How long a database or a storage may be away before a call fails; then its step is retried."""
P = ParamSpec("P")
T = TypeVar("T")


def repeats_while(is_away: Callable[[BaseException], bool]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates calls that may be repeated: while `is_away` says so of their error, for up to OUTAGE_SECONDS."""

    def decorated(call: Callable[P, T]) -> Callable[P, T]:
        return retry(
            retry=retry_if_exception(is_away),
            wait=wait_exponential_jitter(multiplier=0.1, max=10, jitter=0.1),
            stop=stop_after_delay(OUTAGE_SECONDS),
            reraise=True,
        )(call)

    return decorated
