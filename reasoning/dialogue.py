"""How a long-thought and a short-thought model talk (Long⊗Short, papers, section C.4): turns, tags, who is next.

Knows: tags, what a turn may hold, when a dialogue ends. Must not know: who speaks, tokens, problems.

Long opens with `<think>…</think>`. Short replies with `<answer>…</rethink>`, which asks Long again, or with
`<answer>…</answer>`, which ends the dialogue. A turn's text holds no tag: what a model writes after the first tag is
not heard, so that no model can write the other's turn, and a transcript is always read as it was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from reasoning.answers.boxed import boxed, until_closing_brace

TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<rethink>", "</rethink>")
_ANY = "|".join(TAGS)
_LONGEST = max(map(len, TAGS))
_TAG = re.compile(_ANY)
_TEXT = rf"(?:(?!{_ANY}).)*"
_TURN = re.compile(
    rf"<think>(?P<thought>{_TEXT})(?P<thought_end></think>)|<answer>(?P<reply>{_TEXT})(?P<reply_end></answer>|</rethink>)",
    re.DOTALL,
)


def holds_tag(text: str) -> bool:
    """Whether some of it would be read as a turn's beginning or end."""
    return _TAG.search(text) is not None


class Speaker(StrEnum):
    LONG = "long"
    SHORT = "short"


class Closing(StrEnum):
    """How a turn ends."""

    THOUGHT = "</think>"
    RETHINK = "</rethink>"
    ANSWER = "</answer>"


STOPS = (*Closing, "<answer>")
"""Where drawing a turn ends. Not all tags: servers take four at most."""
OPENING = {Speaker.LONG: "<think>", Speaker.SHORT: "<answer>"}
CLOSINGS = {Speaker.LONG: (Closing.THOUGHT,), Speaker.SHORT: (Closing.RETHINK, Closing.ANSWER)}
"""What each may end a turn with; the first stands in where a model ends it otherwise."""


class Fault(StrEnum):
    """What is wrong with a turn as it was written."""

    UNCLOSED = "unclosed"
    """It ends, or was cut off, without a tag."""
    FOREIGN = "foreign-tag"
    """Its first tag is not one that closes it."""
    TRAILING = "trailing-text"
    """It goes on after its closing tag."""
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class Turn:
    speaker: Speaker
    text: str
    """Between the tags, and without any."""
    closing: Closing
    fault: Fault | None = None
    """Of the turn as it was written; what is heard is well-formed."""
    was_forced: bool = False
    """Short had no choice but to answer."""

    def __str__(self) -> str:
        return f"{OPENING[self.speaker]}{self.text}{self.closing}"


def parse_turn(speaker: Speaker, said: str) -> Turn:
    """What is heard of `said`, a turn as its model wrote it after the opening tag."""
    tag = _TAG.search(said)
    text, closings = said[: tag.start()] if tag else said, CLOSINGS[speaker]
    if tag is None:
        return Turn(speaker, text, closings[0], Fault.UNCLOSED)
    if tag[0] not in closings:
        return Turn(speaker, text, closings[0], Fault.FOREIGN)
    fault = Fault.TRAILING if said[tag.end() :].strip() else None if text.strip() else Fault.EMPTY
    return Turn(speaker, text, Closing(tag[0]), fault)


def settled_text(said: str) -> str:
    """As much of a turn that is still being written as no further word can take back."""
    tag = _TAG.search(said)
    if tag:
        return said[: tag.start()]
    begun = (size for size in range(min(_LONGEST - 1, len(said)), 0, -1) if _may_become_tag(said[-size:]))
    return said[: len(said) - next(begun, 0)]


def _may_become_tag(text: str) -> bool:
    return any(tag.startswith(text) for tag in TAGS)


def force_answer(lead: str, said: str) -> Turn:
    """Short's last turn, which begins with `lead`, up to the open brace of a box: the answer is all that is heard."""
    tag = _TAG.search(said)
    text = said[: tag.start()] if tag else said
    answer = until_closing_brace(text)
    if answer is None:
        return Turn(Speaker.SHORT, lead + text, Closing.ANSWER, Fault.UNCLOSED, was_forced=True)
    return Turn(Speaker.SHORT, f"{lead}{answer}}}", Closing.ANSWER, was_forced=True)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns so far. Long opens, then they alternate. When Short has asked `max_rounds` times, it is made to answer."""

    max_rounds: int
    turns: tuple[Turn, ...] = ()

    @property
    def is_over(self) -> bool:
        return bool(self.turns) and self.turns[-1].closing is Closing.ANSWER

    @property
    def must_answer(self) -> bool:
        """Whether the next turn is Short's last, with no choice left."""
        asked = sum(turn.closing is Closing.RETHINK for turn in self.turns)
        return not self.is_over and asked == self.max_rounds

    @property
    def next_speaker(self) -> Speaker:
        """Of a dialogue that is not over."""
        if not self.turns or (self.turns[-1].speaker is Speaker.SHORT and not self.must_answer):
            return Speaker.LONG
        return Speaker.SHORT

    def with_turn(self, turn: Turn) -> Dialogue:
        return replace(self, turns=(*self.turns, turn))

    @property
    def hit_cap(self) -> bool:
        return bool(self.turns) and self.turns[-1].was_forced

    @property
    def is_well_formed(self) -> bool:
        """Over, by Short's own decision, with a box, and every turn as it must be: the reward for format."""
        flawless = all(turn.fault is None for turn in self.turns)
        return self.is_over and not self.hit_cap and self.answer is not None and flawless

    @property
    def answer(self) -> str | None:
        """What the last turn boxes; None while the dialogue is not over, or where nothing is boxed."""
        return boxed(self.turns[-1].text) if self.is_over else None

    def __str__(self) -> str:
        return "".join(map(str, self.turns))


def turns_of(transcript: str) -> list[Turn]:
    """The turns of a written dialogue. Raises ValueError where it is none."""
    turns, place = [], 0
    for match in _TURN.finditer(transcript):
        if match.start() != place:
            break
        place = match.end()
        if match["thought_end"]:
            turns.append(Turn(Speaker.LONG, match["thought"], Closing.THOUGHT))
        else:
            turns.append(Turn(Speaker.SHORT, match["reply"], Closing(match["reply_end"])))
    if place != len(transcript):
        raise ValueError(f"no turn begins at character {place}: {transcript[place : place + 40]!r}")
    return turns
