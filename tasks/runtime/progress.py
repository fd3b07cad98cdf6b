"""Progress that a person can follow: stage, how many of how many, tokens a second, time left.

Knows: the terminal, Prefect's progress artifacts. Must not know: what the stages do.
"""

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
"""Seconds between two lines of one stage."""


class Progress:
    """Prints a line when a stage starts, every few seconds, and when it ends; Prefect's page shows the same share."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False)
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        self._console.print(f"[dim]{minutes:3d}:{seconds:02d}[/dim]  {escape(text)}", soft_wrap=True)

    def stage(self, name: str, total: int, unit: str) -> Stage:
        return Stage(self, name, total, unit)


class Stage:
    """One stage under way. Call it with (further units done, further tokens generated)."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str):
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._done = self._tokens = 0
        self._begun = self._told = time.monotonic()
        # Outside a task there is no page to show it on.
        self._artifact: Any = create_progress_artifact(0.0, description=name) if TaskRunContext.get() else None
        progress.note(f"{name}: {total} {unit}")

    def __call__(self, units: int, tokens: int = 0) -> None:
        now = time.monotonic()
        if not self._tokens and tokens:  # the engine's start is no part of its speed
            self._begun = self._told = now
        self._done, self._tokens = self._done + units, self._tokens + tokens
        if now - self._told >= UPDATE_EVERY or (units and self._done >= self._total):
            self._told = now
            self._tell(max(now - self._begun, 1e-3))

    def _tell(self, spent: float) -> None:
        speed = f", {self._tokens / spent:,.0f} tokens/s" if self._tokens else ""
        left = f", {spent * (self._total - self._done) / self._done:.0f} s left" if 0 < self._done < self._total else ""
        self._progress.note(f"{self._name}: {self._done}/{self._total} {self._unit}{speed}{left}")
        if self._artifact:
            with suppress(httpx.HTTPError):  # a busy Prefect server must not cost a finished completion
                update_progress_artifact(self._artifact, 100.0 * self._done / max(1, self._total))
