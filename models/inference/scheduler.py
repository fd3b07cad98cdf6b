"""Scheduler in front of one engine: slots, KV-cache budget and request order.

A job is admitted only while the longest prompts of all admitted jobs fit the KV cache, each with what one of its
requests generates; and a request is sent only while what all requests in flight generate fits beside the prompts. So
the prefixes of one trace share cached blocks, and the server need not throw out what it has begun.
Requests of the longest job go first, its shortest prefix first: a scan tests prefixes one after another, and a long
trace that starts last leaves the engine idle at the end.
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, count, repeat, takewhile

import numpy as np

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.images import PromptImages
from models.inference.engine import Completion, Deliver, Engine, FailedRequest, Request, Session
from reasoning.records import Usage
from reasoning.sampling_plans import FullEstimate, Outcomes, SampleRange, SamplingPlan
from reasoning.token_ids import TokenIds

SAMPLES_BEFORE = 32
"""Completions of half the allowed length that count beside those that were sampled, in the expected length."""
_random = np.random.default_rng(0)
IN_BLOCK = _random.integers(2**64, size=4096, dtype=np.uint64)
OF_BLOCK = _random.integers(2**64, size=2**18, dtype=np.uint64)
"""Random factors of a token's position in its block, and of the block's in its prompt: sums of products name blocks, as
unlikely to be the same for two prompts as 64 random bits."""


@dataclass(eq=False)
class SamplingJob:
    """A sampling plan for one trace, with everything needed to run it."""

    plan: SamplingPlan
    prompt: Callable[[int], TokenIds]
    """From a prefix's index to token ids: the prefix and the text that opens its rollouts."""
    sampling: Sampling
    score: Callable[[Sequence[Completion]], Outcomes]
    """From completions to outcomes. Called from any thread."""
    prompt_tokens: int
    """Length of its longest prompt, in tokens."""
    scheduler_index: Callable[[int], int] = lambda prefix: 0
    """From a prefix's index to the index of the scheduler that samples it."""
    stop: tuple[str, ...] = ()
    """As in `Request`."""
    images: PromptImages | None = None
    """As in `Request`."""
    failure: FailedRequest | None = None
    """The failed request, if any. The plan of a failed job stays open."""


def job_of_one_prompt(
    prompt: TokenIds,
    sampling: Sampling,
    count: int,
    score: Callable[[Sequence[Completion]], Outcomes],
    stop: tuple[str, ...] = (),
    images: PromptImages | None = None,
) -> SamplingJob:
    """A job of `count` completions of one prompt."""
    return SamplingJob(FullEstimate(1, count), lambda _: prompt, sampling, score, len(prompt), stop=stop, images=images)


def outcomes_of_one_prompt(job: SamplingJob) -> Outcomes:
    """The outcomes of a `job_of_one_prompt` that has not failed."""
    assert isinstance(job.plan, FullEstimate)
    return job.plan.outcomes[0]


@dataclass(eq=False)
class PendingRequest:
    """One sample range on its way through lookup, claim, sampling, commit and scoring."""

    job_id: int
    """Number of its job, in submission order."""
    job: SamplingJob
    sample_range: SampleRange
    scheduler: EngineScheduler
    request: Request
    key: bytes
    completions: list[Completion] = field(default_factory=list)
    """Samples of the range that are available so far, from the first on."""

    @property
    def missing(self) -> int:
        return self.sample_range.count - len(self.completions)

    def select(self, samples: Sequence[Completion]) -> list[Completion]:
        """Those of a prompt's `samples` that lie in the range."""
        return list(samples[self.sample_range.first : self.sample_range.first + self.sample_range.count])


class UtilisationClock:
    """Busy, idle and tail seconds of an engine, from its first request to its last reply; see `Usage`."""

    def __init__(self, slots: int, now: Callable[[], float] = time.monotonic):
        self._half_slots, self._now = slots / 2, now
        self._busy = self._idle = self._tail = 0.0
        self._running = 0
        self._since: float | None = None

    def set_running(self, slots: int) -> None:
        """Sets the number of slots in use from now on."""
        now = self._now()
        if self._since is not None:
            elapsed = now - self._since
            self._busy, self._idle = (
                (self._busy + elapsed, self._idle) if self._running else (self._busy, self._idle + elapsed)
            )
            self._tail = 0.0 if self._running >= self._half_slots else self._tail + elapsed
        self._running, self._since = slots, now

    @property
    def usage(self) -> Usage:
        return Usage(engine_busy=self._busy, engine_idle=self._idle, engine_tail=self._tail)


def sampling_cost(model: Checkpoint, prompt: int, lengths: Sequence[int], cached: int) -> Usage:
    """Usage of completions with `lengths` tokens each, after `prompt` tokens of which `cached` came from the prefix
    cache."""
    flops = sum(model.shape.forward_flops(prompt, cached, length) for length in lengths)
    return Usage(
        prompt_tokens=prompt * len(lengths),
        cached_prompt_tokens=cached * len(lengths),
        generated_tokens=sum(lengths),
        flops=flops,
    )


class EngineScheduler:
    """Queues requests for an engine that serves one model. `usage` counts what was sampled; it is final after
    `close`."""

    def __init__(self, engine: Engine, model: Checkpoint):
        self.engine, self.model = engine, model
        self.usage = Usage()
        self._admitted: dict[int, tuple[int, int]] = {}
        """By admitted job: the tokens of the KV cache that it claims, and of those its prompt."""
        self._claimed_tokens = self._prompt_tokens = 0
        """Sums over admitted jobs."""
        self._queued_jobs: list[tuple[int, int]] = []
        """Heap of the jobs that are not admitted yet, longest first: negative prompt tokens, job id."""
        self._queued_requests: dict[int, list[PendingRequest]] = defaultdict(list)
        """Their requests, by job id."""
        self._cached_blocks: dict[int, set[int]] = defaultdict(set)
        """By open job: names of the KV-cache blocks that the engine would hold if it had sampled what the store
        returned."""
        self._waiting: list[tuple[int, int, int, int, PendingRequest]] = []
        """Heap of the requests of admitted jobs: longest job first, its shortest prefix first."""
        self._order = count()
        self._running = 0
        """Slots of the engine in use."""
        self._session: Session | None = None
        self._cache_tokens: int | None = None
        """Tokens that the engine's KV cache holds. Known once a session is open."""
        self._prompt_tokens_before = 0
        """Prompt tokens that the engine had computed when the session opened."""
        self._samples = 0
        """Completions sampled through this scheduler."""
        self._clock = UtilisationClock(engine.max_concurrency)

    def enqueue(self, pending: PendingRequest) -> None:
        """Queues a request."""
        if pending.job_id in self._admitted:
            self._push(pending)
            return
        if pending.job_id not in self._queued_requests:
            heapq.heappush(self._queued_jobs, (-pending.job.prompt_tokens, pending.job_id))
        self._queued_requests[pending.job_id].append(pending)

    def next_batch(
        self, stack: ExitStack, deliver: Deliver, is_open: Callable[[int], bool]
    ) -> Iterator[PendingRequest]:
        """Removes and returns the queued requests that fit the free slots; at least one where nothing is running.
        Requests of closed jobs are dropped. Opens a session, which lives as long as `stack`, when one is needed."""
        if self._queued_jobs and self._session is None:
            self._session = stack.enter_context(self.engine.session(self.model, deliver))
            self._cache_tokens, self._prompt_tokens_before = (
                self.engine.cache_tokens,
                self.engine.computed_prompt_tokens,
            )
        self._admit_jobs(is_open)
        free_slots, is_idle = self.engine.max_concurrency - self._running, not self._running
        while self._waiting:
            pending = self._waiting[0][-1]
            if not is_idle and (pending.missing > free_slots or not self._has_room(pending, free_slots)):
                return
            heapq.heappop(self._waiting)
            if is_open(pending.job_id):
                free_slots, is_idle = free_slots - pending.missing, False
                yield pending

    def _has_room(self, pending: PendingRequest, free_slots: int) -> bool:
        """Whether the KV cache holds what the request generates beside all that is in flight."""
        in_flight = self.engine.max_concurrency - free_slots + pending.missing
        generated = in_flight * self._expected_tokens(pending.job)
        return self._cache_tokens is None or self._prompt_tokens + generated <= self._cache_tokens

    def _push(self, pending: PendingRequest) -> None:
        heapq.heappush(
            self._waiting,
            (-pending.job.prompt_tokens, pending.job_id, pending.sample_range.prefix, next(self._order), pending),
        )

    def _admit_jobs(self, is_open: Callable[[int], bool]) -> None:
        """Admits jobs while they fit the KV cache. Admits one more when idle; otherwise two schedulers, each waiting
        for jobs that the other has admitted, can deadlock."""
        while self._queued_jobs:
            job_id = self._queued_jobs[0][1]
            tokens = self._claim(self._queued_requests[job_id])
            has_work = self._running or self._waiting
            if has_work and self._cache_tokens is not None and self._claimed_tokens + tokens > self._cache_tokens:
                return
            heapq.heappop(self._queued_jobs)
            requests = self._queued_requests.pop(job_id)
            if is_open(job_id):
                self._admitted[job_id] = tokens, requests[0].job.prompt_tokens
                self._claimed_tokens += tokens
                self._prompt_tokens += requests[0].job.prompt_tokens
                for pending in requests:
                    self._push(pending)

    def _claim(self, requests: Sequence[PendingRequest]) -> int:
        """Tokens of the KV cache that a job takes at least: its longest prompt, and what one request generates."""
        return requests[0].job.prompt_tokens + round(requests[0].missing * self._expected_tokens(requests[0].job))

    def _expected_tokens(self, job: SamplingJob) -> float:
        """What a completion in flight takes of the KV cache: half of its length, expected to be the mean so far."""
        longest = job.sampling.max_tokens
        before = SAMPLES_BEFORE * longest / 2
        mean = (before + self.usage.generated_tokens) / (SAMPLES_BEFORE + self._samples)
        return min(mean, longest) / 2

    def finish_job(self, job_id: int) -> None:
        """Frees what a closed job has claimed of the KV cache."""
        claimed, prompt = self._admitted.pop(job_id, (0, 0))
        self._claimed_tokens -= claimed
        self._prompt_tokens -= prompt
        self._cached_blocks.pop(job_id, None)

    def submit(self, request_id: int, pending: PendingRequest) -> None:
        assert self._session
        self._add_running(pending.missing)
        self._session.submit(request_id, replace(pending.request, count=pending.missing), pending.job_id)

    def release(self, pending: PendingRequest) -> None:
        """Frees the slots of a request."""
        self._add_running(-pending.missing)

    def _add_running(self, slots: int) -> None:
        self._running += slots
        self._clock.set_running(self._running)

    def account_sampled(self, pending: PendingRequest, lengths: Sequence[int]) -> None:
        """Counts sampled completions with these lengths in tokens."""
        self._samples += len(lengths)
        if pending.job_id in self._admitted:
            self._cached_blocks[pending.job_id].update(self._blocks(pending.request.prompt_ids))
        self.usage += sampling_cost(
            self.model, len(pending.request.prompt_ids), lengths, self._cacheable_tokens(pending)
        )

    def account_reused(self, pending: PendingRequest, unpriced: Sequence[Completion]) -> None:
        """Counts completions that came from the store. `unpriced`: those not counted before; they are priced as if
        sampled. The first finds in the prefix cache what the same job had put there, the others all that can be
        shared."""
        if not pending.completions:
            return
        prompt, shareable, seen_blocks = (
            pending.request.prompt_ids,
            self._cacheable_tokens(pending),
            self._cached_blocks[pending.job_id],
        )
        block_names = self._blocks(prompt)
        cached_tokens = self.engine.block * len(list(takewhile(seen_blocks.__contains__, block_names)))
        caches, shape = chain([min(cached_tokens, shareable)], repeat(shareable)), self.model.shape
        priced = zip(unpriced, caches, strict=False)
        flops = sum(
            shape.forward_flops(len(prompt), cached, len(completion.token_ids)) for completion, cached in priced
        )
        self.usage += Usage(reused_completions=len(pending.completions), reused_flops=flops)
        seen_blocks.update(block_names)
        for completion in pending.completions:
            seen_blocks.update(self._blocks(prompt + completion.token_ids[:-1]))

    def _blocks(self, token_ids: TokenIds) -> list[int]:
        """Names of the full blocks of `token_ids`. A name depends on all tokens up to the end of its block."""
        size = self.engine.block
        whole = len(token_ids) // size
        blocks = token_ids.array[: whole * size].reshape(whole, size).astype(np.uint64)
        return np.cumsum((blocks @ IN_BLOCK[:size]) * OF_BLOCK[:whole]).tolist()

    def close(self) -> None:
        """Completes `usage`. Call after the last reply, while the session is still open."""
        if self._session:
            self.usage += self._uncached_usage(self.engine.computed_prompt_tokens - self._prompt_tokens_before)
        self.usage += self._clock.usage

    def _cacheable_tokens(self, pending: PendingRequest) -> int:
        """Prompt tokens that a second sample finds in the prefix cache: full blocks, never the last token."""
        return (len(pending.request.prompt_ids) - 1) // self.engine.block * self.engine.block

    def _uncached_usage(self, computed: int) -> Usage:
        """Correction of `usage` where the engine computed `computed` prompt tokens: the uncached part of first samples,
        priced as for a prompt of mean length."""
        extra = computed - (self.usage.prompt_tokens - self.usage.cached_prompt_tokens)
        if extra <= 0 or not self._samples:  # the counters of a restarted server begin at zero
            return Usage()
        totals = (self.usage.prompt_tokens, self.usage.cached_prompt_tokens, extra)
        prompt, cached, part = (total // self._samples for total in totals)
        shape = self.model.shape
        flops = shape.forward_flops(prompt, cached - part, 0) - shape.forward_flops(prompt, cached, 0)
        return Usage(cached_prompt_tokens=-extra, flops=self._samples * flops)
