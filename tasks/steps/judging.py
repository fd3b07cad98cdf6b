"""Completions of several models graded by one judge. Knows: the judge's step. Must not know: criteria, prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from conf.cot_distillation import Judging
from conf.llm import Llm
from conf.sampling import Sampling
from models.inference.rollout_store import Purpose
from reasoning.judging import judging_query
from reasoning.llm_queries import InvalidReply, with_token_limit
from reasoning.records import JudgeGrades, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import StepContext
from tasks.steps.llm import query_llm
from tasks.steps.problems import by_id
from tasks.steps.sampling import sample_and_verify


@step
def judge_completions(
    ctx: StepContext,
    models: Sequence[ArtifactRef],
    problems: ArtifactRef,
    sampling: Sampling,
    judging: Judging,
    llm: Llm,
    seed: int,
) -> ArtifactRef:
    """Rows of Judged: of each model the first completion that it was examined on, of the same problems, in an order
    that tells nothing."""
    known = by_id(ctx, problems)
    luck = random.Random(f"judge/{seed}")
    chosen = luck.sample(sorted(known), min(judging.problems, len(known)))
    entries, usage = [], Usage()
    for index, model in enumerate(models):
        asked = [known[name] for name in chosen]
        drawn = sample_and_verify(
            ctx, "judged", ctx.resources.checkpoint(model), asked, sampling, Purpose.BENCHMARK, seed
        )  # from the store: the models were examined on them
        usage += drawn.usage
        entries += [(index, trace) for trace in drawn.traces if trace.sample == 0]
    luck.shuffle(entries)
    asks = [judging_query(known[trace.problem_id], trace.text) for _, trace in entries]
    asks = with_token_limit(asks, judging.max_tokens, "judging.max_tokens")
    found = query_llm(ctx, llm, "judge", asks, judging.max_invalid_fraction)
    rows = [
        JudgeGrades(model=index, problem_id=trace.problem_id, **reply.model_dump())
        for (index, trace), reply in zip(entries, found.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    ]
    return ctx.publish(
        "judged",
        rows,
        rows_in=len(entries),
        dropped=dict(found.unusable),
        usage=usage + found.usage,
        billed_to=found.billed_to,
    )
