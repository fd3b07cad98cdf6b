"""Queries of a step to an auxiliary model, within the run's spending cap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, NamedTuple

from conf.llm import Llm
from reasoning.llm_queries import InvalidReply, LlmQuery, R
from reasoning.records import Usage
from tasks.runtime.context import RunContext


class LlmAnswers(NamedTuple, Generic[R]):
    """The reply to each query, in order, and what the replies cost."""

    replies: list[R | InvalidReply]
    invalid: Counter[str]
    """Invalid replies by reason."""
    usage: Usage
    billed_to: str
    """Model and URL to which the money of `usage` was paid."""


def query_llm(
    ctx: RunContext, llm: Llm, stage: str, queries: Sequence[LlmQuery[R]], max_invalid_fraction: float
) -> LlmAnswers[R]:
    """Sends all queries. Raises TooManyInvalidReplies, LlmFailed and CapReached."""
    billed_to = f"{llm.model} at {llm.url}"
    cached = [entry.artifact.count for entry in ctx.ledger if entry.cached]
    spent_before = sum(count.money for count in cached if count and count.billed_to == billed_to)
    client = ctx.resources.llm_client(llm)
    progress = ctx.progress.stage(stage, len(queries), "queries")
    with client.lock:
        replies = client.ask(queries, progress, max_invalid_fraction, spent_before)
        usage, notes = client.usage, client.notes
    for note in notes:
        ctx.warn(note)
    reasons = Counter(reply.reason for reply in replies if isinstance(reply, InvalidReply))
    return LlmAnswers(replies, reasons, usage, billed_to)
