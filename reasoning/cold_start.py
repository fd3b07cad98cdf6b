"""Turns a trace into a cold-start dialogue of the two models (Long⊗Short, arXiv 2505.11827).

Runs of important thoughts become Long's turns, verbatim. Other runs become Short's turns, condensed to their last
sentence. Long always opens, with the first thought. Short ends with the trace's own reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from reasoning.dialogue import Closing, Dialogue, Speaker, Turn, holds_tag
from reasoning.segment import sentence_starts


def as_dialogue(thoughts: Sequence[str], important: Sequence[bool], reply: str, max_rounds: int) -> Dialogue | None:
    """The dialogue of a trace; `reply` is the text after its thinking.

    Returns None if Short would ask `max_rounds` times or more, which would force its answer, or if the trace contains a
    tag.
    """
    if any(map(holds_tag, (*thoughts, reply))):
        return None
    is_important = [True, *important[1:]]
    runs = [
        (is_long, "".join(text for _, text in run))
        for is_long, run in groupby(zip(is_important, thoughts, strict=True), key=lambda pair: pair[0])
    ]
    turns = []
    for is_long, text in runs[:-1]:
        turns.append(_long_turn(text) if is_long else Turn(Speaker.SHORT, f"\n{conclusion(text)}\n", Closing.RETHINK))
    is_long, text = runs[-1]
    turns += [_long_turn(text)] if is_long else []
    final_text = reply.strip() if is_long else f"{conclusion(text)}\n{reply.strip()}"
    turns.append(Turn(Speaker.SHORT, f"\n{final_text}\n", Closing.ANSWER))
    rethinks = sum(turn.closing is Closing.RETHINK for turn in turns)
    return Dialogue(max_rounds, tuple(turns)) if rethinks < max_rounds else None


def _long_turn(text: str) -> Turn:
    return Turn(Speaker.LONG, f"\n{text}", Closing.THOUGHT)


def conclusion(text: str) -> str:
    """Last sentence of `text`."""
    stripped = text.strip()
    return stripped[max((cut for cut, _ in sentence_starts(stripped)), default=0) :].strip()
