"""The rollout engine: plans in, decisions out, with the engines' batches kept full across traces.

Knows: plans, the rollout store, desks. Must not know: what a plan is for, who serves, in which order.

One thread asks, commits and decides. Sessions deliver into its queue, and completions are judged in threads of their
own, so that neither waits for the other. Where a plan needs two models, each has a desk: what one has said is in line
at the other's in the same turn of the loop.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from conf.errors import ReadableError
from models.inference.engine import Completion, Failure, Finished, Refused, Request
from models.inference.rollout_store import CLAIM_SECONDS, Purpose, RolloutStore, StoredCompletion, completion_key
from models.inference.scheduler import EngineScheduler, Job, PendingRequest
from reasoning.records import Usage
from reasoning.sampling_plans import FullEstimate, Outcomes

SCORING_THREADS = 4
"""Threads that judge completions; hard answers wait there for a process of their own."""
LOOKUP_JOBS = 512
"""Jobs whose asks are looked up together."""
BATCH_WINDOW = 0.01
"""Seconds in which what happens is taken together: fewer transactions, and requests that reach the engine side by
side."""
MAX_PRICED_KEYS = 65_536
"""Keys of late, so that what several draws share is priced once."""
POLL_INTERVAL = 0.5
"""Seconds until a completion that another run is drawing is looked up again."""


@dataclass(frozen=True, slots=True)
class _ScoredRequest:
    pending: PendingRequest
    outcomes: Outcomes


class TooManyFailed(ReadableError):
    """Without so many of its completions a step would come to another result."""


class FailureBudget:
    """What of a step's work failed, by reason: some of it may, since one bad row must not end a run."""

    def __init__(self, stage: str, total: int, share: float):
        self._stage, self._total, self._share = stage, total, share
        self._counts: Counter[Failure] = Counter()
        self._first: dict[Failure, str] = {}

    def add(self, kind: Failure, reason: str) -> None:
        """Raises TooManyFailed above the share, but not for a single one."""
        self._counts[kind] += 1
        self._first.setdefault(kind, reason)
        if self._counts.total() > max(1, self._share * self._total):
            raise TooManyFailed(self._told())

    def _told(self) -> str:
        reasons = (f"{count} {kind} ({self._first[kind]})" for kind, count in self._counts.most_common())
        return (
            f"{self._stage}: {self._counts.total()} of {self._total} failed, more than engine.max_failed_fraction "
            f"({self._share:g}) allows: {'; '.join(reasons)}; mend that, or raise the share, and run again: what is "
            f"finished is kept"
        )


class RolloutExecutor:
    """Carries out jobs at one desk or several; once all are done, `usage` accounts for them."""

    def __init__(
        self,
        store: RolloutStore,
        schedulers: Sequence[EngineScheduler],
        purpose: Purpose,
        seed: int,
        progress: Callable[[int, int], None] = lambda jobs, tokens: None,
        failures: FailureBudget | None = None,
    ):
        """`failures` hears of each job that is refused, and may end the run; not given, all of them may be."""
        self._store, self._schedulers = store, schedulers
        self._purpose, self._seed, self._progress, self._failures = purpose, seed, progress, failures
        self._events: SimpleQueue[Finished | Refused | BaseException | _ScoredRequest] = SimpleQueue()
        self._open: dict[int, Job] = {}
        self._changed: list[int] = []
        """Jobs that may have been closed since this was last looked at."""
        self._unknown: list[PendingRequest] = []
        """Draws not looked up yet."""
        self._parked: dict[bytes, list[PendingRequest]] = defaultdict(list)
        """Draws whose key another run has claimed, or a like draw of this one."""
        self._priced: dict[int, int] = {}
        """How many samples of a key are accounted for; those of late, the oldest first."""
        self._in_flight: dict[int, PendingRequest] = {}
        self._being_scored = 0
        self._tickets = 0
        self._look_again = self._renew = 0.0

    @property
    def usage(self) -> Usage:
        return sum((scheduler.usage for scheduler in self._schedulers), Usage())

    def sample(self, requests: Sequence[Request]) -> list[tuple[Completion, ...] | Refused]:
        """All completions of each request, in order, from the first desk; Refused where it cannot be served. Raises
        TooManyFailed."""
        plans = [FullEstimate(1, request.count) for request in requests]
        jobs = [
            Job(
                plan,
                lambda _, ids=request.prompt_ids: ids,
                request.sampling,
                tuple,
                len(request.prompt_ids),
                stop=request.stop,
            )
            for plan, request in zip(plans, requests, strict=True)
        ]
        self.run_jobs(jobs)
        return [job.refused or tuple(plan.outcomes[0]) for job, plan in zip(jobs, plans, strict=True)]  # type: ignore[misc]

    def run_jobs(self, jobs: Iterable[Job]) -> None:
        """Closes the plans of all jobs but those that are refused. Raises TooManyFailed."""
        for _ in self.run(jobs):
            pass

    def run(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Each job when its plan is closed, or when it was refused. Holds only those that are open. Raises
        TooManyFailed."""
        source = enumerate(jobs)
        with ThreadPoolExecutor(SCORING_THREADS) as self._scoring_threads, ExitStack() as self._stack:
            try:
                while self._admit(source):
                    self._look_up()
                    self._submit()
                    for pending, outcomes in self._process_events():
                        if pending.number in self._open:
                            pending.job.plan.add(pending.ask, outcomes)
                            self._ask(pending.number, pending.job)
                    yield from self._finished_jobs()
                for scheduler in self._schedulers:
                    scheduler.close()
            finally:
                self._store.release()

    def _admit(self, source: Iterator[tuple[int, Job]]) -> bool:
        """Takes jobs while there is room to look them up. False when all is done."""
        while len(self._open) < LOOKUP_JOBS and (numbered := next(source, None)):
            number, job = numbered
            self._open[number] = job
            self._ask(number, job)
        return bool(self._open)

    def _ask(self, number: int, job: Job) -> None:
        self._changed.append(number)
        for ask in job.plan.next_ranges():
            scheduler = self._schedulers[job.scheduler_index(ask.prefix)]
            request = Request(job.prompt(ask.prefix), job.sampling, ask.count, job.stop)
            key = completion_key(scheduler.model, request, self._purpose, self._seed)
            self._unknown.append(PendingRequest(number, job, ask, scheduler, request, key))

    def _finished_jobs(self) -> Iterator[Job]:
        changed, self._changed = self._changed, []
        for number in changed:
            job = self._open.get(number)
            if job and (job.refused or not job.plan.is_open):
                del self._open[number]
                for scheduler in self._schedulers:
                    scheduler.finish_job(number)
                self._progress(1, 0)
                if job.refused and self._failures:
                    self._failures.add(job.refused.kind, job.refused.reason)
                yield job

    def _look_up(self) -> None:
        """Sends on what the store holds in full to be judged, and the rest to be drawn."""
        if self._parked and time.monotonic() > self._look_again:
            self._unpark(list(self._parked))
        requests, self._unknown = [pending for pending in self._unknown if pending.number in self._open], []
        held = self._store.find(list({pending.key for pending in requests})) if requests else {}
        for pending in requests:
            pending.completions = held[pending.key][pending.ask.first : pending.ask.first + pending.ask.count]
            if pending.missing:
                pending.scheduler.enqueue(pending)
            else:
                pending.scheduler.account_reused(pending, self._mark_accounted(pending))
                self._score(pending)

    def _mark_accounted(self, pending: PendingRequest) -> list[Completion]:
        """From now on what it holds is accounted for; returns what was not before. Traces of one problem, which share
        some, come one after another."""
        name, end = hash(pending.key), pending.ask.first + len(pending.completions)
        priced = self._priced.pop(name, 0)
        self._priced[name] = max(priced, end)
        if len(self._priced) > MAX_PRICED_KEYS:
            del self._priced[next(iter(self._priced))]
        return pending.completions[max(0, priced - pending.ask.first) :]

    def _submit(self) -> None:
        """Fills the engines' seats with what is waiting, and may be drawn here and now."""
        for scheduler in self._schedulers:
            for pending in self._claim(
                list(scheduler.next_batch(self._stack, self._events.put, self._open.__contains__))
            ):
                self._tickets += 1
                self._in_flight[self._tickets] = pending
                scheduler.submit(self._tickets, pending)

    def _claim(self, requests: Sequence[PendingRequest]) -> list[PendingRequest]:
        """Those of `draws` that are to be drawn here; the others are parked, or judged if they were drawn meanwhile."""
        keys = list({pending.key for pending in requests})
        granted = self._store.claim(keys) if keys else set()
        held = self._store.find(list(granted)) if granted else {}
        busy = {pending.key for pending in self._in_flight.values()}
        mine: list[PendingRequest] = []
        for pending in requests:
            if pending.key not in granted or pending.key in busy:
                self._park(pending)
                continue
            pending.completions = held[pending.key][pending.ask.first : pending.ask.first + pending.ask.count]
            pending.scheduler.account_reused(pending, self._mark_accounted(pending))
            if pending.missing:
                busy.add(pending.key)
                mine.append(pending)
            else:
                self._score(pending)
        return mine

    def _process_events(self) -> list[tuple[PendingRequest, Outcomes]]:
        """Waits for what happens next, takes all that has happened, and commits what has finished."""
        events = self._next_events()
        finished = [event for event in events if isinstance(event, Finished)]
        if finished:
            self._commit(finished)
        for event in events:
            if isinstance(event, Refused):
                pending = self._release(event.ticket)
                pending.job.refused = event
                self._changed.append(pending.number)
                self._unpark([pending.key])
            elif isinstance(event, BaseException):
                raise event
        judged = [event for event in events if isinstance(event, _ScoredRequest)]
        self._being_scored -= len(judged)
        return [(event.pending, event.outcomes) for event in judged]

    def _next_events(self) -> list[Finished | Refused | BaseException | _ScoredRequest]:
        under_way = self._in_flight or self._being_scored
        if not (under_way or self._parked):
            return []
        events = []
        with suppress(Empty):
            events.append(self._events.get(timeout=POLL_INTERVAL if self._parked or self._in_flight else None))
            until = time.monotonic() + BATCH_WINDOW
            while (left := until - time.monotonic()) > 0:
                events.append(self._events.get(timeout=left))
        self._renew_claims()
        return events

    def _commit(self, finished: Sequence[Finished]) -> None:
        """Stores completions in one transaction, then has them judged."""
        requests = [self._release(one.ticket) for one in finished]
        rows = [
            StoredCompletion(pending.key, sample, pending.scheduler.model, self._purpose, completion)
            for pending, one in zip(requests, finished, strict=True)
            for sample, completion in enumerate(one.completions, start=pending.ask.first + len(pending.completions))
        ]
        if not self._store.commit(rows):
            self._unknown += requests  # another run was quicker with some: what was committed first counts
            return
        for pending, one in zip(requests, finished, strict=True):
            pending.completions += one.completions
            lengths = [len(completion.token_ids) for completion in one.completions]
            pending.scheduler.account_sampled(pending, lengths)
            self._mark_accounted(pending)
            self._progress(0, sum(lengths))
            self._score(pending)
        self._unpark([pending.key for pending in requests])

    def _release(self, ticket: int) -> PendingRequest:
        """The draw under `ticket`, no longer in flight."""
        pending = self._in_flight.pop(ticket)
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
        self._look_again = time.monotonic() + POLL_INTERVAL

    def _unpark(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._unknown += self._parked.pop(key, [])

    def _renew_claims(self) -> None:
        now = time.monotonic()
        if self._in_flight and now > self._renew:
            self._renew = now + CLAIM_SECONDS / 4
            self._store.claim(list({pending.key for pending in self._in_flight.values()}))
