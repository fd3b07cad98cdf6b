"""Questions of a step to the auxiliary model, within the run's spending cap.

Knows: the run's ledger and clients. Must not know: roles, prompts, HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, NamedTuple

from conf.llm import Llm
from reasoning.llm_queries import InvalidReply, LlmQuery, R
from reasoning.records import Usage
from tasks.runtime.context import RunContext


class LlmAnswers(NamedTuple, Generic[R]):
    """What became of each question, in order."""

    replies: list[R | InvalidReply]
    unusable: Counter[str]
    """By reason."""
    usage: Usage
    billed_to: str
    """Whom the usage's money went to."""


def query_llm(
    ctx: RunContext, llm: Llm, stage: str, asks: Sequence[LlmQuery[R]], max_invalid_fraction: float
) -> LlmAnswers[R]:
    """Raises TooManyUnusable, LlmFailed, CapReached."""
    billed_to = f"{llm.model} at {llm.url}"
    counts = [entry.artifact.count for entry in ctx.ledger if entry.cached]
    before = sum(count.money for count in counts if count and count.billed_to == billed_to)
    client = ctx.resources.llm_client(llm)
    replies = client.ask(asks, ctx.progress.stage(stage, len(asks), "questions"), max_invalid_fraction, before)
    for note in client.notes:
        ctx.warn(note)
    reasons = Counter(reply.reason for reply in replies if isinstance(reply, InvalidReply))
    return LlmAnswers(replies, reasons, client.usage, billed_to)
