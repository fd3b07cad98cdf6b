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
from models.inference.rollout_store import CLAIM_SECONDS, Purpose, RolloutStore, Stored, identity
from models.inference.scheduler import EngineScheduler, Draw, Job
from reasoning.records import Usage
from reasoning.sampling_plans import AllValues, Outcomes

JUDGES = 4
"""Threads that judge completions; hard answers wait there for a process of their own."""
ADMITTED = 512
"""Jobs whose asks are looked up together."""
GATHER = 0.01
"""Seconds in which what happens is taken together: fewer transactions, and requests that reach the engine side by
side."""
REMEMBERED = 65_536
"""Keys of late, so that what several draws share is priced once."""
LOOK_AGAIN = 0.5
"""Seconds until a completion that another run is drawing is looked up again."""


@dataclass(frozen=True, slots=True)
class _Judged:
    draw: Draw
    outcomes: Outcomes


class TooManyFailed(ReadableError):
    """Without so many of its completions a step would come to another result."""


class Failures:
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


class Rollouts:
    """Carries out jobs at one desk or several; once all are done, `usage` accounts for them."""

    def __init__(
        self, store: RolloutStore, desks: Sequence[EngineScheduler], purpose: Purpose, seed: int,
        progress: Callable[[int, int], None] = lambda jobs, tokens: None, failures: Failures | None = None,
    ):  # fmt: skip
        """`failures` hears of each job that is refused, and may end the run; not given, all of them may be."""
        self._store, self._desks = store, desks
        self._purpose, self._seed, self._progress, self._failures = purpose, seed, progress, failures
        self._events: SimpleQueue[Finished | Refused | BaseException | _Judged] = SimpleQueue()
        self._open: dict[int, Job] = {}
        self._changed: list[int] = []
        """Jobs that may have been closed since this was last looked at."""
        self._unknown: list[Draw] = []
        """Draws not looked up yet."""
        self._parked: dict[bytes, list[Draw]] = defaultdict(list)
        """Draws whose key another run has claimed, or a like draw of this one."""
        self._priced: dict[int, int] = {}
        """How many samples of a key are accounted for; those of late, the oldest first."""
        self._in_flight: dict[int, Draw] = {}
        self._judging = 0
        self._tickets = 0
        self._look_again = self._renew = 0.0

    @property
    def usage(self) -> Usage:
        return sum((desk.usage for desk in self._desks), Usage())

    def draw(self, requests: Sequence[Request]) -> list[tuple[Completion, ...] | Refused]:
        """All completions of each request, in order, from the first desk; Refused where it cannot be served. Raises
        TooManyFailed."""
        plans = [AllValues(1, request.count) for request in requests]
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
        self.carry_out(jobs)
        return [job.refused or tuple(plan.outcomes[0]) for job, plan in zip(jobs, plans, strict=True)]  # type: ignore[misc]

    def carry_out(self, jobs: Iterable[Job]) -> None:
        """Closes the plans of all jobs but those that are refused. Raises TooManyFailed."""
        for _ in self.run(jobs):
            pass

    def run(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Each job when its plan is closed, or when it was refused. Holds only those that are open. Raises
        TooManyFailed."""
        source = enumerate(jobs)
        with ThreadPoolExecutor(JUDGES) as self._judges, ExitStack() as self._stack:
            try:
                while self._admit(source):
                    self._look_up()
                    self._submit()
                    for draw, outcomes in self._judged_ones():
                        if draw.number in self._open:
                            draw.job.plan.add(draw.ask, outcomes)
                            self._ask(draw.number, draw.job)
                    yield from self._closed_ones()
                for desk in self._desks:
                    desk.leave()
            finally:
                self._store.release()

    def _admit(self, source: Iterator[tuple[int, Job]]) -> bool:
        """Takes jobs while there is room to look them up. False when all is done."""
        while len(self._open) < ADMITTED and (numbered := next(source, None)):
            number, job = numbered
            self._open[number] = job
            self._ask(number, job)
        return bool(self._open)

    def _ask(self, number: int, job: Job) -> None:
        self._changed.append(number)
        for ask in job.plan.asks():
            desk = self._desks[job.desk(ask.prefix)]
            request = Request(job.prompt(ask.prefix), job.sampling, ask.count, job.stop)
            key = identity(desk.model, request, self._purpose, self._seed)
            self._unknown.append(Draw(number, job, ask, desk, request, key))

    def _closed_ones(self) -> Iterator[Job]:
        changed, self._changed = self._changed, []
        for number in changed:
            job = self._open.get(number)
            if job and (job.refused or not job.plan.is_open):
                del self._open[number]
                for desk in self._desks:
                    desk.end(number)
                self._progress(1, 0)
                if job.refused and self._failures:
                    self._failures.add(job.refused.kind, job.refused.reason)
                yield job

    def _look_up(self) -> None:
        """Sends on what the store holds in full to be judged, and the rest to be drawn."""
        if self._parked and time.monotonic() > self._look_again:
            self._unpark(list(self._parked))
        draws, self._unknown = [draw for draw in self._unknown if draw.number in self._open], []
        held = self._store.held(list({draw.key for draw in draws})) if draws else {}
        for draw in draws:
            draw.held = held[draw.key][draw.ask.first : draw.ask.first + draw.ask.count]
            if draw.missing:
                draw.desk.take(draw)
            else:
                draw.desk.count_reused(draw, self._account_for(draw))
                self._judge(draw)

    def _account_for(self, draw: Draw) -> list[Completion]:
        """From now on what it holds is accounted for; returns what was not before. Traces of one problem, which share
        some, come one after another."""
        name, end = hash(draw.key), draw.ask.first + len(draw.held)
        priced = self._priced.pop(name, 0)
        self._priced[name] = max(priced, end)
        if len(self._priced) > REMEMBERED:
            del self._priced[next(iter(self._priced))]
        return draw.held[max(0, priced - draw.ask.first) :]

    def _submit(self) -> None:
        """Fills the engines' seats with what is waiting, and may be drawn here and now."""
        for desk in self._desks:
            for draw in self._claimed(list(desk.choose(self._stack, self._events.put, self._open.__contains__))):
                self._tickets += 1
                self._in_flight[self._tickets] = draw
                desk.send(self._tickets, draw)

    def _claimed(self, draws: Sequence[Draw]) -> list[Draw]:
        """Those of `draws` that are to be drawn here; the others are parked, or judged if they were drawn meanwhile."""
        keys = list({draw.key for draw in draws})
        granted = self._store.claim(keys) if keys else set()
        held = self._store.held(list(granted)) if granted else {}
        busy = {draw.key for draw in self._in_flight.values()}
        mine: list[Draw] = []
        for draw in draws:
            if draw.key not in granted or draw.key in busy:
                self._park(draw)
                continue
            draw.held = held[draw.key][draw.ask.first : draw.ask.first + draw.ask.count]
            draw.desk.count_reused(draw, self._account_for(draw))
            if draw.missing:
                busy.add(draw.key)
                mine.append(draw)
            else:
                self._judge(draw)
        return mine

    def _judged_ones(self) -> list[tuple[Draw, Outcomes]]:
        """Waits for what happens next, takes all that has happened, and commits what has finished."""
        events = self._happened()
        finished = [event for event in events if isinstance(event, Finished)]
        if finished:
            self._commit(finished)
        for event in events:
            if isinstance(event, Refused):
                draw = self._land(event.ticket)
                draw.job.refused = event
                self._changed.append(draw.number)
                self._unpark([draw.key])
            elif isinstance(event, BaseException):
                raise event
        judged = [event for event in events if isinstance(event, _Judged)]
        self._judging -= len(judged)
        return [(event.draw, event.outcomes) for event in judged]

    def _happened(self) -> list[Finished | Refused | BaseException | _Judged]:
        under_way = self._in_flight or self._judging
        if not (under_way or self._parked):
            return []
        events = []
        with suppress(Empty):
            events.append(self._events.get(timeout=LOOK_AGAIN if self._parked or self._in_flight else None))
            until = time.monotonic() + GATHER
            while (left := until - time.monotonic()) > 0:
                events.append(self._events.get(timeout=left))
        self._renew_claims()
        return events

    def _commit(self, finished: Sequence[Finished]) -> None:
        """Stores completions in one transaction, then has them judged."""
        draws = [self._land(one.ticket) for one in finished]
        rows = [
            Stored(draw.key, sample, draw.desk.model, self._purpose, completion)
            for draw, one in zip(draws, finished, strict=True)
            for sample, completion in enumerate(one.completions, start=draw.ask.first + len(draw.held))
        ]
        if not self._store.commit(rows):
            self._unknown += draws  # another run was quicker with some: what was committed first counts
            return
        for draw, one in zip(draws, finished, strict=True):
            draw.held += one.completions
            lengths = [len(completion.token_ids) for completion in one.completions]
            draw.desk.count_drawn(draw, lengths)
            self._account_for(draw)
            self._progress(0, sum(lengths))
            self._judge(draw)
        self._unpark([draw.key for draw in draws])

    def _land(self, ticket: int) -> Draw:
        """The draw under `ticket`, no longer in flight."""
        draw = self._in_flight.pop(ticket)
        draw.desk.land(draw)
        return draw

    def _judge(self, draw: Draw) -> None:
        self._judging += 1
        task = self._judges.submit(draw.job.judge, draw.held)
        task.add_done_callback(lambda done: self._events.put(done.exception() or _Judged(draw, done.result())))

    def _park(self, draw: Draw) -> None:
        self._parked[draw.key].append(draw)
        self._look_again = time.monotonic() + LOOK_AGAIN

    def _unpark(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._unknown += self._parked.pop(key, [])

    def _renew_claims(self) -> None:
        now = time.monotonic()
        if self._in_flight and now > self._renew:
            self._renew = now + CLAIM_SECONDS / 4
            self._store.claim(list({draw.key for draw in self._in_flight.values()}))
