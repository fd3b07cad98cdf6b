"""How prefixes of traces are put to an engine: probes of what they answer, rollouts that go on, and endings.

Knows: prompts, exit and closing texts, the answer check. Must not know: the rules that choose prefixes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from conf.probing import Finalizing, Probing
from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Refused, Request
from models.inference.rollout_store import Purpose
from models.inference.scheduler import Job
from reasoning.answers.boxed import until_closing_brace
from reasoning.records import CostBounds, PrefixValues, Problem, SkippedRow, Trace, Usage, Verdict
from reasoning.sampling_plans import CrossingSearch, FullEstimate, Outcomes, SamplingPlan, cost_bounds, count_right
from reasoning.thinking import Thinking, final_answer, is_closed_once
from tasks.runtime.resources import Resources

TokenIds = tuple[int, ...]


class Prefix(NamedTuple):
    """Thinking so far, of one problem."""

    problem_id: str
    token_ids: TokenIds


class PrefixQuery(NamedTuple):
    """A question about prefixes of a trace."""

    trace: Trace
    plan: SamplingPlan
    prefix: Callable[[int], TokenIds]
    """The thinking of a prefix, by its index in the plan."""
    longest: int
    """Tokens of the longest of them."""


class ProbeFormat(NamedTuple):
    """What follows a prefix, and where what the model then writes holds the answer."""

    exit_text: str
    sampling: Sampling
    answer: Callable[[str], str | None]


def skipped_rows(refused: Mapping[str, Refused]) -> list[SkippedRow]:
    """Rows that no engine could serve, by id."""
    return [SkippedRow(id=name, reason=one.kind, detail=one.reason) for name, one in refused.items()]


def answer_probe(probing: Probing) -> ProbeFormat:
    """Prefixes are closed with the exit text, and the answer alone is sampled (papers, section B.2–B.3)."""
    return ProbeFormat(probing.exit_text, probing.sampling, until_closing_brace)


def continuation(sampling: Sampling, thinking: Thinking) -> ProbeFormat:
    """The model thinks on, to its own end (section C.2)."""
    return ProbeFormat("", sampling, partial(final_answer, thinking=thinking))


OutcomeRule = Callable[[Trace, Sequence[str | None]], Outcomes]
"""From the answers of a trace's rollouts to what they say for its prefix. Called in any thread."""


def query_prefixes(trace: Trace, ends: Sequence[int], plan: SamplingPlan) -> PrefixQuery:
    """`plan` about the prefixes of `trace` that end at the tokens `ends`."""
    return PrefixQuery(trace, plan, lambda index: trace.token_ids[: ends[index]], max(ends, default=0))


class PrefixSampler:
    """Samples what prefixes lead to."""

    def __init__(
        self, resources: Resources, model: Checkpoint, problems: dict[str, Problem], asking: ProbeFormat, seed: int
    ):
        self._resources, self._model, self._problems, self._seed = resources, model, problems, seed
        self._exit, self._answer = model.encode(asking.exit_text), asking.answer
        self._sampling = asking.sampling
        self._unverified = 0
        self._lock = threading.Lock()
        self._usage = Usage()
        self.refused: dict[str, Refused] = {}
        """Traces that no engine could serve, by id."""
        self.probe_tokens: Counter[str] = Counter()
        """Generated tokens of all probes, by trace id."""

    @property
    def usage(self) -> Usage:
        return self._usage + Usage(unverified=self._unverified)

    def run_queries(
        self, stage: str, purpose: Purpose, asked: Sequence[PrefixQuery], judge: OutcomeRule | None = None
    ) -> None:
        """Closes all plans but those of `refused` traces. `judge` stands in for the answer check where it is given.
        Raises TooManyFailed."""
        jobs = {self._job(one, judge or self._right): one.trace for one in asked}
        for job in self._resources.run_jobs(stage, self._model, list(jobs), purpose, self._seed, self._account):
            if job.refused:
                self.refused[jobs[job].id] = job.refused

    def estimate_values(
        self, stage: str, rows: Sequence[Trace], ends: Mapping[str, Sequence[int]]
    ) -> list[PrefixValues]:
        """The right ones among all rollouts of each row's prefixes, which end at the tokens `ends` (by trace id). What
        no engine could serve is left out."""
        total = self._sampling.samples
        plans = {row.id: FullEstimate(len(ends[row.id]), total) for row in rows}
        self.run_queries(stage, Purpose.VALUE, [query_prefixes(row, ends[row.id], plans[row.id]) for row in rows])
        return [
            PrefixValues(
                problem_id=row.problem_id,
                sample=row.sample,
                ends=tuple(ends[row.id]),
                total=total,
                right=tuple(count_right(outcomes) for outcomes in plans[row.id].outcomes),
            )
            for row in rows
            if row.id not in self.refused
        ]

    def cost_bounds(self, searches: Sequence[tuple[Trace, Sequence[int], CrossingSearch]]) -> CostBounds:
        """What searches took beside what they might have taken. Each comes with its segments' ends."""
        total, block = CostBounds(), self._resources.engine_for(self._model).block
        for trace, ends, plan in searches:
            prompt = len(self._model.prompt_ids(self._problems[trace.problem_id]))
            lengths = [prompt + end for end in ends]
            total += cost_bounds(plan, lengths, len(self._exit), self._sampling.samples, block)
        return total

    def _account(self, usage: Usage) -> None:
        self._usage += usage

    def _job(self, one: PrefixQuery, judge: OutcomeRule) -> Job:
        prompt = self._model.prompt_ids(self._problems[one.trace.problem_id])

        def outcomes(completions: Sequence[Completion]) -> Outcomes:
            with self._lock:
                self.probe_tokens[one.trace.id] += sum(len(completion.token_ids) for completion in completions)
            texts = [self._model.decode(completion.token_ids) for completion in completions]
            return judge(one.trace, [self._answer(text) for text in texts])

        return Job(
            one.plan,
            lambda index: prompt + one.prefix(index) + self._exit,
            self._sampling,
            outcomes,
            prompt_tokens=len(prompt) + one.longest + len(self._exit),
        )

    def _right(self, trace: Trace, answers: Sequence[str | None]) -> Outcomes:
        (verdicts,), checks = self._resources.verdicts([self._problems[trace.problem_id]], [answers])
        with self._lock:
            self._unverified += checks.unverified
        return [verdict is Verdict.RIGHT for verdict in verdicts]


Endings = list[tuple[TokenIds, Verdict]]
"""How a prefix goes on, with what the answer check says of each."""


class Finalizer:
    """Draws endings for cut traces: the closing text, then whatever the model goes on with (section B.5)."""

    def __init__(
        self, resources: Resources, model: Checkpoint, problems: dict[str, Problem], finalizing: Finalizing, seed: int
    ):
        self._resources, self._model, self._problems, self._seed = resources, model, problems, seed
        self._closing = model.encode(finalizing.closing_text)
        self._sampling = finalizing.sampling
        self.usage = Usage()

    def sample_endings(
        self, stage: str, purpose: Purpose, prefixes: Sequence[Prefix], count: int | None = None
    ) -> list[Endings | Refused]:
        """For each prefix `count` endings (as many as the settings say), or why there are none. Raises TooManyFailed.

        An ending that does not finish, or does not close the thinking exactly once, has no answer.
        """
        asked = [self._problems[prefix.problem_id] for prefix in prefixes]
        requests = [
            Request(
                self._model.prompt_ids(problem) + prefix.token_ids + self._closing,
                self._sampling,
                count or self._sampling.samples,
            )
            for problem, prefix in zip(asked, prefixes, strict=True)
        ]
        drawn = self._resources.sample(stage, self._model, requests, purpose, self._seed)
        groups = [() if isinstance(group, Refused) else group for group in drawn.completions]
        answers = [[self._answer(completion) for completion in group] for group in groups]
        verdicts, checks = self._resources.verdicts(asked, answers)
        self.usage += drawn.usage + checks
        ended = [
            [(self._closing + c.token_ids, v) for c, v in zip(group, judged, strict=True)]
            for group, judged in zip(groups, verdicts, strict=True)
        ]
        return [
            found if isinstance(found, Refused) else group
            for found, group in zip(drawn.completions, ended, strict=True)
        ]

    def _answer(self, completion: Completion) -> str | None:
        text = self._model.decode(self._closing + completion.token_ids)
        thinking = self._model.prompt.thinking
        return final_answer(text, thinking) if completion.finished and is_closed_once(text, thinking) else None


class LogProbScorer:
    """Reads prefixes as their model would have written them."""

    def __init__(self, resources: Resources, model: Checkpoint, problems: dict[str, Problem]):
        self._resources, self._model, self._problems = resources, model, problems
        self.usage = Usage()
        self.refused = 0
        """Prefixes that no engine could read."""

    def log_probs(self, stage: str, prefixes: Sequence[Prefix]) -> list[list[float] | Refused]:
        """For each prefix the log-prob of each of its tokens, given its problem and what comes before, or why there
        are none. Raises TooManyFailed."""
        prompts = [self._model.prompt_ids(self._problems[prefix.problem_id]) for prefix in prefixes]
        texts = [prompt + prefix.token_ids for prompt, prefix in zip(prompts, prefixes, strict=True)]
        found, usage = self._resources.log_probs(stage, self._model, texts)
        self.usage += usage
        self.refused += sum(isinstance(values, Refused) for values in found)
        return [
            values if isinstance(values, Refused) else values[len(prompt) - 1 :]
            for values, prompt in zip(found, prompts, strict=True)
        ]
