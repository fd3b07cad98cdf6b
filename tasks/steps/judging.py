"""Completions of several models, graded by one judge model."""

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


@step("llm")
def judge_completions(
    ctx: StepContext,
    models: Sequence[ArtifactRef],
    answers_directly: Sequence[bool],
    problems: ArtifactRef,
    sampling: Sampling,
    judging: Judging,
    llm: Llm,
    seed: int,
) -> ArtifactRef:
    """Rows of JudgeGrades: for each model, its first evaluated completion of the same problems. `answers_directly`: as
    in `evaluate`, for each model.

    Completions are shuffled, so that their order does not reveal the model. Raises TooManyInvalidReplies, and what the
    client of `llm` raises.
    """
    known = by_id(ctx, problems)
    rng = random.Random(f"judge/{seed}")
    selected = [known[name] for name in rng.sample(sorted(known), min(judging.problems, len(known)))]
    entries, usage = [], Usage()
    for index, (model, is_direct) in enumerate(zip(models, answers_directly, strict=True)):
        checkpoint = ctx.resources.checkpoint(model)
        checkpoint = checkpoint.answering_directly() if is_direct else checkpoint
        # Evaluation has sampled these completions, so they come from the rollout store.
        sampled = sample_and_verify(ctx, "judged", checkpoint, selected, sampling, Purpose.BENCHMARK, seed)
        usage += sampled.usage
        entries += [(index, trace) for trace in sampled.traces if trace.sample == 0]
    rng.shuffle(entries)
    queries = [judging_query(known[trace.problem_id], trace.text) for _, trace in entries]
    queries = with_token_limit(queries, judging.max_tokens, "judging.max_tokens")
    answers = query_llm(ctx, llm, "judge", queries, judging.max_invalid_fraction)
    rows = [
        JudgeGrades(model=index, problem_id=trace.problem_id, **reply.model_dump())
        for (index, trace), reply in zip(entries, answers.replies, strict=True)
        if not isinstance(reply, InvalidReply)
    ]
    return ctx.publish(
        "judged",
        rows,
        rows_in=len(entries),
        dropped=dict(answers.invalid),
        usage=usage + answers.usage,
        billed_to=answers.billed_to,
    )
