"""Protocol between the long-thought and the short-thought model: turns, tags, order (Long⊗Short, arXiv 2505.11827).

Long opens with `<think>…</think>`. Short replies with `<answer>…</rethink>`, which asks Long again, or with
`<answer>…</answer>`, which ends the dialogue. A turn's text contains no tag: everything from the first tag on is
discarded. So no model can write the other one's turn, and a transcript always parses to the turns it was written from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from reasoning.answers.boxed import boxed, until_closing_brace

TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<rethink>", "</rethink>")
_ANY_TAG = "|".join(TAGS)
_MAX_TAG_CHARS = max(map(len, TAGS))
_TAG = re.compile(_ANY_TAG)
_TEXT = rf"(?:(?!{_ANY_TAG}).)*"
_TURN = re.compile(
    rf"<think>(?P<thought>{_TEXT})(?P<thought_end></think>)|<answer>(?P<reply>{_TEXT})(?P<reply_end></answer>|</rethink>)",
    re.DOTALL,
)


def holds_tag(text: str) -> bool:
    """Whether `text` contains a tag of the protocol."""
    return _TAG.search(text) is not None


class Speaker(StrEnum):
    LONG = "long"
    SHORT = "short"


class Closing(StrEnum):
    """Tag that closes a turn."""

    THOUGHT = "</think>"
    RETHINK = "</rethink>"
    ANSWER = "</answer>"


STOPS = (*Closing, "<answer>")
"""Stop strings for sampling a turn. Not all tags, because servers accept at most four."""
OPENING = {Speaker.LONG: "<think>", Speaker.SHORT: "<answer>"}
CLOSINGS = {Speaker.LONG: (Closing.THOUGHT,), Speaker.SHORT: (Closing.RETHINK, Closing.ANSWER)}
"""Tags that may close each speaker's turn. The first is used if the model closes the turn otherwise."""


class Fault(StrEnum):
    """Protocol violation in a turn as generated."""

    UNCLOSED = "unclosed"
    """No tag: the turn ended or was truncated."""
    FOREIGN = "foreign-tag"
    """The first tag is not a valid closing tag."""
    TRAILING = "trailing-text"
    """Text after the closing tag."""
    EMPTY = "empty"
    """No text before the closing tag."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue."""

    speaker: Speaker
    text: str
    """Text between the tags; contains no tag."""
    closing: Closing
    fault: Fault | None = None
    """Violation in the generated text. The parsed turn is well-formed."""
    was_forced: bool = False
    """Short was forced to answer."""

    def __str__(self) -> str:
        return f"{OPENING[self.speaker]}{self.text}{self.closing}"


def parse_turn(speaker: Speaker, generated: str) -> Turn:
    """Parses a turn from `generated`, the model's text after the opening tag."""
    tag = _TAG.search(generated)
    text, closings = generated[: tag.start()] if tag else generated, CLOSINGS[speaker]
    if tag is None:
        return Turn(speaker, text, closings[0], Fault.UNCLOSED)
    if tag[0] not in closings:
        return Turn(speaker, text, closings[0], Fault.FOREIGN)
    fault = Fault.TRAILING if generated[tag.end() :].strip() else None if text.strip() else Fault.EMPTY
    return Turn(speaker, text, Closing(tag[0]), fault)


def settled_text(generated: str) -> str:
    """The part of an unfinished turn that later text cannot change, for streaming."""
    tag = _TAG.search(generated)
    if tag:
        return generated[: tag.start()]
    partial_tags = (
        size for size in range(min(_MAX_TAG_CHARS - 1, len(generated)), 0, -1) if _is_tag_prefix(generated[-size:])
    )
    return generated[: len(generated) - next(partial_tags, 0)]


def _is_tag_prefix(text: str) -> bool:
    return any(tag.startswith(text) for tag in TAGS)


def force_answer(prefix: str, generated: str) -> Turn:
    """Short's last turn. It starts with `prefix`, which ends in an open `\\boxed{`; only the answer up to the closing
    brace is kept."""
    tag = _TAG.search(generated)
    text = generated[: tag.start()] if tag else generated
    answer = until_closing_brace(text)
    if answer is None:
        return Turn(Speaker.SHORT, prefix + text, Closing.ANSWER, Fault.UNCLOSED, was_forced=True)
    return Turn(Speaker.SHORT, f"{prefix}{answer}}}", Closing.ANSWER, was_forced=True)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns so far. Long opens, then the speakers alternate. After `max_rounds` rethinks Short must answer."""

    max_rounds: int
    turns: tuple[Turn, ...] = ()

    @property
    def is_over(self) -> bool:
        return bool(self.turns) and self.turns[-1].closing is Closing.ANSWER

    @property
    def must_answer(self) -> bool:
        """Whether the next turn is Short's forced answer."""
        rethinks = sum(turn.closing is Closing.RETHINK for turn in self.turns)
        return not self.is_over and rethinks == self.max_rounds

    @property
    def next_speaker(self) -> Speaker:
        """Speaker of the next turn. Only valid while the dialogue is not over."""
        if not self.turns or (self.turns[-1].speaker is Speaker.SHORT and not self.must_answer):
            return Speaker.LONG
        return Speaker.SHORT

    def with_turn(self, turn: Turn) -> Dialogue:
        return replace(self, turns=(*self.turns, turn))

    @property
    def hit_cap(self) -> bool:
        """Whether Short was forced to answer."""
        return bool(self.turns) and self.turns[-1].was_forced

    @property
    def is_well_formed(self) -> bool:
        """Whether the dialogue earns the format reward: over, not forced, with a boxed answer and without faults."""
        no_faults = all(turn.fault is None for turn in self.turns)
        return self.is_over and not self.hit_cap and self.answer is not None and no_faults

    @property
    def answer(self) -> str | None:
        """Boxed answer of the last turn. None if the dialogue is not over or nothing is boxed."""
        return boxed(self.turns[-1].text) if self.is_over else None

    def __str__(self) -> str:
        return "".join(map(str, self.turns))


def turns_of(transcript: str) -> list[Turn]:
    """Turns of a transcript. Raises ValueError if it does not parse."""
    turns, position = [], 0
    for match in _TURN.finditer(transcript):
        if match.start() != position:
            break
        position = match.end()
        if match["thought_end"]:
            turns.append(Turn(Speaker.LONG, match["thought"], Closing.THOUGHT))
        else:
            turns.append(Turn(Speaker.SHORT, match["reply"], Closing(match["reply_end"])))
    if position != len(transcript):
        raise ValueError(f"no turn begins at character {position}: {transcript[position : position + 40]!r}")
    return turns
