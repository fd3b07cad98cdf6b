"""One engine at work for many traces: its seats, its cache, and the order in which it is given what is to be drawn.

Knows: an engine's session, prompts, token counts. Must not know: stores, what a draw is for, other engines.

A job is begun only while the prompts of all that are begun fit the engine's cache, so that a trace's prefixes find each
other there. The shortest prefix of the longest job is drawn first: a scan takes one prefix after another, and a long
one that begins late leaves the engine empty at the end.
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, count, repeat, takewhile

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Deliver, Engine, Refused, Request, Session
from reasoning.records import Usage
from reasoning.sampling_plans import Outcomes, SampleRange, SamplingPlan


@dataclass(eq=False)
class Job:
    """A plan about one trace, and what carrying it out takes."""

    plan: SamplingPlan
    prompt: Callable[[int], tuple[int, ...]]
    """Token ids of a prefix and what opens its rollouts, by the prefix's index."""
    sampling: Sampling
    score: Callable[[Sequence[Completion]], Outcomes]
    """Called in any thread."""
    prompt_tokens: int
    """Tokens of its longest prompt."""
    scheduler_index: Callable[[int], int] = lambda prefix: 0
    """Which desk a prefix is drawn at, by the prefix's index."""
    stop: tuple[str, ...] = ()
    """As in `Request`."""
    refused: Refused | None = None
    """One of its requests that no engine could serve; its plan then stays open."""


@dataclass(eq=False)
class PendingRequest:
    """One ask on its way: looked up, claimed, drawn, committed, judged."""

    number: int
    """Of its job, in the order in which jobs were given."""
    job: Job
    ask: SampleRange
    scheduler: EngineScheduler
    request: Request
    key: bytes
    completions: list[Completion] = field(default_factory=list)
    """The first of the ask's samples, as far as they are there."""

    @property
    def missing(self) -> int:
        return self.ask.count - len(self.completions)


class UtilisationClock:
    """How an engine's time passed from its first request to its last reply; see `Usage` for the names."""

    def __init__(self, slots: int, now: Callable[[], float] = time.monotonic):
        self._half, self._now = slots / 2, now
        self._busy = self._idle = self._tail = 0.0
        self._running = 0
        self._since: float | None = None

    def set_running(self, taken: int) -> None:
        """From now on so many of its seats are taken."""
        now = self._now()
        if self._since is not None:
            spent = now - self._since
            self._busy, self._idle = (
                (self._busy + spent, self._idle) if self._running else (self._busy, self._idle + spent)
            )
            self._tail = 0.0 if self._running >= self._half else self._tail + spent
        self._running, self._since = taken, now

    @property
    def usage(self) -> Usage:
        return Usage(engine_busy=self._busy, engine_idle=self._idle, engine_tail=self._tail)


def sampling_cost(model: Checkpoint, prompt: int, lengths: Sequence[int], cached: int) -> Usage:
    """Of completions of `lengths` tokens, each after `prompt` tokens of which `cached` were not computed."""
    flops = sum(model.shape.forward_flops(prompt, cached, length) for length in lengths)
    return Usage(
        prompt_tokens=prompt * len(lengths),
        cached_prompt_tokens=cached * len(lengths),
        generated_tokens=sum(lengths),
        flops=flops,
    )


class EngineScheduler:
    """An engine that serves one model; `usage` accounts for what was drawn, and is whole once the desk is left."""

    def __init__(self, engine: Engine, model: Checkpoint):
        self.engine, self.model = engine, model
        self.usage = Usage()
        self._admitted: dict[int, int] = {}
        """Room of the jobs that are being drawn for."""
        self._prompt_tokens_admitted = 0
        """By all of them."""
        self._queued_jobs: list[tuple[int, int]] = []
        """A heap of the jobs with draws to be begun, the longest first: its room, negative, and its number."""
        self._queued_requests: dict[int, list[PendingRequest]] = defaultdict(list)
        """Their draws."""
        self._cached_blocks: dict[int, set[int]] = defaultdict(set)
        """By open job: the blocks that an engine would have cached, had it drawn what the store held."""
        self._waiting: list[tuple[int, int, int, int, PendingRequest]] = []
        """A heap of the draws of begun jobs: the longest job first, its shortest prefix first."""
        self._order = count()
        self._running = 0
        """Seats of the engine that are taken."""
        self._session: Session | None = None
        self._prompt_token_budget: int | None = None
        """Tokens that the engine's cache holds, once a session is open."""
        self._prompt_tokens_before = 0
        """Prompt tokens that the engine had computed before."""
        self._samples = 0
        """Completions that were drawn here."""
        self._clock = UtilisationClock(engine.max_concurrency)

    def enqueue(self, pending: PendingRequest) -> None:
        """Puts a draw in line."""
        if pending.number in self._admitted:
            self._push(pending)
            return
        if pending.number not in self._queued_requests:
            heapq.heappush(self._queued_jobs, (-pending.job.prompt_tokens, pending.number))
        self._queued_requests[pending.number].append(pending)

    def next_batch(
        self, stack: ExitStack, deliver: Deliver, is_open: Callable[[int], bool]
    ) -> Iterator[PendingRequest]:
        """The draws that fit its free seats, off the line; at least one where nothing is under way. Draws of jobs that
        are not open are forgotten. The session that they need lives as long as `stack`."""
        if self._queued_jobs and self._session is None:
            self._session = stack.enter_context(self.engine.session(self.model, deliver))
            self._prompt_token_budget, self._prompt_tokens_before = (
                self.engine.cache_tokens,
                self.engine.computed_prompt_tokens,
            )
        self._admit_jobs(is_open)
        slots, none_yet = self.engine.max_concurrency - self._running, not self._running
        while self._waiting:
            pending = self._waiting[0][-1]
            if pending.missing > slots and not none_yet:
                return
            heapq.heappop(self._waiting)
            if is_open(pending.number):
                slots, none_yet = slots - pending.missing, False
                yield pending

    def _push(self, pending: PendingRequest) -> None:
        heapq.heappush(
            self._waiting, (-pending.job.prompt_tokens, pending.number, pending.ask.prefix, next(self._order), pending)
        )

    def _admit_jobs(self, is_open: Callable[[int], bool]) -> None:
        """Begins jobs while their prompts fit the engine's cache; always one, and one more where the engine has nothing
        to do: begun jobs may wait for another desk, and those that are begun there for this one."""
        while self._queued_jobs:
            tokens, number = -self._queued_jobs[0][0], self._queued_jobs[0][1]
            is_at_work = self._running or self._waiting
            if (
                is_at_work
                and self._prompt_token_budget is not None
                and self._prompt_tokens_admitted + tokens > self._prompt_token_budget
            ):
                return
            heapq.heappop(self._queued_jobs)
            requests = self._queued_requests.pop(number)
            if is_open(number):
                self._admitted[number] = tokens
                self._prompt_tokens_admitted += tokens
                for pending in requests:
                    self._push(pending)

    def finish_job(self, number: int) -> None:
        """A job is closed: its room is free."""
        self._prompt_tokens_admitted -= self._admitted.pop(number, 0)
        self._cached_blocks.pop(number, None)

    def submit(self, ticket: int, pending: PendingRequest) -> None:
        assert self._session
        self._add_running(pending.missing)
        self._session.submit(ticket, replace(pending.request, count=pending.missing), pending.number)

    def release(self, pending: PendingRequest) -> None:
        """Its seats are free."""
        self._add_running(-pending.missing)

    def _add_running(self, slots: int) -> None:
        self._running += slots
        self._clock.set_running(self._running)

    def account_sampled(self, pending: PendingRequest, lengths: Sequence[int]) -> None:
        """Completions of so many tokens were drawn."""
        self._samples += len(lengths)
        if pending.number in self._admitted:
            self._cached_blocks[pending.number].update(self._blocks(pending.request.prompt_ids))
        self.usage += sampling_cost(
            self.model, len(pending.request.prompt_ids), lengths, self._cacheable_tokens(pending)
        )

    def account_reused(self, pending: PendingRequest, unpriced: Sequence[Completion]) -> None:
        """What a draw holds came from the store. What is not accounted for yet has the price of drawing it: the first
        finds in the cache what was there of the same job, the others all that can be shared."""
        if not pending.completions:
            return
        prompt, shared, met = (
            pending.request.prompt_ids,
            self._cacheable_tokens(pending),
            self._cached_blocks[pending.number],
        )
        names = list(self._blocks(prompt))
        found = self.engine.block * len(list(takewhile(met.__contains__, names)))
        caches, shape = chain([min(found, shared)], repeat(shared)), self.model.shape
        priced = zip(unpriced, caches, strict=False)
        flops = sum(shape.forward_flops(len(prompt), cached, len(one.token_ids)) for one, cached in priced)
        self.usage += Usage(reused_completions=len(pending.completions), reused_flops=flops)
        met.update(names)
        before, rest = names[-1] if names else 0, prompt[len(names) * self.engine.block :]
        for completion in pending.completions:
            met.update(self._blocks(rest + completion.token_ids[:-1], before))

    def _blocks(self, token_ids: tuple[int, ...], name: int = 0) -> Iterator[int]:
        """Each whole block's name, which depends on all before it; `name` is that of what stands before the first."""
        size = self.engine.block
        for end in range(size, len(token_ids) + 1, size):
            name = hash((name, token_ids[end - size : end]))
            yield name

    def close(self) -> None:
        """Nothing more will be drawn; its session is still open."""
        if self._session:
            self.usage += self._uncached_usage(self.engine.computed_prompt_tokens - self._prompt_tokens_before)
        self.usage += self._clock.usage

    def _cacheable_tokens(self, pending: PendingRequest) -> int:
        """Prompt tokens that a sample finds in the cache where another was there before: whole blocks, never the last
        token."""
        return (len(pending.request.prompt_ids) - 1) // self.engine.block * self.engine.block

    def _uncached_usage(self, computed: int) -> Usage:
        """What is missing from `usage` where `computed` prompt tokens were computed in all: those of first samples.
        Their FLOPs are as those of a mean prompt."""
        extra = computed - (self.usage.prompt_tokens - self.usage.cached_prompt_tokens)
        if extra <= 0 or not self._samples:  # a server that was started anew counts from zero
            return Usage()
        totals = (self.usage.prompt_tokens, self.usage.cached_prompt_tokens, extra)
        prompt, cached, part = (total // self._samples for total in totals)
        shape = self.model.shape
        flops = shape.forward_flops(prompt, cached - part, 0) - shape.forward_flops(prompt, cached, 0)
        return Usage(cached_prompt_tokens=-extra, flops=self._samples * flops)
