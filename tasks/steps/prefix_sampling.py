"""Samples from prefixes of traces: probes of their answer, rollouts that continue them, and endings.

Adds prompts, exit texts and closing texts, and verifies the answers. Which prefixes are sampled is the caller's choice.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple, TypeVar

from conf.probing import Finalizing, Probing
from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, FailedRequest, ScorableText
from models.inference.rollout_executor import FailureBudget
from models.inference.rollout_store import Purpose
from models.inference.scheduler import SamplingJob, job_of_one_prompt, outcomes_of_one_prompt
from reasoning.answers.boxed import until_closing_brace
from reasoning.records import CostBounds, PrefixValues, Problem, SkippedRow, Trace, Usage, Verdict
from reasoning.sampling_plans import CrossingSearch, FullEstimate, Outcomes, SamplingPlan, cost_bounds, count_right
from reasoning.thinking import Thinking, final_answer, is_closed_once
from reasoning.token_ids import TokenIds
from tasks.runtime.live_traces import valued_trace
from tasks.runtime.resources import Resources

T = TypeVar("T")


class Prefix(NamedTuple):
    """The beginning of a thinking text, as token ids without the prompt."""

    problem_id: str
    token_ids: TokenIds


class PrefixQuery(NamedTuple):
    """A sampling plan over prefixes of one trace."""

    trace: Trace
    plan: SamplingPlan
    prefix: Callable[[int], TokenIds]
    """Token ids of a prefix, by its index in the plan."""
    longest: int
    """Tokens of the longest prefix."""
    ends: Sequence[int] = ()
    """Token ends of the prefixes, if each is a beginning of the trace."""


class ProbeFormat(NamedTuple):
    """How a prefix is probed: the text appended to it, sampling, and how an answer is read from the completion."""

    exit_text: str
    sampling: Sampling
    answer: Callable[[str], str | None]
    """From the completion's text to its answer; None without an answer."""


def skipped_rows(failed: Mapping[str, FailedRequest]) -> list[SkippedRow]:
    """One row for each failed request. `failed` is keyed by row id."""
    return [SkippedRow(id=name, reason=failure.kind, detail=failure.reason) for name, failure in failed.items()]


def answer_probe(probing: Probing) -> ProbeFormat:
    """Closes a prefix with the exit text and samples the answer alone (DTO's probe)."""
    return ProbeFormat(probing.exit_text, probing.sampling, until_closing_brace)


def continuation(sampling: Sampling, thinking: Thinking) -> ProbeFormat:
    """Lets the model continue its thinking to its own end (Long⊗Short's Monte Carlo rollouts)."""
    return ProbeFormat("", sampling, partial(final_answer, thinking=thinking))


OutcomeRule = Callable[[Trace, Sequence[str | None]], Outcomes]
"""From a trace and the answers of rollouts to one outcome for each answer. Called from any thread."""


def query_prefixes(trace: Trace, ends: Sequence[int], plan: SamplingPlan) -> PrefixQuery:
    """A query for the prefixes of `trace` that end after `ends` tokens."""
    return PrefixQuery(trace, plan, lambda index: trace.token_ids[: ends[index]], max(ends, default=0), ends)


class CheckedSampler:
    """Adds up the usage of sampling and of checking the answers, from any thread."""

    def __init__(self, resources: Resources):
        self._resources = resources
        self._lock = threading.Lock()
        self.usage = Usage()

    def _account(self, usage: Usage) -> None:
        with self._lock:
            self.usage += usage

    def _verdicts(self, problem: Problem, answers: Sequence[str | None]) -> list[Verdict]:
        (verdicts,), checks = self._resources.verdicts([problem], [answers])
        self._account(checks)
        return verdicts


class PrefixSampler(CheckedSampler):
    """Runs prefix queries on one model. Its methods raise TooManyFailed."""

    def __init__(
        self, resources: Resources, model: Checkpoint, problems: dict[str, Problem], probe: ProbeFormat, seed: int
    ):
        super().__init__(resources)
        self._model, self._problems, self._seed = model, problems, seed
        self._exit, self._answer = model.encode(probe.exit_text), probe.answer
        self._sampling = probe.sampling
        self.failed: dict[str, FailedRequest] = {}
        """Failed requests by trace id."""
        self.probe_tokens: Counter[str] = Counter()
        """Tokens generated for probes, by trace id."""

    def run_queries(
        self,
        stage: str,
        purpose: Purpose,
        queries: Sequence[PrefixQuery],
        outcome_rule: OutcomeRule | None = None,
        failures: FailureBudget | None = None,
    ) -> None:
        """Samples until every plan is complete, except the plans of `failed` traces. The default `outcome_rule` is
        the answer check."""
        for _ in self.run(stage, purpose, len(queries), queries, outcome_rule, failures):
            pass

    def run(
        self,
        stage: str,
        purpose: Purpose,
        total: int,
        queries: Iterable[PrefixQuery],
        outcome_rule: OutcomeRule | None = None,
        failures: FailureBudget | None = None,
    ) -> Generator[PrefixQuery]:
        """Yields each query when its plan is complete or its trace is one of `failed`, in order. `queries`, `total` of
        them, are drawn as they are needed. `failures`: as in `Resources.run_jobs`."""
        jobs = ((query, self._job(query, outcome_rule or self._verify)) for query in queries)
        run_jobs = self._resources.run_jobs
        for query, job in run_jobs(stage, total, self._model, jobs, purpose, self._seed, self._account, failures):
            if job.failure:
                self.failed[query.trace.id] = job.failure
            yield query

    def estimate_values(
        self, stage: str, total: int, rows: Iterable[tuple[Trace, Sequence[int]]]
    ) -> Generator[PrefixValues]:
        """Counts the right rollouts of every prefix of each trace, in order. `rows`: traces with the token ends of
        their prefixes, about `total` of them, which are drawn as they are needed.

        Traces with a failed request are absent from the result.
        """
        samples = self._sampling.samples
        queries = (query_prefixes(trace, ends, FullEstimate(len(ends), samples)) for trace, ends in rows)
        with closing(self.run(stage, Purpose.VALUE, total, queries)) as done:
            for query in done:
                if query.trace.id in self.failed:
                    continue
                assert isinstance(query.plan, FullEstimate)
                values = PrefixValues(
                    problem_id=query.trace.problem_id,
                    sample=query.trace.sample,
                    ends=tuple(query.ends),
                    total=samples,
                    right=tuple(count_right(outcomes) for outcomes in query.plan.outcomes),
                )
                problem = self._problems[query.trace.problem_id]
                self._resources.progress.trace(partial(valued_trace, self._model, problem, query.trace, values))
                yield values

    def cost_bounds(self, trace: Trace, ends: Sequence[int], plan: CrossingSearch) -> CostBounds:
        """Cost of a finished search, with lower and naive bounds. `ends`: token ends of the trace's segments."""
        prompt = len(self._model.prompt_ids(self._problems[trace.problem_id]))
        block = self._resources.engine_for(self._model).block
        return cost_bounds(plan, [prompt + end for end in ends], len(self._exit), self._sampling.samples, block)

    def _job(self, query: PrefixQuery, outcome_rule: OutcomeRule) -> SamplingJob:
        problem = self._problems[query.trace.problem_id]
        prompt = self._model.prompt_ids(problem)

        def outcomes(completions: Sequence[Completion]) -> Outcomes:
            with self._lock:
                self.probe_tokens[query.trace.id] += sum(len(completion.token_ids) for completion in completions)
            texts = [self._model.decode(completion.token_ids) for completion in completions]
            return outcome_rule(query.trace, [self._answer(text) for text in texts])

        return SamplingJob(
            query.plan,
            lambda index: prompt + query.prefix(index) + self._exit,
            self._sampling,
            outcomes,
            prompt_tokens=len(prompt) + query.longest + len(self._exit),
            images=self._model.images_of(problem),
        )

    def _verify(self, trace: Trace, answers: Sequence[str | None]) -> Outcomes:
        verdicts = self._verdicts(self._problems[trace.problem_id], answers)
        return [verdict is Verdict.RIGHT for verdict in verdicts]


Endings = list[tuple[TokenIds, Verdict]]
"""Sampled endings of one prefix, each with the verdict of its answer."""


class Finalizer(CheckedSampler):
    """Samples endings of cut traces: the closing text, then the model's own continuation (DTO)."""

    def __init__(
        self, resources: Resources, model: Checkpoint, problems: dict[str, Problem], finalizing: Finalizing, seed: int
    ):
        super().__init__(resources)
        self._model, self._problems, self._seed = model, problems, seed
        self._closing = model.encode(finalizing.closing_text)
        self._sampling = finalizing.sampling

    def sample_endings(
        self,
        stage: str,
        purpose: Purpose,
        prefixes: Sequence[Prefix],
        count: int | None = None,
        failures: FailureBudget | None = None,
    ) -> list[Endings | FailedRequest]:
        """`run` for a list of prefixes."""
        jobs = ((None, prefix) for prefix in prefixes)
        return [endings for _, endings in self.run(stage, purpose, len(prefixes), jobs, count, failures)]

    def run(
        self,
        stage: str,
        purpose: Purpose,
        total: int,
        prefixes: Iterable[tuple[T, Prefix]],
        count: int | None = None,
        failures: FailureBudget | None = None,
    ) -> Generator[tuple[T, Endings | FailedRequest]]:
        """For each prefix, in order, what came with it, and `count` endings (default: the settings' number of samples)
        or the failure. `prefixes`, `total` of them, are drawn as they are needed. `failures`: as in
        `Resources.run_jobs`.

        An ending that is truncated, or does not close the thinking exactly once, has no answer. Raises TooManyFailed.
        """
        jobs = ((item, self._job(prefix, count or self._sampling.samples)) for item, prefix in prefixes)
        run_jobs = self._resources.run_jobs
        for item, job in run_jobs(stage, total, self._model, jobs, purpose, self._seed, self._account, failures):
            yield item, job.failure or list(outcomes_of_one_prompt(job))  # type: ignore[misc]

    def _job(self, prefix: Prefix, count: int) -> SamplingJob:
        problem = self._problems[prefix.problem_id]
        prompt = self._model.prompt_ids(problem) + prefix.token_ids + self._closing

        def checked(completions: Sequence[Completion]) -> Outcomes:
            verdicts = self._verdicts(problem, [self._answer(one) for one in completions])
            return [
                (self._closing + one.token_ids, verdict) for one, verdict in zip(completions, verdicts, strict=True)
            ]

        return job_of_one_prompt(prompt, self._sampling, count, checked, images=self._model.images_of(problem))

    def _answer(self, completion: Completion) -> str | None:
        text = self._model.decode(self._closing + completion.token_ids)
        thinking = self._model.prompt.thinking
        return final_answer(text, thinking) if completion.finished and is_closed_once(text, thinking) else None


class LogProbScorer:
    """Computes log-probs of prefixes under one model and adds up the usage."""

    def __init__(self, resources: Resources, model: Checkpoint, problems: dict[str, Problem], total: int):
        """`total`: number of traces, of which a share may fail."""
        self._resources, self._model, self._problems = resources, model, problems
        self._failures = resources.failure_budget("log-probs", total)
        self.usage = Usage()
        self.failed = 0
        """Number of failed prefixes."""

    def log_probs(self, stage: str, prefixes: Sequence[Prefix]) -> list[list[float] | FailedRequest]:
        """For each prefix the log-prob of each of its tokens, given the prompt and the tokens before; or the failure.

        Raises TooManyFailed.
        """
        problems = [self._problems[prefix.problem_id] for prefix in prefixes]
        prompts = [self._model.prompt_ids(problem) for problem in problems]
        texts = [
            ScorableText(prompt + prefix.token_ids, self._model.images_of(problem))
            for problem, prompt, prefix in zip(problems, prompts, prefixes, strict=True)
        ]
        found, usage = self._resources.log_probs(stage, self._model, texts, self._failures)
        self.usage += usage
        self.failed += sum(isinstance(values, FailedRequest) for values in found)
        return [
            values if isinstance(values, FailedRequest) else values[len(prompt) - 1 :]
            for values, prompt in zip(found, prompts, strict=True)
        ]
