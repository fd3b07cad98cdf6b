"""A client for an auxiliary language model behind an OpenAI-compatible endpoint, with cached replies and a spending
cap.

A reply that does not fit its schema is sent back once, with the error. Before a request is sent, the price of its
longest possible reply is reserved, so that the cap cannot be exceeded. An error that would also fail all further
requests ends the run of queries at once.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from conf.errors import ReadableError
from conf.llm import Llm
from models.llm.endpoint import ChatEndpoint, LlmFailed
from models.llm.errors import EndpointError, Kind
from models.llm.protocol import AS_JSON, content_of, longest_content
from models.llm.reply_parsing import parse_reply
from models.llm.reply_store import CachedReply, ReplyStore, reply_key
from reasoning.llm_queries import InvalidReply, LlmQuery, R, Solution
from reasoning.records import Usage

__all__ = ["CapReached", "LlmClient", "LlmFailed", "LlmUnanswered", "TooManyInvalidReplies"]

OVERHEAD = 64
"""Tokens that a chat template may add to a message."""
INVALID_REASONS = {Kind.TRANSIENT: "unanswered", Kind.REFUSED: "refused"}
"""Reasons of queries without a reply, by kind of error; other kinds go by their own name."""
REMEDIES = {
    "malformed": "Use a model that can play this role",
    "cut-off": "Raise {limit}; thinking counts towards it",
    "too-long": "Lower {limit}, or use a model with a longer context",
    "unanswered": "Check whether {url} is up; raise {llm}.max_tries or {llm}.timeout, or lower {llm}.max_concurrency",
    "no-chat": "Correct {llm}.url: it usually ends in /v1",
    "refused": "Use an endpoint or a model that accepts such requests",
    "filtered": "Use an endpoint or a model that answers such questions",
    "declined": "Use a model that answers such questions",
    "without-thinking": "Use a model that shows its thinking",
}


class CapReached(ReadableError):
    """The spending cap would be exceeded."""


class TooManyInvalidReplies(ReadableError):
    """Too many replies of the model are invalid for its role."""


class LlmUnanswered(TooManyInvalidReplies):
    """Most replies are missing because the endpoint did not answer, also when asked again."""


class _Skipped(Exception):
    """The query was skipped, since the run of queries has ended."""


class _CapExceeded(Exception):
    """No further request fits under the cap."""


class KeyedRequest(NamedTuple):
    """A request with the cache keys of its reply. Only the key of a truncated reply contains the token limit, so that a
    higher limit repeats only truncated requests."""

    key: bytes
    key_if_cut: bytes
    body: dict[str, Any]


class _NotCached(Exception):
    """The reply is not cached."""


class SpendingBudget:
    """Money spent and reserved, in the currency of the prices."""

    def __init__(self, cap: float | None, spent: float):
        self._cap, self.spent = cap, spent
        self._reserved: list[float] = []
        self._changed = asyncio.Condition()

    async def reserve(self, max_price: float) -> None:
        """Reserves `max_price`; waits while others may release enough. Raises _CapExceeded when none can."""
        async with self._changed:
            while self._cap is not None and self.spent + sum(self._reserved) + max_price > self._cap:
                if not self._reserved:
                    raise _CapExceeded
                await self._changed.wait()
            self._reserved.append(max_price)

    async def settle(self, reserved: float, price: float) -> None:
        """Releases the `reserved` amount and counts `price` as spent."""
        async with self._changed:
            self._reserved.remove(reserved)
            self.spent += price
            self._changed.notify_all()


class LlmClient:
    """Runs a run's queries. `usage` counts the last call of `ask`, including the original price of cached
    replies, each once per run. Steps that run side by side hold `lock` from `ask` until they have read `usage`."""

    def __init__(
        self,
        settings: Llm,
        replies: ReplyStore,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ):
        """Raises LlmFailed for a malformed API key."""
        self._settings, self._replies = settings, replies
        self._endpoint = ChatEndpoint(settings, sleep, clock)
        self._spent_in_run = 0.0
        """Money that the run's queries have cost."""
        self._counted: set[bytes] = set()
        """Keys of cached replies that are already counted in this run."""
        self.lock = threading.Lock()
        self.usage = Usage()
        self.notes: list[str] = []
        """Remarks on the last call of `ask`, for the report."""

    def ask(
        self,
        queries: Sequence[LlmQuery[R]],
        progress: Callable[[int, int], None],
        max_invalid_fraction: float = 1.0,
        spent: float = 0.0,
    ) -> list[R | InvalidReply]:
        """The result of each query, in order. `spent`: money spent elsewhere that counts towards the cap.

        Raises LlmFailed, CapReached, and TooManyInvalidReplies above `max_invalid_fraction`.
        """
        self.usage, known = Usage(), self._endpoint.without
        self._budget = SpendingBudget(self._settings.cap, spent + self._spent_in_run)
        try:
            return asyncio.run(self._query_all(queries, progress, max_invalid_fraction))
        finally:
            self._spent_in_run = self._budget.spent - spent
            self.notes = self._remarks(sorted(self._endpoint.without - known))

    def _remarks(self, refused: Sequence[str]) -> list[str]:
        url, unmetered = self._settings.url, self.usage.unmetered_replies
        notes = [f"{url} does not take {', '.join(refused)}: requests are sent without"] if refused else []
        if unmetered:
            priced = self._settings.price_in or self._settings.price_out
            price = "; each is counted at its highest possible price" if priced else ""
            notes.append(f"{url} reported no usage for {unmetered} replies: their tokens are not counted{price}")
        return notes

    async def _query_all(
        self, queries: Sequence[LlmQuery[R]], progress: Callable[[int, int], None], max_invalid_fraction: float
    ) -> list[R | InvalidReply]:
        settings, before = self._settings, self._budget.spent
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._locks: dict[bytes, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._has_ended, self._invalid_replies, self._max_invalid = (
            False,
            list[InvalidReply](),
            max_invalid_fraction * len(queries),
        )
        # Cached replies are counted first, so that new requests fit under the cap beside them.
        for query in queries:
            with suppress(_NotCached):
                await self._answer(query, self._cached)
        async with self._endpoint.open():
            found = await asyncio.gather(*(self._query(query, progress) for query in queries), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, _CapExceeded | _Skipped):
                raise error
        if len(self._invalid_replies) > self._max_invalid:
            raise self._too_many(queries, max_invalid_fraction)
        missing = sum(isinstance(one, _CapExceeded) for one in found)
        if missing:
            raise self._cap_reached(missing, len(queries), before)
        return found  # type: ignore[return-value]

    def _too_many(self, queries: Sequence[LlmQuery[Any]], share: float) -> TooManyInvalidReplies:
        reasons = Counter(one.reason for one in self._invalid_replies).most_common()
        remedy = REMEDIES[reasons[0][0]].format(
            limit=queries[0].limit, url=self._settings.url, llm=self._settings.SECTION_NAME
        )
        first = next(one for one in self._invalid_replies if one.reason == reasons[0][0])
        kind = LlmUnanswered if reasons[0][0] == INVALID_REASONS[Kind.TRANSIENT] else TooManyInvalidReplies
        return kind(
            f"{len(self._invalid_replies)} replies of {self._settings.model} cannot be used "
            f"({', '.join(f'{count} × {reason}' for reason, count in reasons)}; the first: {first.detail}); "
            f"max_invalid_fraction allows {share:.0%} of {len(queries)}, so no more queries were sent. {remedy}"
        )

    def _cap_reached(self, missing: int, total: int, before: float) -> CapReached:
        spent, answered = self._budget.spent, total - missing
        mean = (spent - before) / answered if answered else 0.0
        estimate = (
            f"about {mean * missing:.4g} more at the same mean price"
            if answered
            else "an unknown amount: none is answered yet"
        )
        return CapReached(
            f"the spending cap is reached: {spent:.4g} of {self._settings.cap:.4g} are spent, {answered} of {total} "
            f"queries are answered, the others would cost {estimate}; raise {self._settings.SECTION_NAME}.cap and "
            f"start "
            f"the same run again: replies are cached"
        )

    async def _query(self, query: LlmQuery[R], progress: Callable[[int, int], None]) -> R | InvalidReply:
        async with self._slots:
            if self._has_ended:
                raise _Skipped
            try:
                found = await self._answer(query, self._reply)
            except _CapExceeded:
                raise
            except Exception:
                self._has_ended = True
                raise
        if isinstance(found, InvalidReply):
            self._invalid_replies.append(found)
            self._has_ended |= len(self._invalid_replies) > self._max_invalid
        progress(1, 0)
        return found

    async def _answer(
        self, query: LlmQuery[R], reply: Callable[[KeyedRequest], Awaitable[CachedReply | InvalidReply]]
    ) -> R | InvalidReply:
        """The parsed reply, repaired once if needed."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": query.task}] * bool(query.task)
        images = query.images if self._settings.images else ()
        messages += [{"role": "user", "content": content_of(query.material, images)}]
        first = await reply(self._request_of(query, messages))
        if isinstance(first, InvalidReply):
            return first
        found = parse_reply(query, first)
        if not isinstance(found, InvalidReply) or query.reply is Solution or not _is_repairable(found, first):
            return found
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": f"This reply cannot be used: {found.detail}\nReply again, as asked."},
        ]
        second = await reply(self._request_of(query, messages))
        return second if isinstance(second, InvalidReply) else parse_reply(query, second)

    async def _cached(self, request: KeyedRequest) -> CachedReply:
        """The cached reply. Raises _NotCached."""
        cached = await asyncio.to_thread(self._stored, request)
        if cached is None:
            raise _NotCached
        if request.key not in self._counted:
            self._counted.add(request.key)
            self._budget.spent += self._price(cached, request)
            self.usage += Usage(
                reused_completions=1, money=self._price(cached, request), unmetered_replies=int(_is_unmetered(cached))
            )
        return cached

    def _stored(self, request: KeyedRequest) -> CachedReply | None:
        """May wait for a database that is away; requests in flight must not wait with it."""
        return self._replies.find(request.key) or self._replies.find(request.key_if_cut)

    async def _reply(self, request: KeyedRequest) -> CachedReply | InvalidReply:
        """The cached reply or a new one. Of identical concurrent queries only the first is sent."""
        async with self._locks[request.key]:
            with suppress(_NotCached):
                return await self._cached(request)
            return await self._new(request)

    async def _new(self, request: KeyedRequest) -> CachedReply | InvalidReply:
        max_price = self._cost(self._longest_prompt(request), request.body["max_tokens"])
        await self._budget.reserve(max_price)
        reply: CachedReply | InvalidReply = InvalidReply("unanswered", "")
        try:
            reply = await self._send(request.body)
        finally:
            await self._budget.settle(max_price, self._price(reply, request) if isinstance(reply, CachedReply) else 0.0)
        if isinstance(reply, CachedReply):
            self._counted.add(request.key)
            key = request.key_if_cut if reply.finish == "length" else request.key
            await asyncio.to_thread(self._replies.keep, key, reply)
            self.usage += Usage(
                prompt_tokens=reply.prompt_tokens or 0,
                generated_tokens=reply.generated_tokens or 0,
                unmetered_replies=int(_is_unmetered(reply)),
                money=self._price(reply, request),
            )
        return reply

    def _request_of(self, query: LlmQuery[Any], messages: Sequence[dict[str, Any]]) -> KeyedRequest:
        temperature = self._settings.temperature if query.temperature is None else query.temperature
        body = {
            "model": self._settings.model,
            "messages": list(messages),
            "max_tokens": query.max_tokens,
            "temperature": temperature,
        }
        if query.top_p is not None:
            body["top_p"] = query.top_p
        if query.reply is not Solution:
            schema = {"name": query.reply.__name__, "schema": query.reply.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        url, unlimited = self._settings.url, {name: value for name, value in body.items() if name != "max_tokens"}
        return KeyedRequest(reply_key(url, unlimited, query.sample), reply_key(url, body, query.sample), body)

    async def _send(self, body: dict[str, Any]) -> CachedReply | InvalidReply:
        """Raises LlmFailed for errors that would also fail all other requests."""
        try:
            return await self._endpoint.complete(body)
        except EndpointError as error:
            tries = f"{self._settings.max_tries} tries failed: " if error.kind is Kind.TRANSIENT else ""
            return InvalidReply(INVALID_REASONS.get(error.kind, error.kind.value), f"{tries}{error.text}")

    def _longest_prompt(self, request: KeyedRequest) -> int:
        """Upper bound of the prompt's tokens: a token has at least one byte, and the schema may become part of the
        prompt."""
        prompt = sum(longest_content(message["content"]) + OVERHEAD for message in request.body["messages"])
        form = request.body.get("response_format")
        return prompt + (len(AS_JSON + json.dumps(form)) if form else 0)

    def _price(self, reply: CachedReply, request: KeyedRequest) -> float:
        """Price of a reply; its highest possible price where the endpoint reports no usage."""
        prompt, generated = reply.prompt_tokens, reply.generated_tokens
        return self._cost(
            self._longest_prompt(request) if prompt is None else prompt,
            request.body["max_tokens"] if generated is None else generated,
        )

    def _cost(self, prompt: int, generated: int) -> float:
        return (prompt * self._settings.price_in + generated * self._settings.price_out) / 1e6


def _is_unmetered(reply: CachedReply) -> bool:
    return reply.prompt_tokens is None or reply.generated_tokens is None


def _is_repairable(found: InvalidReply, reply: CachedReply) -> bool:
    """Whether a repair may help: not for refusals, nor where thinking used up all tokens."""
    return found.reason == "malformed" or (found.reason == "cut-off" and bool(reply.content))
