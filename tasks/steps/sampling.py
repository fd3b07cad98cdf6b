"""Sampling with verification: traces for curation, scores for evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.token_texts import Undecodable
from models.inference.engine import Completion, FailedRequest
from models.inference.rollout_store import Purpose
from models.inference.scheduler import SamplingJob, job_of_one_prompt, outcomes_of_one_prompt
from reasoning.records import Problem, Score, Trace, Usage, Verdict
from reasoning.sampling_plans import Outcomes
from reasoning.segment import token_ends
from reasoning.thinking import answer_end, final_answer
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.live_traces import sampled_trace
from tasks.runtime.rows import RowFile
from tasks.steps.prefix_sampling import CheckedSampler, skipped_rows
from tasks.steps.problems import by_id


@step("sampling")
def sample_traces(
    ctx: StepContext, model: ArtifactRef, problems: ArtifactRef, sampling: Sampling, seed: int
) -> ArtifactRef:
    """Rows of Trace, right and wrong. Problems without completions are skipped. Raises TooManyFailed."""
    sampler = TraceSampler(ctx, ctx.resources.checkpoint(model), sampling, Purpose.TRAIN, seed)
    done = sampler.run("sample", problems.rows, ctx.artifacts.stream(problems, Problem))
    with RowFile() as traces, closing(done):
        traces.extend(done)
        return ctx.publish(
            "traces", traces, rows_in=problems.rows, usage=sampler.usage, skipped=skipped_rows(sampler.failed)
        )


@step("sampling")
def evaluate(
    ctx: StepContext,
    model: ArtifactRef,
    problems: ArtifactRef,
    sampling: Sampling,
    seed: int,
    answers_directly: bool = False,
) -> ArtifactRef:
    """Rows of Score, on problems that no other step reads, from samples that no other step uses.

    `answers_directly`: the model marks no thinking. A completion that failed counts as not right. Raises TooManyFailed.
    """
    checkpoint, known = ctx.resources.checkpoint(model), by_id(ctx, problems)
    checkpoint = checkpoint.answering_directly() if answers_directly else checkpoint
    sampler = TraceSampler(ctx, checkpoint, sampling, Purpose.BENCHMARK, seed)
    with closing(sampler.run("benchmark", len(known), known.values())) as done:
        scores = [
            score(checkpoint, known[trace.problem_id], trace, answer_tokens=answer_tokens(checkpoint, trace))
            for trace in done
        ]
    scores += scores_of_failed(checkpoint, known, sampler.failed, sampling)
    ctx.report_skipped(skipped_rows(sampler.failed))
    return ctx.publish("scores", scores, rows_in=len(known), usage=sampler.usage, counts=failed_counts(sampler.failed))


class SampledTraces(NamedTuple):
    """Verified completions, refusals, and the cost of sampling and verification."""

    traces: list[Trace]
    failed: dict[str, FailedRequest]
    """Failed requests by problem id."""
    usage: Usage


class TraceSampler(CheckedSampler):
    """Samples and verifies completions of problems."""

    def __init__(self, ctx: RunContext, model: Checkpoint, sampling: Sampling, purpose: Purpose, seed: int):
        super().__init__(ctx.resources)
        self._model, self._sampling, self._purpose, self._seed = model, sampling, purpose, seed
        self.failed: dict[str, FailedRequest] = {}
        """Failed requests by problem id."""

    def run(self, stage: str, total: int, problems: Iterable[Problem]) -> Generator[Trace]:
        """Verified completions, in the order of `problems`, `total` of them, which are drawn as they are needed.

        Raises TooManyFailed, also when every problem failed.
        """
        served, run_jobs = 0, self._resources.run_jobs
        jobs = ((problem, self._job(problem)) for problem in problems)
        for problem, job in run_jobs(stage, total, self._model, jobs, self._purpose, self._seed, self._account):
            if job.failure:
                self.failed[problem.id] = job.failure
                continue
            served += 1
            verified: Any = outcomes_of_one_prompt(job)
            for sample, (completion, text, verdict) in enumerate(verified):
                yield Trace(
                    problem_id=problem.id,
                    sample=sample,
                    token_ids=completion.token_ids,
                    text=text,
                    truncated=not completion.finished,
                    verdict=verdict,
                )
        self._resources.validate_some_served(stage, self.failed, served)

    def _job(self, problem: Problem) -> SamplingJob:
        def verified(completions: Sequence[Completion]) -> Outcomes:
            return self._verified(problem, completions)

        prompt = self._model.prompt_ids(problem)
        images = self._model.images_of(problem)
        return job_of_one_prompt(prompt, self._sampling, self._sampling.samples, verified, images=images)

    def _verified(self, problem: Problem, completions: Sequence[Completion]) -> Outcomes:
        """Each completion with its text and its verdict."""
        texts = [self._model.decode(completion.token_ids) for completion in completions]
        answers = [final_answer(text, self._model.prompt.thinking) for text in texts]
        verdicts = self._verdicts(problem, answers)
        # Here and not in `run`, whose first trace may be the last to finish.
        self._resources.progress.trace(partial(sampled_trace, problem, texts[0], verdicts[0]))
        return list(zip(completions, texts, verdicts, strict=True))


def sample_and_verify(
    ctx: RunContext,
    stage: str,
    model: Checkpoint,
    problems: Sequence[Problem],
    sampling: Sampling,
    purpose: Purpose,
    seed: int,
) -> SampledTraces:
    """All traces of `TraceSampler.run`. Raises TooManyFailed, also when every problem failed."""
    sampler = TraceSampler(ctx, model, sampling, purpose, seed)
    return SampledTraces(list(sampler.run(stage, len(problems), problems)), sampler.failed, sampler.usage)


def answer_tokens(model: Checkpoint, trace: Trace) -> int | None:
    """Tokens up to the end of the trace's answer. None without an answer, and where the tokens cannot be aligned with
    the text."""
    end = answer_end(trace.text, model.prompt.thinking)
    if end is None:
        return None
    try:
        (tokens,) = token_ends([trace.text[:end]], model.token_texts(trace.token_ids))
    except Undecodable:
        return None
    return tokens


def score(
    model: Checkpoint, problem: Problem, trace: Trace, overhead: int = 0, answer_tokens: int | None = None
) -> Score:
    """The score of one trace. `overhead`: tokens generated beside the trace, such as probes."""
    return Score(
        problem_id=problem.id,
        level=problem.level,
        subject=problem.subject,
        sample=trace.sample,
        prompt_tokens=len(model.prompt_ids(problem)),
        tokens=len(trace.token_ids) + overhead,
        overhead=overhead,
        answer_tokens=answer_tokens,
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
