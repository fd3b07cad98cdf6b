"""The rollout executor: runs sampling plans and keeps the engines' batches full across traces.

One thread submits requests, commits completions and advances the plans. Sessions deliver into its queue, and
completions are scored in other threads, so that neither waits for the other. A plan that needs two models uses two
schedulers: the next turn is queued at the other one in the same iteration of the loop.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from conf.errors import ReadableError
from models.inference.engine import Completion, FailedRequest, Failure, Finished, Request
from models.inference.rollout_store import CLAIM_SECONDS, Purpose, RolloutStore, StoredCompletion, completion_key
from models.inference.scheduler import (
    EngineScheduler,
    PendingRequest,
    SamplingJob,
    job_of_one_prompt,
    outcomes_of_one_prompt,
)
from reasoning.records import Usage
from reasoning.sampling_plans import Outcomes

T = TypeVar("T")
SCORING_THREADS = max(4, len(os.sched_getaffinity(0)))
"""Threads that score completions; hard answers wait there for a checker process, one for each core."""
MIN_OPEN_JOBS = 512
"""Number of open jobs, whose requests are looked up together; more where their requests do not fill the engines."""
MAX_LEAD = 8192
"""Largest number of jobs between the oldest open one and the newest: whoever wants results in order keeps so many."""
BATCH_WINDOW = 0.01
"""Seconds over which events are batched: fewer transactions, and requests that reach the engine together."""
MAX_COUNTED_KEYS = 65_536
"""Recent keys that are remembered, so that samples shared by several requests are counted once."""
POLL_INTERVAL = 0.5
"""Seconds between two lookups of a completion that another run is sampling."""


@dataclass(frozen=True, slots=True)
class _ScoredRequest:
    pending: PendingRequest
    outcomes: Outcomes


class TooManyFailed(ReadableError):
    """Too many requests of a stage failed for its result to be valid."""


class FailureBudget:
    """Failed requests or rows of a stage, counted by reason. A share may fail, since one bad row must not end a run."""

    def __init__(self, stage: str, total: int, share: float):
        self._stage, self._total, self._share = stage, total, share
        self._counts: Counter[Failure] = Counter()
        self._first: dict[Failure, str] = {}

    def add(self, kind: Failure, reason: str) -> None:
        """Counts a failure. Raises TooManyFailed above the share, but never for a single failure."""
        self._counts[kind] += 1
        self._first.setdefault(kind, reason)
        if self._counts.total() > max(1, self._share * self._total):
            raise TooManyFailed(self._summary())

    def _summary(self) -> str:
        reasons = (f"{count} {kind} ({self._first[kind]})" for kind, count in self._counts.most_common())
        return (
            f"{self._stage}: {self._counts.total()} of {self._total} failed, more than engine.max_failed_fraction "
            f"({self._share:g}) allows: {'; '.join(reasons)}; fix that or raise the limit, then run again: what is "
            f"finished is kept"
        )


class RolloutExecutor:
    """Runs jobs on one or more schedulers; `usage` is final once all jobs are done."""

    def __init__(
        self,
        store: RolloutStore,
        schedulers: Sequence[EngineScheduler],
        purpose: Purpose,
        seed: int,
        progress: Callable[[int, int], None] = lambda jobs, tokens: None,
        failures: FailureBudget | None = None,
    ):
        """`progress` receives (finished jobs, new tokens). `failures` counts failed jobs and may end the run; if
        omitted, any number may fail."""
        self._store, self._schedulers = store.with_own_claims(), schedulers
        self._purpose, self._seed, self._progress, self._failures = purpose, seed, progress, failures
        self._events: SimpleQueue[Finished | FailedRequest | BaseException | _ScoredRequest] = SimpleQueue()
        self._slots = max(scheduler.engine.max_concurrency for scheduler in schedulers)
        self._wanted: dict[int, int] = {}
        """Completions that each open job waits for."""
        self._wanted_in_all = 0
        self._open: dict[int, SamplingJob] = {}
        """In the order of their ids."""
        self._opened = 0
        """Number of jobs that were ever opened."""
        self._changed: list[int] = []
        """Jobs that may have finished since the last check."""
        self._to_look_up: list[PendingRequest] = []
        """Requests not looked up yet."""
        self._parked: dict[bytes, list[PendingRequest]] = defaultdict(list)
        """Requests whose key is claimed by another run or in flight in this one."""
        self._counted: dict[int, int] = {}
        """Number of samples counted by key hash; the recent keys, oldest first."""
        self._in_flight: dict[int, PendingRequest] = {}
        self._being_scored = 0
        self._request_ids = 0
        self._next_lookup = self._next_renewal = 0.0

    @property
    def usage(self) -> Usage:
        return sum((scheduler.usage for scheduler in self._schedulers), Usage())

    def sample(self, requests: Sequence[Request]) -> list[tuple[Completion, ...] | FailedRequest]:
        """All completions of each request, in order, from the first scheduler; FailedRequest where the request failed.
        Raises TooManyFailed."""
        jobs = [
            job_of_one_prompt(one.prompt_ids, one.sampling, one.count, tuple, one.stop, one.images) for one in requests
        ]
        self.run_to_completion(jobs)
        return [job.failure or tuple(outcomes_of_one_prompt(job)) for job in jobs]  # type: ignore[misc]

    def run_to_completion(self, jobs: Iterable[SamplingJob]) -> None:
        """Runs all jobs to their end. Raises TooManyFailed."""
        for _ in self.run(jobs):
            pass

    def run(self, jobs: Iterable[SamplingJob]) -> Iterator[SamplingJob]:
        """Yields each job when its plan is closed or the job has failed. Keeps only open jobs in memory. Raises
        TooManyFailed."""
        numbered_jobs = enumerate(jobs)
        with ThreadPoolExecutor(SCORING_THREADS) as self._scoring_threads, ExitStack() as self._stack:
            try:
                while self._open_jobs(numbered_jobs):
                    self._look_up()
                    self._submit()
                    for pending, outcomes in self._process_events():
                        if pending.job_id in self._open:
                            pending.job.plan.add(pending.sample_range, outcomes)
                            self._want(pending.job_id, -pending.sample_range.count)
                            self._request_samples(pending.job_id, pending.job)
                    yield from self._finished_jobs()
                for scheduler in self._schedulers:
                    scheduler.close()
            finally:
                self._store.release()

    def run_in_order(self, jobs: Iterable[tuple[T, SamplingJob]]) -> Iterator[tuple[T, SamplingJob]]:
        """As `run`, but yields the jobs in their order, each with what came with it. At most MAX_LEAD are in memory."""
        waiting, done = deque[tuple[T, SamplingJob]](), set[SamplingJob]()

        def drawn() -> Iterator[SamplingJob]:
            for item, job in jobs:
                waiting.append((item, job))
                yield job

        for job in self.run(drawn()):
            done.add(job)
            while waiting and waiting[0][1] in done:
                done.remove(waiting[0][1])
                yield waiting.popleft()

    def _open_jobs(self, numbered_jobs: Iterator[tuple[int, SamplingJob]]) -> bool:
        """Opens as many jobs as can fill the engines, and none that lies MAX_LEAD behind the oldest open one. False
        when all jobs are done."""
        while self._has_room() and (numbered := next(numbered_jobs, None)):
            job_id, job = numbered
            self._opened = job_id + 1
            self._open[job_id] = job
            self._request_samples(job_id, job)
        return bool(self._open)

    def _has_room(self) -> bool:
        oldest = next(iter(self._open), self._opened)
        is_short = len(self._open) < MIN_OPEN_JOBS or self._wanted_in_all < self._slots
        return is_short and self._opened - oldest < MAX_LEAD

    def _want(self, job_id: int, completions: int) -> None:
        self._wanted[job_id] = self._wanted.get(job_id, 0) + completions
        self._wanted_in_all += completions

    def _request_samples(self, job_id: int, job: SamplingJob) -> None:
        self._changed.append(job_id)
        for sample_range in job.plan.next_ranges():
            scheduler = self._schedulers[job.scheduler_index(sample_range.prefix)]
            prompt = job.prompt(sample_range.prefix)
            request = Request(prompt, job.sampling, sample_range.count, job.stop, job.images)
            key = completion_key(scheduler.model, request, self._purpose, self._seed)
            self._to_look_up.append(PendingRequest(job_id, job, sample_range, scheduler, request, key))
            self._want(job_id, sample_range.count)

    def _finished_jobs(self) -> Iterator[SamplingJob]:
        changed, self._changed = self._changed, []
        for job_id in changed:
            job = self._open.get(job_id)
            if job and (job.failure or not job.plan.is_open):
                del self._open[job_id]
                self._wanted_in_all -= self._wanted.pop(job_id, 0)
                for scheduler in self._schedulers:
                    scheduler.finish_job(job_id)
                self._progress(1, 0)
                if job.failure and self._failures:
                    self._failures.add(job.failure.kind, job.failure.reason)
                yield job

    def _look_up(self) -> None:
        """Looks up pending requests: those fully stored are scored, the others queued."""
        if self._parked and time.monotonic() > self._next_lookup:
            self._unpark(list(self._parked))
        requests, self._to_look_up = [pending for pending in self._to_look_up if pending.job_id in self._open], []
        stored = self._store.find(list({pending.key for pending in requests})) if requests else {}
        for pending in requests:
            pending.completions = pending.select(stored[pending.key])
            if pending.missing:
                pending.scheduler.enqueue(pending)
            else:
                pending.scheduler.account_reused(pending, self._mark_accounted(pending))
                self._score(pending)

    def _mark_accounted(self, pending: PendingRequest) -> list[Completion]:
        """Marks the request's completions as counted; returns those that were not before. Traces of one problem, which
        share samples, come one after another, so recent keys suffice."""
        name, end = hash(pending.key), pending.sample_range.first + len(pending.completions)
        counted = self._counted.pop(name, 0)
        self._counted[name] = max(counted, end)
        if len(self._counted) > MAX_COUNTED_KEYS:
            del self._counted[next(iter(self._counted))]
        return pending.completions[max(0, counted - pending.sample_range.first) :]

    def _submit(self) -> None:
        """Fills the engines' free slots with queued requests that this run can claim."""
        for scheduler in self._schedulers:
            for pending in self._claim(
                list(scheduler.next_batch(self._stack, self._events.put, self._open.__contains__))
            ):
                self._request_ids += 1
                self._in_flight[self._request_ids] = pending
                scheduler.submit(self._request_ids, pending)

    def _claim(self, requests: Sequence[PendingRequest]) -> list[PendingRequest]:
        """The requests that this run samples. The others are parked, or scored if they were stored meanwhile."""
        keys = list({pending.key for pending in requests})
        granted = self._store.claim(keys) if keys else set()
        stored = self._store.find(list(granted)) if granted else {}
        busy = {pending.key for pending in self._in_flight.values()}
        granted_requests: list[PendingRequest] = []
        for pending in requests:
            if pending.key not in granted or pending.key in busy:
                self._park(pending)
                continue
            pending.completions = pending.select(stored[pending.key])
            pending.scheduler.account_reused(pending, self._mark_accounted(pending))
            if pending.missing:
                busy.add(pending.key)
                granted_requests.append(pending)
            else:
                self._score(pending)
        return granted_requests

    def _process_events(self) -> list[tuple[PendingRequest, Outcomes]]:
        """Waits for events and commits finished completions. Returns scored requests with their outcomes."""
        events = self._next_events()
        finished = [event for event in events if isinstance(event, Finished)]
        if finished:
            self._commit(finished)
        for event in events:
            if isinstance(event, FailedRequest):
                pending = self._release(event.request_id)
                pending.job.failure = event
                self._changed.append(pending.job_id)
                self._unpark([pending.key])
            elif isinstance(event, BaseException):
                raise event
        scored = [event for event in events if isinstance(event, _ScoredRequest)]
        self._being_scored -= len(scored)
        return [(event.pending, event.outcomes) for event in scored]

    def _next_events(self) -> list[Finished | FailedRequest | BaseException | _ScoredRequest]:
        has_work = self._in_flight or self._being_scored
        if not (has_work or self._parked):
            return []
        events = []
        with suppress(Empty):
            events.append(self._events.get(timeout=POLL_INTERVAL if self._parked or self._in_flight else None))
            deadline = time.monotonic() + BATCH_WINDOW
            while (remaining := deadline - time.monotonic()) > 0:
                events.append(self._events.get(timeout=remaining))
        self._renew_claims()
        return events

    def _commit(self, finished: Sequence[Finished]) -> None:
        """Stores completions in one transaction, then scores them."""
        requests = [self._release(one.request_id) for one in finished]
        rows = [
            StoredCompletion(pending.key, sample, pending.scheduler.model, self._purpose, completion)
            for pending, one in zip(requests, finished, strict=True)
            for sample, completion in enumerate(
                one.completions, start=pending.sample_range.first + len(pending.completions)
            )
        ]
        if not self._store.commit(rows):
            self._to_look_up += requests  # another run committed some first; the committed ones count
            return
        for pending, one in zip(requests, finished, strict=True):
            pending.completions += one.completions
            lengths = [len(completion.token_ids) for completion in one.completions]
            pending.scheduler.account_sampled(pending, lengths)
            self._mark_accounted(pending)
            self._progress(0, sum(lengths))
            self._score(pending)
        self._unpark([pending.key for pending in requests])

    def _release(self, request_id: int) -> PendingRequest:
        """Removes and returns the request in flight under `request_id`, and frees its slots."""
        pending = self._in_flight.pop(request_id)
        pending.scheduler.release(pending)
        return pending

    def _score(self, pending: PendingRequest) -> None:
        self._being_scored += 1
        task = self._scoring_threads.submit(pending.job.score, pending.completions)
        task.add_done_callback(
            lambda done: self._events.put(done.exception() or _ScoredRequest(pending, done.result()))
        )

    def _park(self, pending: PendingRequest) -> None:
        self._parked[pending.key].append(pending)
        self._next_lookup = time.monotonic() + POLL_INTERVAL

    def _unpark(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._to_look_up += self._parked.pop(key, [])

    def _renew_claims(self) -> None:
        now = time.monotonic()
        if self._in_flight and now > self._next_renewal:
            self._next_renewal = now + CLAIM_SECONDS / 4
            self._store.claim(list({pending.key for pending in self._in_flight.values()}))
