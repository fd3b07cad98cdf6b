"""Progress of long stages on the terminal and on Prefect's page: units done, tokens per second, time left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError, PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import deployment
from rich.console import Console
from rich.markup import escape

from tasks.runtime.live import LiveFile, LiveTrace

UPDATE_EVERY = 5.0
"""Minimum number of seconds between two lines of one stage on the terminal."""
LOG_EVERY = 30.0
"""The same for the log on Prefect's page."""
API_AWAY = (httpx.HTTPError, PrefectException)
"""What Prefect raises when its server is away or busy. The page then lacks something; no step may end by it."""


class Progress:
    """Prints notes with the minutes since the start of the run, logs them with Prefect, and creates stages.

    A run that a Prefect worker started has no terminal: there, Prefect prints what it logs.
    """

    def __init__(self, console: Console | None = None, live: LiveFile | None = None):
        """`live`: the file that shows others what the run is doing."""
        self.live = live
        self._console = console or Console(stderr=True, highlight=False, quiet=deployment.id is not None)
        self._started = time.monotonic()

    def note(self, text: str, level: int = logging.INFO, *, log: bool = True) -> None:
        """Prints `text`, and adds it to the log of the flow run or task run that the caller is in, unless not `log`."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        self._console.print(f"[dim]{minutes:3d}:{seconds:02d}[/dim]  {escape(text)}", soft_wrap=True)
        if self.live:
            self.live.note(f"{minutes:3d}:{seconds:02d}  {text}")
        if log:
            with suppress(MissingContextError):
                get_run_logger().log(level, text)

    def trace(self, make: Callable[[], LiveTrace]) -> None:
        """Shows a trace that a step has finished; `make` is not called for all."""
        if self.live:
            self.live.trace(make)

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
        self._started = self._last_line = self._last_log = time.monotonic()
        self._artifact: Any = None
        self._update: threading.Thread | None = None
        progress.note(f"{name}: {total} {unit}")

    def __call__(self, units: int, tokens: int = 0) -> None:
        now = time.monotonic()
        if not self._tokens and tokens:  # the engine's start does not count towards its speed
            self._started = self._last_line = now
        self._done, self._tokens = self._done + units, self._tokens + tokens
        is_last = bool(units) and self._done == self._total
        if self._progress.live:
            self._show_live(max(now - self._started, 1e-3))
        if is_last or now - self._last_line >= UPDATE_EVERY:
            self._last_line = now
            self._print(max(now - self._started, 1e-3), log=is_last or now - self._last_log >= LOG_EVERY)

    def _show_live(self, elapsed: float) -> None:
        assert self._progress.live
        left = elapsed * (self._total - self._done) / self._done if self._done else None
        speed = self._tokens / elapsed
        self._progress.live.stage(self._name, self._done, self._total, self._unit, speed, left)

    def _print(self, elapsed: float, *, log: bool) -> None:
        self._last_log = self._last_line if log else self._last_log
        speed = f", {self._tokens / elapsed:,.0f} tokens/s" if self._tokens else ""
        left = (
            f", {elapsed * (self._total - self._done) / self._done:.0f} s left" if 0 < self._done < self._total else ""
        )
        self._progress.note(f"{self._name}: {self._done}/{self._total} {self._unit}{speed}{left}", log=log)
        if log and TaskRunContext.get() and not (self._update and self._update.is_alive()):
            # In a thread, because Prefect waits for a server that is away; the stage goes on without its page.
            percent = 100.0 * self._done / max(1, self._total)
            self._update = threading.Thread(target=copy_context().run, args=(self._show, percent), daemon=True)
            self._update.start()

    def _show(self, percent: float) -> None:
        """On Prefect's page, as a progress artifact. A short stage has none."""
        with suppress(*API_AWAY):
            if self._artifact:
                update_progress_artifact(self._artifact, percent)
            elif percent < 100:
                self._artifact = create_progress_artifact(percent, description=self._name)
