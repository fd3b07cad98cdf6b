"""Progress of long stages on the terminal and on Prefect's page: units done, tokens per second, time left."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from rich.console import Console
from rich.markup import escape

UPDATE_EVERY = 5.0
"""Minimum number of seconds between two lines of one stage."""


class Progress:
    """Prints notes with the minutes since the start of the run, and creates stages."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False)
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        self._console.print(f"[dim]{minutes:3d}:{seconds:02d}[/dim]  {escape(text)}", soft_wrap=True)

    def stage(self, name: str, total: int, unit: str) -> Stage:
        """Starts a stage of `total` units."""
        return Stage(self, name, total, unit)


class Stage:
    """One stage. Prints a line at its start, every few seconds, and at its end.

    Call it with the units done and the tokens generated since the last call.
    """

    def __init__(self, progress: Progress, name: str, total: int, unit: str):
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._done = self._tokens = 0
        self._started = self._last_line = time.monotonic()
        # Prefect's progress artifacts exist within tasks only.
        self._artifact: Any = create_progress_artifact(0.0, description=name) if TaskRunContext.get() else None
        progress.note(f"{name}: {total} {unit}")

    def __call__(self, units: int, tokens: int = 0) -> None:
        now = time.monotonic()
        if not self._tokens and tokens:  # the engine's start does not count towards its speed
            self._started = self._last_line = now
        self._done, self._tokens = self._done + units, self._tokens + tokens
        if now - self._last_line >= UPDATE_EVERY or (units and self._done >= self._total):
            self._last_line = now
            self._print(max(now - self._started, 1e-3))

    def _print(self, elapsed: float) -> None:
        speed = f", {self._tokens / elapsed:,.0f} tokens/s" if self._tokens else ""
        left = (
            f", {elapsed * (self._total - self._done) / self._done:.0f} s left" if 0 < self._done < self._total else ""
        )
        self._progress.note(f"{self._name}: {self._done}/{self._total} {self._unit}{speed}{left}")
        if self._artifact:
            with suppress(httpx.HTTPError):  # a busy Prefect server must not end the run
                update_progress_artifact(self._artifact, 100.0 * self._done / max(1, self._total))
