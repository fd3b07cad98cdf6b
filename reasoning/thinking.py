"""A completion's thinking and its reply, told apart by the thinking tags.

Knows: tags. Must not know: models, tokens, how answers are compared.
"""

from __future__ import annotations

from reasoning.answers import boxed

OPEN_THINK = "<think>"
CLOSE_THINK = "</think>"


def thought_of(text: str) -> str:
    """A completion from where the thinking begins, whether or not the prompt has opened it already."""
    return text.lstrip().removeprefix(OPEN_THINK).lstrip("\n")


def thinking_of(text: str) -> str:
    """What comes before the close-think tag; all of it when thinking never ended."""
    return text.split(CLOSE_THINK)[0]


def reply_of(text: str) -> str | None:
    """What follows the close-think tag; None when thinking never ended."""
    _, tag, reply = text.rpartition(CLOSE_THINK)
    return reply if tag else None


def final_answer(completion: str) -> str | None:
    """The boxed answer of the reply. Thinking that never ended has no answer, whatever it boxed on the way."""
    reply = reply_of(completion)
    return None if reply is None else boxed(reply)
