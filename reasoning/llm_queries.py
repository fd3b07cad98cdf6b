"""Queries to auxiliary language models, and the schemas of their replies.

Text from data sets and models is untrusted: it is quoted between marks, and a reply counts only as values of its
schema. Strings in a schema need a maximum length: an unbounded one may be truncated, which is invalid JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class LlmReply(BaseModel):
    """Base class of reply schemas."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Solution(LlmReply):
    """A free-form reply: a solution with the thinking first."""

    text: str
    truncated: bool
    """Truncated at max_tokens."""


R = TypeVar("R", bound=LlmReply)


@dataclass(frozen=True, slots=True)
class LlmQuery(Generic[R]):
    """One query to an auxiliary language model."""

    task: str
    """Instruction; trusted."""
    material: str
    """Text to work on; untrusted."""
    reply: type[R]
    """Schema of the reply."""
    max_tokens: int
    """Maximum length of the reply in tokens."""
    temperature: float | None = None
    """Default: that of the endpoint's settings."""
    top_p: float | None = None
    sample: int = 0
    """Distinguishes repetitions of the same query, so that each gets its own reply."""
    images: tuple[bytes, ...] = ()
    """Images of the problem, for an endpoint that takes them; untrusted."""
    limit: str = "max_tokens"
    """Name of the setting that determines max_tokens, for error messages."""


@dataclass(frozen=True, slots=True)
class InvalidReply:
    """No valid reply was received."""

    reason: str
    """Short category, for counting."""
    detail: str
    """Explanation for the user."""


def with_token_limit(queries: Sequence[LlmQuery[R]], max_tokens: int, limit: str) -> list[LlmQuery[R]]:
    """Queries with at least `max_tokens` tokens for the reply, to leave room for thinking; more where the schema needs
    more."""
    return [replace(query, max_tokens=max(query.max_tokens, max_tokens), limit=limit) for query in queries]


def quote_parts(**parts: str) -> str:
    """The texts between marks that occur in none of them."""
    mark = "#" * 3
    while any(mark in text for text in parts.values()):
        mark += "#"
    return "\n\n".join(f"{mark} {name}\n{text}\n{mark} end of {name}" for name, text in parts.items())
