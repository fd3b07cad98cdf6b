"""Requests on their way to one endpoint or several, and back whatever happens to an endpoint.

Knows: HTTP, vLLM's completions, how endpoints fail. Must not know: stores, plans, who starts an endpoint.

- Requests of one trace go to one endpoint, where its prefixes are cached; they move when it is gone, or when it is full
  while another has half of its seats free (it is slow, or the other is back).
- What may pass (a dropped connection, 429, 5xx, a reply that is broken) is tried again, later each time and not for
  ever; then the request is set aside.
- An endpoint that is lost is revived while the others go on. What was in flight on a server of our own is suspect: it
  comes back in halves, so that a request that kills the server each time ends up alone, and is refused.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Annotated, Any, NoReturn, Protocol, Self, TypeVar

import aiohttp
import httpx
from pydantic import BaseModel, Field, ValidationError

from conf.errors import ReadableError
from models.inference.engine import Completion, Failure, Finished, Refused, Request

MAX_TRIES = 5
"""Replies that may fail, one after another, before a request is refused."""
MAX_TIMEOUTS = 2
"""How often a reply is waited for in vain: each time takes as long as the longest completion."""
MAX_LOSSES = 3
"""Foreign endpoints that may be lost under a request before it is refused."""
MAX_PINNED = 10_000
"""Traces whose endpoint is remembered."""
SCORED_AT_ONCE = 16
"""Texts whose log-probs are asked for at one time; each reply holds one entry per token."""
RETRY_DELAY = 0.25
"""Seconds before the second try; doubled, and spread at random, for each further one."""
IDLE_CONNECTION = 2.0
"""Seconds that an idle connection is kept: less than any server does, else it may be closed under a request."""
HEALTH = 5.0
"""Seconds within which a server that is well says so."""
METRICS = 60.0
"""Seconds within which a server tells its counts, busy as it may be."""
CONNECT = 30.0
"""Seconds within which a server takes a connection."""
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A machine that is gone without a word is found out within two minutes, not when a request's time is over."""
ABORTED = ("abort", "error")
"""How vLLM ends a completion that it gave up for reasons of its own."""
T = TypeVar("T")
Timeouts = Callable[[int], float]
"""From the tokens that a request may draw to the seconds within which it must be answered."""
TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class ServerFailed(ReadableError):
    """A server ended or did not get ready, and cannot be had again."""


class Endpoint(Protocol):
    """Where a model is served."""

    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def name(self) -> str:
        """What the model is called there."""
        ...

    @property
    def max_concurrency(self) -> int:
        """Completions that it takes at once."""
        ...

    @property
    def is_ours(self) -> bool:
        """Whether we started it, so that nobody else's requests can have ended it."""
        ...

    def is_serving(self) -> bool:
        """Whether it can be reached. Raises ServerFailed when it serves another model."""
        ...

    def restart(self, given_up: threading.Event) -> None:
        """Blocks until it serves again; may return once it is `given_up`. Raises ServerFailed when it will not."""
        ...


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text as a model reads it."""

    ticket: int
    log_probs: list[float]
    """Of each token but the first, given those before it."""


@dataclass(eq=False)
class InFlightRequest:
    """A request under way."""

    ticket: int
    affinity_key: int
    count: int
    """Seats that it takes."""
    body: dict[str, Any]
    read: Callable[[Reply], Finished | ScoredText]
    """Makes something of a reply. Raises _Refusal or _TryAgain where it is not as it must be."""
    losses: int = 0
    """Endpoints that were lost under it."""
    is_over: bool = False
    """Whether it was served or refused."""
    is_poison: bool = False
    """Whether a server ended each time it was served there alone."""


class _EndpointLost(Exception):
    """The endpoint is gone, and with it every errand that it had."""


class _Refusal(Exception):
    """No further try would help."""

    def __init__(self, kind: Failure, reason: str):
        super().__init__(reason)
        self.kind = kind


class _Retryable(_Refusal):
    """Another try may help."""


class _LogProb(BaseModel):
    logprob: float


class _Choice(BaseModel):
    index: int = 0
    token_ids: tuple[TokenId, ...] | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[dict[str, _LogProb] | None] | None = None


class Reply(BaseModel):
    """What is read of a completion's reply."""

    model: str
    choices: list[_Choice]


class EndpointState:
    """One endpoint as requests see it: its seats, who has one, and who may try for one."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.in_flight: set[InFlightRequest] = set()
        self.down = asyncio.Event()
        """Set when the endpoint is lost; each of its lives has an event of its own."""
        self._quarantined: list[set[InFlightRequest]] = []
        """Groups that are served alone, one after another, the last one first."""

    @property
    def is_up(self) -> bool:
        return not self.down.is_set()

    def load(self) -> float:
        return self._running() / self.endpoint.max_concurrency

    def _running(self) -> int:
        return sum(request.count for request in self.in_flight)

    def has_room(self, request: InFlightRequest) -> bool:
        """An errand that is larger than all seats is served alone."""
        if not self.is_up or (self._quarantined and request not in self._quarantined[-1]):
            return False
        return not self.in_flight or self._running() + request.count <= self.endpoint.max_concurrency

    def discard(self, request: InFlightRequest) -> None:
        """It was served, or refused: no suspect any more, nor when the server that was lost meanwhile is back."""
        request.is_over = True
        for group in self._quarantined:
            group.discard(request)
        while self._quarantined and not self._quarantined[-1]:
            self._quarantined.pop()

    def mark_up(self, quarantined: set[InFlightRequest]) -> None:
        """Serves again, `suspects` first and in halves; one that was alone before and is again is the culprit."""
        quarantined = {request for request in quarantined if not request.is_over}
        if len(quarantined) == 1 and quarantined in self._quarantined:
            for request in quarantined:
                request.is_poison = True
                self.discard(request)
        elif quarantined:
            ordered = sorted(quarantined, key=lambda request: request.ticket)
            half = len(ordered) // 2
            self._quarantined = [group for group in self._quarantined if not group & quarantined]
            self._quarantined += [set(part) for part in (ordered[half:], ordered[:half]) if part]
        self.down = asyncio.Event()


class Dispatcher:
    """A `Session` over `endpoints`, which all serve one model. Use as a context manager: leaving it gives up what is
    under way."""

    def __init__(self, endpoints: Sequence[Endpoint], timeout_for: Timeouts, deliver: Callable[[Any], None]):
        """`deliver` hears what `Deliver` says, and Scored of what was given to `score`."""
        self._endpoints, self._timeout_for, self._deliver = endpoints, timeout_for, deliver
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._pins: OrderedDict[int, EndpointState] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._given_up = threading.Event()

    def __enter__(self) -> Self:
        serving = [endpoint.is_serving() for endpoint in self._endpoints]
        self._thread.start()
        self._run(self._open(serving)).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._run(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, ticket: int, request: Request, affinity_key: int) -> None:
        """See `Session.submit`."""
        body = {"prompt": request.prompt_ids, "n": request.count, "return_token_ids": True, **request.sampling.request}
        if request.stop:
            # A text to stop at may be a token that the tokenizer calls special, as </think> is to some.
            body |= {"stop": request.stop, "include_stop_str_in_output": True, "skip_special_tokens": False}
        self._send(InFlightRequest(ticket, affinity_key, request.count, body, partial(read_finished, ticket, request)))

    def score(self, ticket: int, text: tuple[int, ...]) -> None:
        """Delivers what the model thinks of `text` as Scored."""
        body = {"prompt": text, "max_tokens": 1, "prompt_logprobs": 0}
        self._send(InFlightRequest(ticket, ticket, 1, body, partial(read_scored, ticket, text)))

    def _send(self, request: InFlightRequest) -> None:
        self._loop.call_soon_threadsafe(self._start, self._serve(request))

    def _run(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, serving: Sequence[bool]) -> None:
        slots = sum(endpoint.max_concurrency for endpoint in self._endpoints)
        # httpx looks through all its connections for each request: with hundreds of them that is most of our time.
        connector = aiohttp.TCPConnector(limit=slots, keepalive_timeout=IDLE_CONNECTION, socket_factory=_watched_socket)
        self._client = aiohttp.ClientSession(connector=connector)
        self._states = [EndpointState(endpoint) for endpoint in self._endpoints]
        self._changed = asyncio.Condition()
        for state, is_serving in zip(list(self._states), serving, strict=True):
            if not is_serving:
                self._mark_down(state)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()
        await self._loop.shutdown_default_executor()  # a server that is being started is waited for

    async def _serve(self, request: InFlightRequest) -> None:
        """Delivers what becomes of the errand, exactly once."""
        try:
            while True:
                with suppress(_EndpointLost):
                    self._deliver(await self._attempt(request))
                    return
        except _Refusal as refusal:
            self._deliver(Refused(request.ticket, str(refusal), refusal.kind))
        except Exception as error:
            self._deliver(error)

    async def _attempt(self, request: InFlightRequest) -> Finished | ScoredText:
        state, is_lost = await self._acquire_slot(request), False
        try:
            return await self._ask(state, request)
        except _EndpointLost:
            is_lost = True
            raise
        finally:
            async with self._changed:
                state.in_flight.discard(request)
                if not is_lost:
                    state.discard(request)
                self._changed.notify_all()

    async def _acquire_slot(self, request: InFlightRequest) -> EndpointState:
        """Waits for a seat. Raises _Refusal for a culprit."""
        async with self._changed:
            await self._changed.wait_for(lambda: request.is_poison or self._endpoint_for(request))
            if request.is_poison:
                raise _Refusal(Failure.SERVER_CRASH, "the server ended each time it was served")
            state = self._pins[request.affinity_key]
            state.in_flight.add(request)
            return state

    def _endpoint_for(self, request: InFlightRequest) -> EndpointState | None:
        """A lane with room, from now on the trace's own: the one it has; another one where that is down, or full while
        the other is half empty."""
        own = self._pins.get(request.affinity_key)
        state = min((state for state in self._states if state.has_room(request)), key=EndpointState.load, default=None)
        if own and own.is_up:
            state = own if own.has_room(request) else state if state and state.load() <= 0.5 else None
        if state:
            self._pins[request.affinity_key] = state
            self._pins.move_to_end(request.affinity_key)
            if len(self._pins) > MAX_PINNED:
                self._pins.popitem(last=False)
        return state

    async def _ask(self, state: EndpointState, request: InFlightRequest) -> Finished | ScoredText:
        """Asks until there is a good reply. Raises _Lost when the endpoint is gone, _Refusal when no try helped."""
        down, failures = state.down, list[_Retryable]()
        while len(failures) < MAX_TRIES and [one.kind for one in failures].count(Failure.TIMED_OUT) < MAX_TIMEOUTS:
            if failures:
                await asyncio.sleep(RETRY_DELAY * 2 ** len(failures) * random.uniform(0.5, 1))
            try:
                return await self._try(state, down, request)
            except _Retryable as failure:
                failures.append(failure)
        raise _Refusal(failures[-1].kind, f"{len(failures)} tries failed; the last: {failures[-1]}")

    async def _try(self, state: EndpointState, down: asyncio.Event, request: InFlightRequest) -> Finished | ScoredText:
        """Asks once. Raises as `_ask` does, and _TryAgain."""
        timeout = self._timeout_for(request.body["max_tokens"])
        try:
            status, text = await _until_lost(down, self._post(state.endpoint, request.body, timeout))
        except aiohttp.ClientError as error:
            if not await self._is_healthy(state.endpoint):
                self._raise_lost(state, down, request)
            raise _Retryable(Failure.SERVER_ERROR, repr(error)) from None
        except TimeoutError:
            raise _Retryable(Failure.TIMED_OUT, f"no reply within {timeout:g} s") from None
        if status == 429 or status >= 500:
            raise _Retryable(Failure.SERVER_ERROR, f"status {status}: {excerpt(text)}")
        if status == 404:  # it serves another model by now
            self._raise_lost(state, down, request)
        if status != 200:
            raise _Refusal(Failure.REFUSED, f"status {status}: {excerpt(text)}")
        try:
            reply = Reply.model_validate_json(text)
        except ValidationError:
            raise _Retryable(Failure.MALFORMED, f"no completion in its reply: {excerpt(text)!r}") from None
        if reply.model != state.endpoint.name:
            self._raise_lost(state, down, request)
        return request.read(reply)

    async def _post(self, endpoint: Endpoint, body: dict[str, Any], timeout: float) -> tuple[int, str]:
        url, body = f"{endpoint.url}/v1/completions", {"model": endpoint.name, **body}
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT)
        async with self._client.post(url, json=body, headers=endpoint.headers, timeout=limits) as reply:
            return reply.status, await reply.text(errors="replace")

    async def _is_healthy(self, endpoint: Endpoint) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=HEALTH)
            async with self._client.get(f"{endpoint.url}/health", headers=endpoint.headers, timeout=timeout) as reply:
                return reply.ok
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _mark_down(self, state: EndpointState) -> None:
        state.down.set()
        self._start(self._restart(state, set(state.in_flight)))

    def _raise_lost(self, state: EndpointState, down: asyncio.Event, request: InFlightRequest) -> NoReturn:
        """Takes the lane down and has it revived, once a life. Raises _Lost, or _Refusal for one that has outlived too
        many."""
        if not down.is_set():
            self._mark_down(state)
        request.losses += 1
        if request.losses >= MAX_LOSSES and not state.endpoint.is_ours:
            raise _Refusal(Failure.SERVER_CRASH, f"{request.losses} endpoints were lost while they served it")
        raise _EndpointLost

    async def _restart(self, state: EndpointState, seated: set[InFlightRequest]) -> None:
        try:
            await asyncio.to_thread(state.endpoint.restart, self._given_up)
        except Exception as error:
            self._states.remove(state)
            if not self._states:
                self._deliver(error)
            return
        async with self._changed:
            state.mark_up(seated if state.endpoint.is_ours else set())
            self._changed.notify_all()


async def _until_lost(lost: asyncio.Event, reply: Coroutine[Any, Any, T]) -> T:
    """The reply. Raises _Lost as soon as `lost` is set: an endpoint that is gone may never answer, and its next life
    must not hear what nobody has a seat for there."""
    if lost.is_set():
        reply.close()
        raise _EndpointLost
    asked, gone = asyncio.create_task(reply), asyncio.create_task(lost.wait())
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise _EndpointLost
        return asked.result()
    finally:
        asked.cancel()
        gone.cancel()


def excerpt(text: str) -> str:
    """The beginning of what a server said, in one line."""
    return " ".join(text[:1000].split())[:200]


def _watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that asks now and then whether the other side is still there."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS has not all of them
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def read_finished(ticket: int, request: Request, reply: Reply) -> Finished:
    """A reply as it must be: as many whole completions as were asked for. Raises _Refusal, _TryAgain."""
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    if broken := [choice.finish_reason for choice in choices if choice.finish_reason not in ("stop", "length")]:
        error = _Retryable if all(reason in ABORTED for reason in broken) else _Refusal
        raise error(Failure.ABORTED, f"a completion was broken off: {', '.join(map(str, broken))}")
    drawn = [(choice.token_ids, choice.finish_reason) for choice in choices if choice.token_ids is not None]
    if not len(choices) == len(drawn) == request.count:
        told = f"asked for {request.count} completions with token ids, got {len(drawn)}"
        raise _Refusal(Failure.MALFORMED, told)
    if any(len(token_ids) > request.sampling.max_tokens for token_ids, _ in drawn):
        told = f"a completion is longer than the {request.sampling.max_tokens} tokens asked for"
        raise _Refusal(Failure.MALFORMED, told)
    return Finished(ticket, tuple(Completion(token_ids, reason != "length") for token_ids, reason in drawn))


def read_scored(ticket: int, text: Sequence[int], reply: Reply) -> ScoredText:
    """Raises _Refusal for a reply without the log-probs of `text`."""
    try:
        return ScoredText(ticket, read_log_probs(text, reply))
    except (LookupError, TypeError, ValueError):
        raise _Refusal(Failure.MALFORMED, f"asked for {len(text) - 1} log-probs, got others") from None


def read_log_probs(text: Sequence[int], reply: Reply) -> list[float]:
    """Log-prob of each token of `text` but the first, given those before it."""
    entries: Any = reply.choices[0].prompt_logprobs
    return [entry[str(token)].logprob for token, entry in zip(text[1:], entries[1:], strict=True)]


def score_all(
    endpoints: Sequence[Endpoint], timeout_for: Timeouts, texts: Sequence[tuple[int, ...]]
) -> Iterator[list[float] | Refused]:
    """For each of `texts`, in order, its log-probs. Raises ServerFailed."""
    events: SimpleQueue[ScoredText | Refused | BaseException] = SimpleQueue()
    found: dict[int, list[float] | Refused] = {}
    with Dispatcher(endpoints, timeout_for, events.put) as dispatcher:
        for ticket, text in enumerate(texts[:SCORED_AT_ONCE]):
            dispatcher.score(ticket, text)
        for wanted in range(len(texts)):
            while wanted not in found:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                found[event.ticket] = event.log_probs if isinstance(event, ScoredText) else event
            if (ticket := wanted + SCORED_AT_ONCE) < len(texts):
                dispatcher.score(ticket, texts[ticket])
            yield found.pop(wanted)


def cache_of(server: Endpoint) -> int | None:
    """Tokens that the cache of `server` holds; None where it does not say."""
    told = re.search(r"^vllm:cache_config_info\{(.*)\}", _metrics(server), re.MULTILINE)
    known = dict(re.findall(r'(\w+)="(\d+)"', told[1])) if told else {}
    if not {"block_size", "num_gpu_blocks"} <= known.keys():
        return None
    return int(known["block_size"]) * int(known["num_gpu_blocks"])


def computed_by(server: Endpoint) -> int:
    """Prompt tokens that `server` looked for in its cache and did not find, each sample of a request by itself. Its
    replies do not say that: with several samples they tell what the last of them found."""
    text = _metrics(server)

    def counter(name: str) -> float:
        return sum(map(float, re.findall(rf"^vllm:{name}_total{{[^}}]*}} (\S+)$", text, re.MULTILINE)))

    return round(counter("prefix_cache_queries") - counter("prefix_cache_hits"))


def _metrics(server: Endpoint) -> str:
    return httpx.get(f"{server.url}/metrics", headers=server.headers, timeout=METRICS).text
