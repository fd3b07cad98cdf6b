"""`brevity watch`: what a run is doing now, on the terminal. It reads one file of the run and starts nothing."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from pydantic import ValidationError
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from conf.errors import ReadableError
from reasoning.records import Verdict
from tasks.reports.layout import console, strip_control_chars
from tasks.runtime.live import LIVE_FILE, LivePiece, LiveState, LiveTrace

EVERY = 0.5
"""Seconds between two looks at the file."""
TRACES, NOTES = 2, 4
"""How many are shown."""
PIECE_CHARS, PIECES = 300, 12
"""Limits of a trace on the terminal."""
SILENT = 60
"""Seconds without a sign after which the screen says so."""


class NothingToWatch(ReadableError):
    """A folder without a run that shows itself."""


def watch(folder: Path) -> None:
    """Shows the run in `folder`, or the latest run within it, until it has ended or Ctrl-C; once where the output is no
    terminal. Raises NothingToWatch."""
    path, terminal = live_file(folder), console()
    with suppress(KeyboardInterrupt), Live(console=terminal, auto_refresh=False) as screen:
        while True:
            state = read_state(path)
            screen.update(screen_of(state, path.parent.name, time.time()), refresh=True)
            if state.has_ended or not terminal.is_terminal:
                return
            time.sleep(EVERY)


def live_file(folder: Path) -> Path:
    """The file of the run in `folder`, or of the run within it that wrote last. Raises NothingToWatch."""
    own = folder / LIVE_FILE
    found = [own] if own.is_file() else sorted(folder.glob(f"*/{LIVE_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise NothingToWatch(f"{folder}: no run here; name a run's folder, or that of all runs, such as runs")
    return found[-1]


def read_state(path: Path) -> LiveState:
    """Raises NothingToWatch for a file that cannot be read."""
    try:
        return LiveState.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise NothingToWatch(f"{path}: cannot be read ({first}); another version may have written it") from None


def screen_of(state: LiveState, name: str, now: float) -> Group:
    """What the terminal shows. `now`: seconds since 1970."""
    silent = now - state.updated
    ended = "ended" if state.has_ended else f"no sign for {silent:.0f} s" if silent > SILENT else "running"
    head = Text(f"{name}: {ended}, {timedelta(seconds=int(state.updated - state.started))} since its start", "bold")
    traces = [_trace(trace) for trace in state.newest[:TRACES]]
    notes = Text(strip_control_chars("\n".join(state.notes[-NOTES:])), "dim")
    return Group(head, _stage(state), *traces, notes)


def _stage(state: LiveState) -> Table:
    line = Table.grid(padding=(0, 2))
    speed = f"{state.tokens_per_second:,.0f} tokens/s" if state.tokens_per_second else ""
    left = f"{timedelta(seconds=int(state.seconds_left))} left" if state.seconds_left else ""
    bar = ProgressBar(total=max(1, state.total), completed=state.done, width=30)
    line.add_row(
        Text(strip_control_chars(state.stage)), bar, f"{state.done:,} of {state.total:,} {state.unit}", speed, left
    )
    return line


def _trace(trace: LiveTrace) -> Panel:
    """The problem, and the pieces with what was right after each; what is cut is struck through."""
    mark = "right" if trace.verdict is Verdict.RIGHT else trace.verdict
    lines = [_piece(piece) for piece in trace.pieces[:PIECES]]
    more = [Text(f"… {len(trace.pieces) - PIECES} more pieces", "dim")] if len(trace.pieces) > PIECES else []
    title = Text(_short(trace.problem, 100))
    return Panel(
        Group(*lines, *more), title=title, title_align="left", subtitle=Text(_short(f"{trace.id}: {mark}", 100))
    )


def _piece(piece: LivePiece) -> Text:
    share = f"{piece.right}/{piece.total}" if piece.total else ""
    line = Text(f"{share:>5}  ", "cyan")
    line.append(_short(piece.text, PIECE_CHARS), "dim strike" if piece.is_cut else "")
    return line


def _short(text: str, characters: int) -> str:
    plain = " ".join(strip_control_chars(text).split())
    return plain if len(plain) <= characters else plain[:characters] + " …"
