"""What `brevity watch` shows of a run, from the file that the run writes."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.watch import NothingToWatch, live_file, read_state, screen_of, watch
from reasoning.records import Verdict
from tasks.runtime.live import LIVE_FILE, LiveFile, LivePiece, LiveState, LiveTrace
from tasks.runtime.progress import Progress


def trace(name: str, *pieces: LivePiece) -> LiveTrace:
    return LiveTrace(id=name, problem="[bold]2 + 2?", verdict=Verdict.RIGHT, pieces=pieces)


def shown(state: LiveState, now: float = 0.0) -> str:
    out = StringIO()
    Console(file=out, width=120).print(screen_of(state, "dto-1", now))
    return out.getvalue()


def test_stage_speed_and_newest_trace_with_its_cut():
    pieces = (LivePiece(text="So 4.", right=7, total=8), LivePiece(text="Wait,\x1b[2J again.", is_cut=True))
    state = LiveState(
        started=0,
        updated=90,
        stage="probe prefixes",
        done=3,
        total=12,
        unit="prompts",
        tokens_per_second=1234.5,
        seconds_left=75,
        notes=("  0:01  sample: 12 prompts",),
        newest=(trace("p1/0", *pieces),),
    )
    text = shown(state, now=95)
    for expected in (
        "dto-1: running, 0:01:30 since its start",
        "3 of 12 prompts",
        "1,234 tokens/s",
        "0:01:15 left",
        "[bold]2 + 2?",
        "7/8  So 4.",
        "Wait,[2J again.",
        "p1/0: right",
        "sample: 12 prompts",
    ):
        assert expected in text
    assert "\x1b" not in text
    assert "no sign for 500 s" in shown(state, now=590)
    assert "ended" in shown(state.model_copy(update={"has_ended": True}), now=590)


def test_ids_and_stages_of_strangers_command_no_terminal():
    name = "alg[/x]\x1b]0;pwn\x07b\x1b[2J"
    text = shown(LiveState(started=0, updated=0, stage="\x1b[2Jx", newest=(trace(name, LivePiece(text="4")),)))
    assert "alg[/x]]0;pwnb[2J: right" in text
    assert "\x1b" not in text


def test_a_run_writes_what_is_shown(tmp_path: Path):
    live = LiveFile(tmp_path / "run" / LIVE_FILE)
    (tmp_path / "run").mkdir()
    progress = Progress(Console(file=StringIO()), live)
    advance = progress.stage("sample", 2, "prompts")
    progress.trace(lambda: trace("p1/0", LivePiece(text="So 4.")))
    progress.trace(lambda: pytest.fail("a second trace within a second is not built"))
    advance(2, 50)
    live.end()
    state = read_state(live_file(tmp_path))
    assert (state.stage, state.done, state.total, state.unit) == ("sample", 2, 2, "prompts")
    assert [one.id for one in state.newest] == ["p1/0"]
    assert state.has_ended
    assert "sample: 2 prompts" in state.notes[0]
    watch(tmp_path)  # ends, since the run has


def test_a_storage_that_is_away_does_not_end_a_run(tmp_path: Path):
    LiveFile(tmp_path / "nowhere" / LIVE_FILE).note("still here")


def test_nothing_to_watch(tmp_path: Path):
    with pytest.raises(NothingToWatch, match="no run here"):
        live_file(tmp_path)
    (tmp_path / LIVE_FILE).write_text("{}")
    with pytest.raises(NothingToWatch, match="cannot be read"):
        read_state(live_file(tmp_path))
