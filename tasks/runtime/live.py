"""What a run is doing now, in a file that `brevity watch` reads: stage, speed, time left, the newest traces.

It knows a path and records. It must not know steps, terminals or Prefect.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from models.files import atomic_write
from reasoning.records import Record, Verdict

LIVE_FILE = "live.json"
NEWEST = 8
"""Traces that are kept."""
EVERY = 1.0
"""Minimum number of seconds between two writes, and between two traces."""


class LivePiece(Record):
    """A part of a trace, and how many of its rollouts were right."""

    text: str
    is_cut: bool = False
    right: int = 0
    total: int = 0
    """0: not sampled."""


class LiveTrace(Record):
    """A trace as a step has just finished it."""

    id: str
    problem: str
    verdict: Verdict
    pieces: tuple[LivePiece, ...]


class LiveState(Record):
    """All that the file holds."""

    started: float
    """Seconds since 1970."""
    updated: float
    stage: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    notes: tuple[str, ...] = ()
    """The latest lines of the log."""
    newest: tuple[LiveTrace, ...] = ()
    """The latest first."""
    has_ended: bool = False


class LiveFile:
    """Keeps the file up to date. A storage that is away never ends a run."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        now = time.time()
        self._state = LiveState(started=now, updated=now)
        self._notes: deque[str] = deque(maxlen=NEWEST)
        self._newest: deque[LiveTrace] = deque(maxlen=NEWEST)
        self._last_write = self._last_trace = 0.0

    def note(self, text: str) -> None:
        with self._lock:
            self._notes.append(text)
        self._write(is_due=True)

    def stage(self, name: str, done: int, total: int, unit: str, speed: float, left: float | None) -> None:
        """Where the stage stands. `speed`: tokens per second; `left`: seconds."""
        now = {"stage": name, "done": done, "total": total, "unit": unit}
        self._state = self._state.model_copy(update={**now, "tokens_per_second": speed, "seconds_left": left})
        self._write(is_due=not done or done == total)

    def trace(self, make: Callable[[], LiveTrace]) -> None:
        """Adds a trace, unless one was added within `EVERY` seconds: building one takes time. Safe from any thread."""
        with self._lock:
            if time.monotonic() - self._last_trace < EVERY:
                return
            self._last_trace = time.monotonic()
            self._newest.appendleft(make())
        self._write(is_due=False)

    def end(self) -> None:
        self._state = self._state.model_copy(update={"has_ended": True})
        self._write(is_due=True)

    def _write(self, is_due: bool) -> None:
        with self._lock:
            if not is_due and time.monotonic() - self._last_write < EVERY:
                return
            self._last_write = time.monotonic()
            more = {"updated": time.time(), "notes": tuple(self._notes), "newest": tuple(self._newest)}
            with suppress(OSError):
                atomic_write(self._path, self._state.model_copy(update=more).model_dump_json())
