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
from reasoning.sampling_plans import Ask, Outcomes, Plan


@dataclass(eq=False)
class Job:
    """A plan about one trace, and what carrying it out takes."""

    plan: Plan
    prompt: Callable[[int], tuple[int, ...]]
    """Token ids of a prefix and what opens its rollouts, by the prefix's index."""
    sampling: Sampling
    judge: Callable[[Sequence[Completion]], Outcomes]
    """Called in any thread."""
    room: int
    """Tokens of its longest prompt."""
    desk: Callable[[int], int] = lambda prefix: 0
    """Which desk a prefix is drawn at, by the prefix's index."""
    stop: tuple[str, ...] = ()
    """As in `Request`."""
    refused: Refused | None = None
    """One of its requests that no engine could serve; its plan then stays open."""


@dataclass(eq=False)
class Draw:
    """One ask on its way: looked up, claimed, drawn, committed, judged."""

    number: int
    """Of its job, in the order in which jobs were given."""
    job: Job
    ask: Ask
    desk: EngineScheduler
    request: Request
    key: bytes
    held: list[Completion] = field(default_factory=list)
    """The first of the ask's samples, as far as they are there."""

    @property
    def missing(self) -> int:
        return self.ask.count - len(self.held)


class Clock:
    """How an engine's time passed from its first request to its last reply; see `Usage` for the names."""

    def __init__(self, seats: int, now: Callable[[], float] = time.monotonic):
        self._half, self._now = seats / 2, now
        self._busy = self._idle = self._tail = 0.0
        self._taken = 0
        self._since: float | None = None

    def turn(self, taken: int) -> None:
        """From now on so many of its seats are taken."""
        now = self._now()
        if self._since is not None:
            spent = now - self._since
            self._busy, self._idle = (
                (self._busy + spent, self._idle) if self._taken else (self._busy, self._idle + spent)
            )
            self._tail = 0.0 if self._taken >= self._half else self._tail + spent
        self._taken, self._since = taken, now

    @property
    def usage(self) -> Usage:
        return Usage(engine_busy=self._busy, engine_idle=self._idle, engine_tail=self._tail)


def cost(model: Checkpoint, prompt: int, lengths: Sequence[int], cached: int) -> Usage:
    """Of completions of `lengths` tokens, each after `prompt` tokens of which `cached` were not computed."""
    flops = sum(model.shape.forward_flops(prompt, cached, length) for length in lengths)
    return Usage(
        prompt_tokens=prompt * len(lengths), cached_prompt_tokens=cached * len(lengths),
        generated_tokens=sum(lengths), flops=flops,
    )  # fmt: skip


class EngineScheduler:
    """An engine that serves one model; `usage` accounts for what was drawn, and is whole once the desk is left."""

    def __init__(self, engine: Engine, model: Checkpoint):
        self.engine, self.model = engine, model
        self.usage = Usage()
        self._begun: dict[int, int] = {}
        """Room of the jobs that are being drawn for."""
        self._room_taken = 0
        """By all of them."""
        self._fresh: list[tuple[int, int]] = []
        """A heap of the jobs with draws to be begun, the longest first: its room, negative, and its number."""
        self._held_back: dict[int, list[Draw]] = defaultdict(list)
        """Their draws."""
        self._met: dict[int, set[int]] = defaultdict(set)
        """By open job: the blocks that an engine would have cached, had it drawn what the store held."""
        self._waiting: list[tuple[int, int, int, int, Draw]] = []
        """A heap of the draws of begun jobs: the longest job first, its shortest prefix first."""
        self._order = count()
        self._taken = 0
        """Seats of the engine that are taken."""
        self._session: Session | None = None
        self._room: int | None = None
        """Tokens that the engine's cache holds, once a session is open."""
        self._computed = 0
        """Prompt tokens that the engine had computed before."""
        self._samples = 0
        """Completions that were drawn here."""
        self._clock = Clock(engine.seats)

    def take(self, draw: Draw) -> None:
        """Puts a draw in line."""
        if draw.number in self._begun:
            self._wait(draw)
            return
        if draw.number not in self._held_back:
            heapq.heappush(self._fresh, (-draw.job.room, draw.number))
        self._held_back[draw.number].append(draw)

    def choose(self, stack: ExitStack, deliver: Deliver, is_open: Callable[[int], bool]) -> Iterator[Draw]:
        """The draws that fit its free seats, off the line; at least one where nothing is under way. Draws of jobs that
        are not open are forgotten. The session that they need lives as long as `stack`."""
        if self._fresh and self._session is None:
            self._session = stack.enter_context(self.engine.session(self.model, deliver))
            self._room, self._computed = self.engine.cache_tokens, self.engine.computed_prompt_tokens
        self._begin(is_open)
        seats, none_yet = self.engine.seats - self._taken, not self._taken
        while self._waiting:
            draw = self._waiting[0][-1]
            if draw.missing > seats and not none_yet:
                return
            heapq.heappop(self._waiting)
            if is_open(draw.number):
                seats, none_yet = seats - draw.missing, False
                yield draw

    def _wait(self, draw: Draw) -> None:
        heapq.heappush(self._waiting, (-draw.job.room, draw.number, draw.ask.prefix, next(self._order), draw))

    def _begin(self, is_open: Callable[[int], bool]) -> None:
        """Begins jobs while their prompts fit the engine's cache; always one, and one more where the engine has nothing
        to do: begun jobs may wait for another desk, and those that are begun there for this one."""
        while self._fresh:
            room, number = -self._fresh[0][0], self._fresh[0][1]
            is_at_work = self._taken or self._waiting
            if is_at_work and self._room is not None and self._room_taken + room > self._room:
                return
            heapq.heappop(self._fresh)
            draws = self._held_back.pop(number)
            if is_open(number):
                self._begun[number] = room
                self._room_taken += room
                for draw in draws:
                    self._wait(draw)

    def end(self, number: int) -> None:
        """A job is closed: its room is free."""
        self._room_taken -= self._begun.pop(number, 0)
        self._met.pop(number, None)

    def send(self, ticket: int, draw: Draw) -> None:
        assert self._session
        self._turn(draw.missing)
        self._session.submit(ticket, replace(draw.request, count=draw.missing), draw.number)

    def land(self, draw: Draw) -> None:
        """Its seats are free."""
        self._turn(-draw.missing)

    def _turn(self, seats: int) -> None:
        self._taken += seats
        self._clock.turn(self._taken)

    def count_drawn(self, draw: Draw, lengths: Sequence[int]) -> None:
        """Completions of so many tokens were drawn."""
        self._samples += len(lengths)
        if draw.number in self._begun:
            self._met[draw.number].update(self._blocks(draw.request.prompt_ids))
        self.usage += cost(self.model, len(draw.request.prompt_ids), lengths, self._shared(draw))

    def count_reused(self, draw: Draw, unpriced: Sequence[Completion]) -> None:
        """What a draw holds came from the store. What is not accounted for yet has the price of drawing it: the first
        finds in the cache what was there of the same job, the others all that can be shared."""
        if not draw.held:
            return
        prompt, shared, met = draw.request.prompt_ids, self._shared(draw), self._met[draw.number]
        names = list(self._blocks(prompt))
        found = self.engine.block * len(list(takewhile(met.__contains__, names)))
        caches, shape = chain([min(found, shared)], repeat(shared)), self.model.shape
        priced = zip(unpriced, caches, strict=False)
        flops = sum(shape.forward_flops(len(prompt), cached, len(one.token_ids)) for one, cached in priced)
        self.usage += Usage(reused_completions=len(draw.held), reused_flops=flops)
        met.update(names)
        before, rest = names[-1] if names else 0, prompt[len(names) * self.engine.block :]
        for completion in draw.held:
            met.update(self._blocks(rest + completion.token_ids[:-1], before))

    def _blocks(self, token_ids: tuple[int, ...], name: int = 0) -> Iterator[int]:
        """Each whole block's name, which depends on all before it; `name` is that of what stands before the first."""
        size = self.engine.block
        for end in range(size, len(token_ids) + 1, size):
            name = hash((name, token_ids[end - size : end]))
            yield name

    def leave(self) -> None:
        """Nothing more will be drawn; its session is still open."""
        if self._session:
            self.usage += self._not_shared(self.engine.computed_prompt_tokens - self._computed)
        self.usage += self._clock.usage

    def _shared(self, draw: Draw) -> int:
        """Prompt tokens that a sample finds in the cache where another was there before: whole blocks, never the last
        token."""
        return (len(draw.request.prompt_ids) - 1) // self.engine.block * self.engine.block

    def _not_shared(self, computed: int) -> Usage:
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
