"""What the page shows of a problem: its traces in pieces, and the models' answers. Written as JSON, drawn by page.js.

All texts are by models and data sets; the page never treats them as anything but text.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from reasoning.records import Problem, Record, Verdict
from tasks.reports.page.pictures import picture_url

State = Literal["kept", "cut", "pruned", "put back", "added", "unused", "long", "short"]


class Piece(Record):
    """A part of a trace, in order."""

    text: str
    state: State
    right: int | None = None
    """Rollouts that were right after this piece, of `total`; None where none were sampled."""
    total: int = 0
    note: str = ""


class TextView(Record):
    """A whole text beside a trace."""

    title: str
    text: str
    tokens: int


class TraceView(Record):
    """A trace, and what became of it."""

    name: str
    verdict: Verdict
    tokens: int
    status: str
    """What became of it, in a sentence."""
    threshold: float | None = None
    """The fraction of right rollouts that a prefix must exceed."""
    pieces: tuple[Piece, ...]
    facts: dict[str, str] = Field(default_factory=dict)
    texts: tuple[TextView, ...] = ()


class Turn(Record):
    """A turn of a dialogue, or all of a completion."""

    speaker: str
    text: str


class AnswerView(Record):
    """A completion of one model."""

    model: str
    verdict: Verdict
    tokens: int
    truncated: bool
    turns: tuple[Turn, ...]
    facts: dict[str, str] = Field(default_factory=dict)


class ProblemView(Record):
    """A problem with everything that the run did on it."""

    id: str
    set: str
    """`training`, or the name of a benchmark."""
    text: str
    images: tuple[str, ...] = ()
    """As `data:` URLs."""
    answer: str
    level: int | None
    subject: str | None
    tags: tuple[str, ...]
    """What a person may filter by."""
    traces: tuple[TraceView, ...] = ()
    answers: tuple[AnswerView, ...] = ()

    @classmethod
    def of(cls, problem: Problem, set: str, tags: tuple[str, ...], **shown: Any) -> ProblemView:
        """`shown`: `traces` or `answers`."""
        return cls(
            id=problem.id,
            set=set,
            text=problem.text,
            images=tuple(map(picture_url, problem.images)),
            answer=problem.answer,
            level=problem.level,
            subject=problem.subject,
            tags=tags,
            **shown,
        )
