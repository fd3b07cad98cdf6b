"""Questions of a step to the auxiliary model, within the run's spending cap.

Knows: the run's ledger and clients. Must not know: roles, prompts, HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, NamedTuple

from conf.llm import Llm
from reasoning.llm_queries import Ask, R, Unusable
from reasoning.records import Usage
from tasks.runtime.context import RunContext


class Asked(NamedTuple, Generic[R]):
    """What became of each question, in order."""

    replies: list[R | Unusable]
    unusable: Counter[str]
    """By reason."""
    usage: Usage
    payee: str
    """Whom the usage's money went to."""


def asked_of(place: RunContext, llm: Llm, stage: str, asks: Sequence[Ask[R]], most_unusable: float) -> Asked[R]:
    """Raises TooManyUnusable, LlmFailed, CapReached."""
    payee = f"{llm.model} at {llm.url}"
    counts = [entry.artifact.count for entry in place.ledger if entry.cached]
    before = sum(count.money for count in counts if count and count.payee == payee)
    client = place.auxiliary(llm)
    replies = client.ask(asks, place.progress.stage(stage, len(asks), "questions"), most_unusable, before)
    for note in client.notes:
        place.warn(note)
    reasons = Counter(reply.reason for reply in replies if isinstance(reply, Unusable))
    return Asked(replies, reasons, client.usage, payee)
