"""A trace as the two models would have talked it (Long⊗Short, papers, section C.3).

Knows: thoughts as text, which of them are important, turns. Must not know: how importance was measured, tokens.

Runs of important thoughts become Long's turns, word for word. Runs of others become Short's, condensed: to the sentence
that says what came out. Long opens in any case, with the first thought, and Short ends with the trace's own reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from reasoning.dialogue import Closing, Dialogue, Speaker, Turn, holds_tag
from reasoning.segment import sentence_starts


def as_dialogue(thoughts: Sequence[str], important: Sequence[bool], reply: str, max_rounds: int) -> Dialogue | None:
    """None where Short would have to ask as often as it may, so that its answer would be a forced one, or more often;
    and where the trace itself holds a tag.

    `reply` is what follows the trace's thinking.
    """
    if any(map(holds_tag, (*thoughts, reply))):
        return None
    whose = [True, *important[1:]]
    runs = [
        (is_long, "".join(text for _, text in run))
        for is_long, run in groupby(zip(whose, thoughts, strict=True), key=lambda pair: pair[0])
    ]
    turns = []
    for is_long, text in runs[:-1]:
        turns.append(_thought(text) if is_long else Turn(Speaker.SHORT, f"\n{conclusion(text)}\n", Closing.RETHINK))
    is_long, text = runs[-1]
    turns += [_thought(text)] if is_long else []
    told = reply.strip() if is_long else f"{conclusion(text)}\n{reply.strip()}"
    turns.append(Turn(Speaker.SHORT, f"\n{told}\n", Closing.ANSWER))
    asked = sum(turn.closing is Closing.RETHINK for turn in turns)
    return Dialogue(max_rounds, tuple(turns)) if asked < max_rounds else None


def _thought(text: str) -> Turn:
    return Turn(Speaker.LONG, f"\n{text}", Closing.THOUGHT)


def conclusion(text: str) -> str:
    """Its last sentence."""
    said = text.strip()
    return said[max((cut for cut, _ in sentence_starts(said)), default=0) :].strip()
