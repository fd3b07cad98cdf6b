"""Dispatches requests to one or more endpoints and recovers from endpoint failures.

- Requests of one trace go to one endpoint, for its prefix cache. They move when that endpoint is down, or when it is
  full while another has half of its slots free.
- Transient failures (a dropped connection, 429, 5xx, a malformed reply) are retried with exponential backoff, up to a
  limit; then the request has failed.
- A lost endpoint is restarted while the others continue. Requests that were in flight on our own server are quarantined
  and rerun in halves, so that a request that crashes the server each time ends up alone and fails.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol, Self, TypeVar

import aiohttp
import orjson
import uvloop
from pydantic import BaseModel, ValidationError

from conf.errors import ReadableError
from models.inference.connections import many_requests, origin
from models.inference.engine import Completion, FailedRequest, Failure, Finished, Request, ScorableText
from reasoning.data_urls import data_url
from reasoning.token_ids import TokenIds

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 5
"""Failed attempts in a row before a request fails."""
MAX_TIMEOUTS = 2
"""Attempts that may time out; each takes as long as the longest completion."""
MAX_LOSSES = 3
"""Remote endpoints that may be lost while they serve a request before it fails."""
MAX_PINNED = 10_000
"""Affinity keys whose endpoint is remembered."""
RETRY_DELAY = 0.25
"""Seconds before the second attempt; doubled with random jitter for each further one."""
HEALTH = 5.0
"""Timeout of a health check, seconds."""
CONNECT = 30.0
"""Timeout of a new connection, seconds."""
JSON = {"Content-Type": "application/json"}
NEVER = -100.0
"""Logit bias that excludes a token."""
ABORTED = ("abort", "error")
"""Finish reasons of completions that vLLM aborted."""
T = TypeVar("T")
Timeouts = Callable[[int], float]
"""From a request's max_tokens to its timeout in seconds."""


class ServerFailed(ReadableError):
    """A server crashed or did not start, and restarting it failed."""


class Endpoint(Protocol):
    """A server of one model."""

    @property
    def url(self) -> str:
        """As `models.inference.connections` takes it."""
        ...

    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def name(self) -> str:
        """The served model's name."""
        ...

    @property
    def max_concurrency(self) -> int:
        """Largest number of completions in flight on it."""
        ...

    @property
    def is_ours(self) -> bool:
        """Whether this process started it. Only then is a crash the fault of one of our requests."""
        ...

    def is_serving(self) -> bool:
        """Whether it is reachable. Raises ServerFailed if it serves another model."""
        ...

    def restart(self, closed: threading.Event) -> None:
        """Blocks until it serves again, or until `closed` is set. Raises ServerFailed if it cannot be restarted."""
        ...


@dataclass(frozen=True, slots=True)
class ScoredText:
    """Log-probs of a text."""

    request_id: int
    log_probs: list[float]
    """Of each token but the first, given those before it."""


@dataclass(eq=False)
class InFlightRequest:
    """A request in flight."""

    request_id: int
    affinity_key: int
    count: int
    """Slots that it takes."""
    path: str
    body: dict[str, Any]
    max_tokens: int
    """Of each completion."""
    read: Callable[[Reply], Finished | ScoredText]
    """Parses a reply. Raises _Refusal or _Retryable for an invalid one."""
    losses: int = 0
    """Endpoints that were lost while they served it."""
    is_over: bool = False
    """Whether it has a result."""
    is_poison: bool = False
    """Whether it crashed a server twice while it was running alone."""


class _EndpointLost(Exception):
    """The endpoint is down, and its requests with it."""


class _Refusal(Exception):
    """The request failed for good."""

    def __init__(self, kind: Failure, reason: str):
        super().__init__(reason)
        self.kind = kind


class _Retryable(_Refusal):
    """The attempt failed; a retry may succeed."""


class _LogProb(BaseModel):
    logprob: float


class _Choice(BaseModel):
    index: int = 0
    token_ids: TokenIds | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[dict[str, _LogProb] | None] | None = None


class _Usage(BaseModel):
    prompt_tokens: int


class Reply(BaseModel):
    """The fields of a completion reply that are used."""

    model: str
    choices: list[_Choice]
    prompt_logprobs: list[dict[str, _LogProb] | None] | None = None
    """Of a request with images; otherwise the first choice has them."""
    usage: _Usage | None = None


class EndpointState:
    """One endpoint: its requests in flight and its quarantine."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.client = many_requests(endpoint.url, endpoint.max_concurrency)
        self.in_flight: set[InFlightRequest] = set()
        self.down = asyncio.Event()
        """Set when the endpoint is lost. A restart replaces it with a new event."""
        self._awaiting: set[asyncio.Task[Any]] = set()
        """Tasks that await a reply of the endpoint."""
        self._quarantined: list[set[InFlightRequest]] = []
        """Groups of requests that run without other requests, the last group first."""

    @property
    def is_up(self) -> bool:
        return not self.down.is_set()

    def mark_down(self) -> None:
        """Nothing more is awaited from it."""
        self.down.set()
        for task in self._awaiting:
            task.cancel()

    async def until_lost(self, down: asyncio.Event, reply: Coroutine[Any, Any, T]) -> T:
        """Awaits `reply`. Raises _EndpointLost as soon as `down` is set: a lost endpoint may never reply, and a
        restarted one must not receive a request that holds no slot there."""
        if down.is_set():
            reply.close()
            raise _EndpointLost
        task = asyncio.current_task()
        assert task
        self._awaiting.add(task)
        try:
            return await reply
        except asyncio.CancelledError:
            if down.is_set() and not task.uncancel():
                raise _EndpointLost from None
            raise  # the session is closed
        finally:
            self._awaiting.discard(task)

    def load(self) -> float:
        return self._running() / self.endpoint.max_concurrency

    def _running(self) -> int:
        return sum(request.count for request in self.in_flight)

    def has_capacity(self, request: InFlightRequest) -> bool:
        """Whether the request fits. One that is larger than all slots runs alone."""
        if not self.is_up or (self._quarantined and request not in self._quarantined[-1]):
            return False
        return not self.in_flight or self._running() + request.count <= self.endpoint.max_concurrency

    def discard(self, request: InFlightRequest) -> None:
        """Marks a request as over and removes it from quarantine, also if its server was lost meanwhile."""
        request.is_over = True
        for group in self._quarantined:
            group.discard(request)
        while self._quarantined and not self._quarantined[-1]:
            self._quarantined.pop()

    def mark_up(self, quarantined: set[InFlightRequest]) -> None:
        """Marks the endpoint as up again. `quarantined` requests run first, in halves; one that was already alone and
        crashed the server again is the poison request."""
        quarantined = {request for request in quarantined if not request.is_over}
        if len(quarantined) == 1 and quarantined in self._quarantined:
            for request in quarantined:
                request.is_poison = True
                self.discard(request)
        elif quarantined:
            ordered = sorted(quarantined, key=lambda request: request.request_id)
            half = len(ordered) // 2
            self._quarantined = [group for group in self._quarantined if not group & quarantined]
            self._quarantined += [set(part) for part in (ordered[half:], ordered[:half]) if part]
        self.down = asyncio.Event()


class Dispatcher:
    """A `Session` over `endpoints`, which all serve one model. Use as a context manager: leaving it cancels the
    requests in flight."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        timeout_for: Timeouts,
        deliver: Callable[[Any], None],
        forbidden_ids: Sequence[int] = (),
    ):
        """`deliver` receives what `Deliver` says, and a ScoredText for each `score`. `forbidden_ids` are never
        sampled."""
        self._endpoints, self._timeout_for, self._deliver = endpoints, timeout_for, deliver
        self._forbidden = {str(token): NEVER for token in forbidden_ids}
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._pins: OrderedDict[int, EndpointState] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        serving = [endpoint.is_serving() for endpoint in self._endpoints]
        self._thread.start()
        self._run(self._open(serving)).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._run(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, request_id: int, request: Request, affinity_key: int) -> None:
        """See `Session.submit`."""
        parameters: dict[str, Any] = {"n": request.count, **request.sampling.request}
        if request.stop:
            # A stop string may be a special token of the tokenizer, as </think> is in some.
            parameters |= {"stop": request.stop, "include_stop_str_in_output": True, "skip_special_tokens": False}
        if self._forbidden:
            parameters["logit_bias"] = self._forbidden
        read, text = partial(read_finished, request_id, request), ScorableText(request.prompt_ids, request.images)
        path, body = path_and_body(text, parameters)
        if not text.images:
            body["return_token_ids"] = True  # the other route always does
        self._send(
            InFlightRequest(request_id, affinity_key, request.count, path, body, request.sampling.max_tokens, read)
        )

    def score(self, request_id: int, text: ScorableText) -> None:
        """Delivers the log-probs of `text` as a ScoredText."""
        path, body = path_and_body(text, {"max_tokens": 1, "prompt_logprobs": 0})
        read = partial(read_scored, request_id, text.token_ids)
        self._send(InFlightRequest(request_id, request_id, 1, path, body, 1, read))

    def _send(self, request: InFlightRequest) -> None:
        self._loop.call_soon_threadsafe(self._start, self._serve(request))

    def _run(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, serving: Sequence[bool]) -> None:
        self._states = [EndpointState(endpoint) for endpoint in self._endpoints]
        self._sessions = [state.client for state in self._states]
        self._changed = asyncio.Condition()
        for state, is_serving in zip(list(self._states), serving, strict=True):
            if not is_serving:
                self._mark_down(state)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self._sessions:
            await session.close()
        await self._loop.shutdown_default_executor()  # waits for a server that is starting

    async def _serve(self, request: InFlightRequest) -> None:
        """Delivers the result of the request exactly once."""
        try:
            while True:
                with suppress(_EndpointLost):
                    self._deliver(await self._serve_once(request))
                    return
        except _Refusal as refusal:
            self._deliver(FailedRequest(request.request_id, str(refusal), refusal.kind))
        except Exception as error:
            self._deliver(error)

    async def _serve_once(self, request: InFlightRequest) -> Finished | ScoredText:
        state, is_lost = await self._acquire_slot(request), False
        try:
            return await self._request(state, request)
        except _EndpointLost:
            is_lost = True
            raise
        finally:
            async with self._changed:
                state.in_flight.discard(request)
                if not is_lost:
                    for each in self._states:  # one that came back may still hold it in quarantine
                        each.discard(request)
                self._changed.notify_all()

    async def _acquire_slot(self, request: InFlightRequest) -> EndpointState:
        """Waits for a free slot. Raises _Refusal for a poison request."""
        async with self._changed:
            await self._changed.wait_for(lambda: request.is_poison or self._endpoint_for(request))
            if request.is_poison:
                raise _Refusal(Failure.SERVER_CRASH, "the server crashed each time it ran this request")
            state = self._pins[request.affinity_key]
            state.in_flight.add(request)
            return state

    def _endpoint_for(self, request: InFlightRequest) -> EndpointState | None:
        """An endpoint with free slots, pinned to the request's affinity key: the pinned one; another if that is down,
        or full while the other is at most half full."""
        own = self._pins.get(request.affinity_key)
        state = min(
            (state for state in self._states if state.has_capacity(request)), key=EndpointState.load, default=None
        )
        if own and own.is_up:
            state = own if own.has_capacity(request) else state if state and state.load() <= 0.5 else None
        if state:
            self._pins[request.affinity_key] = state
            self._pins.move_to_end(request.affinity_key)
            if len(self._pins) > MAX_PINNED:
                self._pins.popitem(last=False)
        return state

    async def _request(self, state: EndpointState, request: InFlightRequest) -> Finished | ScoredText:
        """Retries until a valid reply. Raises _EndpointLost, or _Refusal when all attempts failed."""
        down, failures = state.down, list[_Retryable]()
        while len(failures) < MAX_ATTEMPTS and [one.kind for one in failures].count(Failure.TIMED_OUT) < MAX_TIMEOUTS:
            if failures:
                await asyncio.sleep(RETRY_DELAY * 2 ** len(failures) * random.uniform(0.5, 1))
            try:
                return await self._attempt(state, down, request)
            except _Retryable as failure:
                failures.append(failure)
        raise _Refusal(failures[-1].kind, f"{len(failures)} attempts failed; the last: {failures[-1]}")

    async def _attempt(
        self, state: EndpointState, down: asyncio.Event, request: InFlightRequest
    ) -> Finished | ScoredText:
        """One attempt. Raises as `_request`, and _Retryable."""
        timeout = self._timeout_for(request.max_tokens)
        try:
            status, text = await state.until_lost(down, self._post(state, request, timeout))
        except aiohttp.ClientError as error:
            if not await self._is_healthy(state):
                self._raise_lost(state, down, request)
            raise _Retryable(Failure.SERVER_ERROR, repr(error)) from None
        except TimeoutError:
            raise _Retryable(Failure.TIMED_OUT, f"no reply within {timeout:g} s") from None
        if status == 429 or status >= 500:
            raise _Retryable(Failure.SERVER_ERROR, f"status {status}: {excerpt(text)}")
        if status == 404:  # it serves another model now
            self._raise_lost(state, down, request)
        if status != 200:
            raise _Refusal(Failure.REFUSED, f"status {status}: {excerpt(text)}")
        try:
            reply = Reply.model_validate_json(text)
        except ValidationError:
            raise _Retryable(Failure.MALFORMED, f"no completion in the reply: {excerpt(text)!r}") from None
        if reply.model != state.endpoint.name:
            self._raise_lost(state, down, request)
        return request.read(reply)

    async def _post(self, state: EndpointState, request: InFlightRequest, timeout: float) -> tuple[int, str]:
        endpoint = state.endpoint
        url, body = f"{origin(endpoint.url)}{request.path}", {"model": endpoint.name, **request.body}
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT)
        content, headers = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), {**JSON, **endpoint.headers}
        async with state.client.post(url, data=content, headers=headers, timeout=limits) as reply:
            return reply.status, await reply.text(errors="replace")

    async def _is_healthy(self, state: EndpointState) -> bool:
        url, headers = f"{origin(state.endpoint.url)}/health", state.endpoint.headers
        try:
            async with state.client.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=HEALTH)) as reply:
                return reply.ok
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _mark_down(self, state: EndpointState) -> None:
        state.mark_down()
        self._start(self._restart(state, set(state.in_flight)))

    def _raise_lost(self, state: EndpointState, down: asyncio.Event, request: InFlightRequest) -> NoReturn:
        """Marks the endpoint as down and restarts it, unless that was done. Raises _EndpointLost, or _Refusal if the
        request has lost too many endpoints."""
        if not down.is_set():
            self._mark_down(state)
        request.losses += 1
        if request.losses >= MAX_LOSSES and not state.endpoint.is_ours:
            raise _Refusal(Failure.SERVER_CRASH, f"{request.losses} endpoints were lost while serving it")
        raise _EndpointLost

    async def _restart(self, state: EndpointState, in_flight: set[InFlightRequest]) -> None:
        try:
            await asyncio.to_thread(state.endpoint.restart, self._closed)
        except Exception as error:
            logger.warning("the session goes on without a server that cannot be started again: %s", error)
            self._states.remove(state)
            if not self._states:
                self._deliver(error)
            return
        async with self._changed:
            state.mark_up(in_flight if state.endpoint.is_ours else set())
            self._changed.notify_all()


def path_and_body(text: ScorableText, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a request for `text` goes, and what it says beside the model's name. `parameters`: of sampling, as vLLM
    names them. Only vLLM's own route takes exact token ids together with images; /v1/completions would read their
    placeholders as text."""
    if not text.images:
        return "/v1/completions", {"prompt": text.token_ids.array, **parameters}
    parts = [
        # Under its digest, an image is computed once for all requests that have it.
        {"type": "image_url", "url": data_url(file), "uuid": digest}
        for file, digest in zip(text.images.files, text.images.digests, strict=True)
    ]
    collapsed = text.images.collapsed(text.token_ids).array
    return "/inference/v1/generate", {"token_ids": collapsed, "content_parts": parts, "sampling_params": parameters}


def excerpt(text: str) -> str:
    """The beginning of a server's reply, on one line."""
    return " ".join(text[:1000].split())[:200]


def read_finished(request_id: int, request: Request, reply: Reply) -> Finished:
    """Parses a reply with `request.count` complete completions. Raises _Refusal, _Retryable."""
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    if bad_reasons := [choice.finish_reason for choice in choices if choice.finish_reason not in ("stop", "length")]:
        error = _Retryable if all(reason in ABORTED for reason in bad_reasons) else _Refusal
        raise error(Failure.ABORTED, f"a completion was aborted: {', '.join(map(str, bad_reasons))}")
    completions = [(choice.token_ids, choice.finish_reason) for choice in choices if choice.token_ids is not None]
    if not len(choices) == len(completions) == request.count:
        message = f"requested {request.count} completions with token ids, got {len(completions)}"
        raise _Refusal(Failure.MALFORMED, message)
    if request.images and reply.usage and reply.usage.prompt_tokens != len(request.prompt_ids):
        found = f"{reply.usage.prompt_tokens} prompt tokens, not {len(request.prompt_ids)}"
        raise _Refusal(Failure.MALFORMED, f"the server reads {found}: it prepares images in another way")
    if any(len(token_ids) > request.sampling.max_tokens for token_ids, _ in completions):
        message = f"a completion is longer than the {request.sampling.max_tokens} tokens requested"
        raise _Refusal(Failure.MALFORMED, message)
    return Finished(request_id, tuple(Completion(token_ids, reason != "length") for token_ids, reason in completions))


def read_scored(request_id: int, text: Sequence[int], reply: Reply) -> ScoredText:
    """Parses the log-probs of `text`. Raises _Refusal if they are missing."""
    try:
        return ScoredText(request_id, read_log_probs(text, reply))
    except (LookupError, TypeError, ValueError):
        raise _Refusal(Failure.MALFORMED, f"requested {len(text) - 1} log-probs, got others") from None


def read_log_probs(text: Sequence[int], reply: Reply) -> list[float]:
    """Log-prob of each token of `text` but the first, given those before it."""
    entries: Any = reply.prompt_logprobs or reply.choices[0].prompt_logprobs
    return [entry[str(token)].logprob for token, entry in zip(text[1:], entries[1:], strict=True)]
