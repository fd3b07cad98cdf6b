"""What is asked of an auxiliary language model, and the form of its reply.

Knows: messages, schemas. Must not know: who answers, over what, at what price.

Whatever comes from a data set or a model is hostile: it is quoted between marks, and a reply counts only as the values
of its schema. Texts in a schema have a greatest length: an open one may be cut off, and is then no JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class LlmReply(BaseModel):
    """The form of a reply."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Solution(LlmReply):
    """A reply of no form: a problem's solution as a model writes it, its thinking first."""

    text: str
    truncated: bool
    """Cut at max_tokens."""


R = TypeVar("R", bound=LlmReply)


@dataclass(frozen=True, slots=True)
class LlmQuery(Generic[R]):
    """One question to an auxiliary model."""

    task: str
    """What the model is to do; ours."""
    material: str
    """What it is to be done with; hostile."""
    reply: type[R]
    max_tokens: int
    """The longest reply."""
    temperature: float | None = None
    """Not given: the endpoint's settings say."""
    top_p: float | None = None
    sample: int = 0
    """Tells questions apart that are the same, and are to be answered anew."""
    limit: str = "max_tokens"
    """The setting that gives max_tokens, to be named to a person."""


@dataclass(frozen=True, slots=True)
class InvalidReply:
    """There is no reply that could be used."""

    reason: str
    """One of a few words, to be counted."""
    detail: str
    """For a person."""


def with_token_limit(asks: Sequence[LlmQuery[R]], max_tokens: int, limit: str) -> list[LlmQuery[R]]:
    """Questions whose replies may be so long, since thinking counts, too; longer where their form needs more."""
    return [replace(ask, max_tokens=max(ask.max_tokens, max_tokens), limit=limit) for ask in asks]


def quote_parts(**parts: str) -> str:
    """Texts between marks that none of them holds."""
    mark = "#" * 3
    while any(mark in text for text in parts.values()):
        mark += "#"
    return "\n\n".join(f"{mark} {name}\n{text}\n{mark} end of {name}" for name, text in parts.items())
