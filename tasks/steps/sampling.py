"""Sampling with verification: traces for curation, scores for evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import FailedRequest, Request
from models.inference.rollout_executor import TooManyFailed
from models.inference.rollout_store import Purpose
from reasoning.records import Problem, Score, Trace, Usage, Verdict
from reasoning.thinking import final_answer
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.prefix_sampling import skipped_rows
from tasks.steps.problems import by_id


@step("sampling")
def sample_traces(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, seed: int
) -> ArtifactRef:
    """Rows of Trace, right and wrong. Problems without completions are skipped. Raises TooManyFailed."""
    rows = ctx.artifacts.rows(problems, Problem)
    sampled = sample_and_verify(ctx, "sample", ctx.resources.checkpoint(model), rows, sampling, Purpose.TRAIN, seed)
    return ctx.publish(
        "traces", sampled.traces, rows_in=len(rows), usage=sampled.usage, skipped=skipped_rows(sampled.failed)
    )


@step("sampling")
def evaluate(ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, seed: int) -> ArtifactRef:
    """Rows of Score, on problems that no other step reads, from samples that no other step uses.

    A completion that failed counts as not right. Raises TooManyFailed.
    """
    checkpoint, known = ctx.resources.checkpoint(model), by_id(ctx, problems)
    sampled = sample_and_verify(ctx, "benchmark", checkpoint, list(known.values()), sampling, Purpose.BENCHMARK, seed)
    scores = [score(checkpoint, known[trace.problem_id], trace) for trace in sampled.traces]
    scores += scores_of_failed(checkpoint, known, sampled.failed, sampling)
    ctx.report_skipped(skipped_rows(sampled.failed))
    return ctx.publish("scores", scores, rows_in=len(known), usage=sampled.usage, counts=failed_counts(sampled.failed))


class SampledTraces(NamedTuple):
    """Verified completions, refusals, and the cost of sampling and verification."""

    traces: list[Trace]
    failed: dict[str, FailedRequest]
    """Failed requests by problem id."""
    usage: Usage


def sample_and_verify(
    ctx: RunContext,
    stage: str,
    model: Checkpoint,
    problems: Sequence[Problem],
    sampling: Sampling,
    purpose: Purpose,
    seed: int,
) -> SampledTraces:
    """Samples `sampling.samples` completions of each problem and verifies them.

    Raises TooManyFailed, also when every problem failed.
    """
    requests = [Request(model.prompt_ids(problem), sampling, sampling.samples) for problem in problems]
    sampled = ctx.resources.sample(stage, model, requests, purpose, seed)
    results = list(zip(problems, sampled.completions, strict=True))
    failed = {problem.id: result for problem, result in results if isinstance(result, FailedRequest)}
    served = [(problem, group) for problem, group in results if not isinstance(group, FailedRequest)]
    validate_some_served(stage, failed, problems)
    texts = [[model.decode(c.token_ids) for c in group] for _, group in served]
    answers = [[final_answer(text, ctx.resources.prompt.thinking) for text in group] for group in texts]
    verdicts, checks = ctx.resources.verdicts([problem for problem, _ in served], answers)
    traces = [
        Trace(
            problem_id=problem.id,
            sample=sample,
            token_ids=completion.token_ids,
            text=text,
            truncated=not completion.finished,
            verdict=verdict,
        )
        for (problem, group), group_texts, checked in zip(served, texts, verdicts, strict=True)
        for sample, (completion, text, verdict) in enumerate(zip(group, group_texts, checked, strict=True))
    ]
    return SampledTraces(traces, failed, sampled.usage + checks)


def validate_some_served(stage: str, failed: Mapping[str, FailedRequest], problems: Sequence[Problem]) -> None:
    """Raises TooManyFailed when every problem was failed, whatever the settings allow."""
    if problems and len(failed) == len(problems):
        raise TooManyFailed(f"{stage}: there is no completion of any problem: {next(iter(failed.values())).reason}")


def score(model: Checkpoint, problem: Problem, trace: Trace, overhead: int = 0) -> Score:
    """The score of one trace. `overhead`: tokens generated beside the trace, such as probes."""
    return Score(
        problem_id=problem.id,
        level=problem.level,
        subject=problem.subject,
        sample=trace.sample,
        prompt_tokens=len(model.prompt_ids(problem)),
        tokens=len(trace.token_ids) + overhead,
        overhead=overhead,
        truncated=trace.truncated,
        verdict=trace.verdict,
    )


def scores_of_failed(
    model: Checkpoint, known: Mapping[str, Problem], failed: Iterable[str], sampling: Sampling
) -> list[Score]:
    """Scores for all samples of failed problems."""
    return [
        Score(
            problem_id=name,
            level=known[name].level,
            subject=known[name].subject,
            sample=sample,
            prompt_tokens=len(model.prompt_ids(known[name])),
            tokens=0,
            truncated=False,
            verdict=Verdict.NO_COMPLETION,
        )
        for name in failed
        for sample in range(sampling.samples)
    ]


def failed_counts(failed: Mapping[str, FailedRequest]) -> dict[str, int]:
    """Ledger counts of a step that scores failed rows as not right, by kind of failure."""
    kinds = Counter(failure.kind for failure in failed.values())
    return {f"not right: {kind}": count for kind, count in kinds.items()}
