"""Progress that a person can follow: stage, how many of how many, tokens a second, time left.

Knows: the terminal. Must not know: what the stages do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

LINE_EVERY = 5.0
"""Seconds between two lines of one stage."""


class Progress:
    """Prints a line when a stage starts, every few seconds, and when it ends."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False)
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        self._console.print(f"[dim]{minutes:3d}:{seconds:02d}[/dim]  {text}", soft_wrap=True)

    def stage(self, name: str, total: int, unit: str) -> Callable[[int, int], None]:
        """A callback that takes (further units done, further tokens generated)."""
        begun = last = time.monotonic()
        done = tokens = 0
        self.note(f"{name}: {total} {unit}")

        def advance(units: int, new_tokens: int = 0) -> None:
            nonlocal done, tokens, last
            done, tokens, now = done + units, tokens + new_tokens, time.monotonic()
            finished = done >= total and units > 0
            if now - last < LINE_EVERY and not finished:
                return
            last, spent = now, max(now - begun, 1e-3)
            speed = f", {tokens / spent:,.0f} tokens/s" if tokens else ""
            left = f", {spent * (total - done) / done:.0f} s left" if 0 < done < total else ""
            self.note(f"{name}: {done}/{total} {unit}{speed}{left}")

        return advance
