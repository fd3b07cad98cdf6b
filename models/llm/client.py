"""The auxiliary language model: questions to any OpenAI-compatible endpoint, each answered once and paid for once.

Knows: schemas, prices, kept replies. Must not know: HTTP, roles, prompts, pipelines.

A reply that does not fit its schema is sent back once, with what is wrong. Money is set aside before a request is sent,
as if its reply were as long as allowed, so the cap cannot be passed. What makes all further replies useless ends the
asking at once: nothing more is sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from conf.errors import ReadableError
from conf.llm import Llm
from models.llm.endpoint import ChatEndpoint, LlmFailed
from models.llm.errors import EndpointError, Kind
from models.llm.protocol import AS_JSON
from models.llm.reply_parsing import parse_reply
from models.llm.reply_store import CachedReply, ReplyStore, reply_key
from reasoning.llm_queries import InvalidReply, LlmQuery, R, Solution
from reasoning.records import Usage

__all__ = ["CapReached", "LlmClient", "LlmFailed", "TooManyInvalidReplies"]

OVERHEAD = 64
"""Tokens that a chat template may add to a message."""
INVALID_REASONS = {Kind.TRANSIENT: "unanswered", Kind.REFUSED: "refused"}
"""Reasons of questions without an answer; other kinds of errors go by their own name."""
REMEDIES = {
    "malformed": "Take a model that can play this role",
    "cut-off": "Raise {limit}: thinking counts, too",
    "too-long": "Lower {limit}, or take a model that reads more at a time",
    "unanswered": "See whether {url} is up; raise {llm}.tries or {llm}.timeout, or lower {llm}.concurrency",
    "no-chat": "Correct {llm}.url: it usually ends in /v1",
    "refused": "Take an endpoint or a model that answers such requests",
    "filtered": "Take an endpoint or a model that answers such questions",
    "declined": "Take a model that answers such questions",
    "without-thinking": "Take a model that shows its thinking",
}


class CapReached(ReadableError):
    """The spending cap would be passed."""


class TooManyInvalidReplies(ReadableError):
    """The model is not up to its role."""


class _GivenUp(Exception):
    """A question that is not asked any more."""


class _NoMoney(Exception):
    """Not even one more request fits under the cap."""


class KeyedRequest(NamedTuple):
    """A question in full, and what identifies its reply: the longest that it may be only where it was cut off there, so
    that a higher limit asks again for those alone."""

    key: bytes
    key_if_cut: bytes
    body: dict[str, Any]


class _NotKept(Exception):
    """A reply that is not there yet."""


class SpendingBudget:
    """Money spent and set aside, in the currency of the prices."""

    def __init__(self, cap: float | None, spent: float):
        self._cap, self.spent = cap, spent
        self._reserved: list[float] = []
        self._changed = asyncio.Condition()

    async def reserve(self, most: float) -> None:
        """Waits while others may give back enough. Raises _NoMoney when there is nobody left who could."""
        async with self._changed:
            while self._cap is not None and self.spent + sum(self._reserved) + most > self._cap:
                if not self._reserved:
                    raise _NoMoney
                await self._changed.wait()
            self._reserved.append(most)

    async def settle(self, aside: float, price: float) -> None:
        """Gives back what was set `aside` but for the `price`."""
        async with self._changed:
            self._reserved.remove(aside)
            self.spent += price
            self._changed.notify_all()


class LlmClient:
    """Answers a run's questions. `usage` accounts for the last ones, with the money that reused replies had cost, each
    once in a run."""

    def __init__(
        self,
        settings: Llm,
        replies: ReplyStore,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ):
        """Raises LlmFailed where the key is none."""
        self._settings, self._replies = settings, replies
        self._endpoint = ChatEndpoint(settings, sleep, clock)
        self._paid = 0.0
        """Money that the run's questions have cost."""
        self._counted: set[bytes] = set()
        """Kept replies that are paid for in this run."""
        self.usage = Usage()
        self.notes: list[str] = []
        """What a reader of the last ones' replies should know."""

    def ask(
        self,
        asks: Sequence[LlmQuery[R]],
        progress: Callable[[int, int], None],
        max_invalid_fraction: float = 1.0,
        spent: float = 0.0,
    ) -> list[R | InvalidReply]:
        """What becomes of each question. `spent`: money that counts towards the cap, and was not paid through here.

        Raises LlmFailed, CapReached, and TooManyUnusable above that share.
        """
        self.usage, known = Usage(), self._endpoint.without
        self._budget = SpendingBudget(self._settings.cap, spent + self._paid)
        try:
            return asyncio.run(self._ask_all(asks, progress, max_invalid_fraction))
        finally:
            self._paid = self._budget.spent - spent
            self.notes = self._noted(sorted(self._endpoint.without - known))

    def _noted(self, refused: Sequence[str]) -> list[str]:
        url, unmetered = self._settings.url, self.usage.unmetered_replies
        notes = [f"{url} does not take {', '.join(refused)}: it is asked without"] if refused else []
        if unmetered:
            priced = self._settings.price_in or self._settings.price_out
            price = "; each is priced as the most that it can have cost" if priced else ""
            notes.append(f"{url} told no usage for {unmetered} replies: their tokens are not counted{price}")
        return notes

    async def _ask_all(
        self, asks: Sequence[LlmQuery[R]], progress: Callable[[int, int], None], max_invalid_fraction: float
    ) -> list[R | InvalidReply]:
        settings, before = self._settings, self._budget.spent
        self._seats = asyncio.Semaphore(settings.max_concurrency)
        self._locks: dict[bytes, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._given_up, self._bad, self._max_invalid = False, list[InvalidReply](), max_invalid_fraction * len(asks)
        # What is kept is counted first: then nothing is sent that would not fit beside it under the cap.
        for ask in asks:
            with suppress(_NotKept):
                await self._answer(ask, self._kept)
        async with self._endpoint.open():
            found = await asyncio.gather(*(self._seated(ask, progress) for ask in asks), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, _NoMoney | _GivenUp):
                raise error
        if len(self._bad) > self._max_invalid:
            raise self._too_many(asks, max_invalid_fraction)
        missing = sum(isinstance(one, _NoMoney) for one in found)
        if missing:
            raise self._cap_reached(missing, len(asks), before)
        return found  # type: ignore[return-value]

    def _too_many(self, asks: Sequence[LlmQuery[Any]], share: float) -> TooManyInvalidReplies:
        reasons = Counter(one.reason for one in self._bad).most_common()
        remedy = REMEDIES[reasons[0][0]].format(
            limit=asks[0].limit, url=self._settings.url, llm=self._settings.SECTION_NAME
        )
        first = next(one for one in self._bad if one.reason == reasons[0][0])
        return TooManyInvalidReplies(
            f"{len(self._bad)} replies of {self._settings.model} cannot be used "
            f"({', '.join(f'{count} × {reason}' for reason, count in reasons)}; the first: {first.detail}); "
            f"max_invalid_fraction allows {share:.0%} of {len(asks)}, so nothing more was asked. {remedy}"
        )

    def _cap_reached(self, missing: int, asked: int, before: float) -> CapReached:
        spent, there = self._budget.spent, asked - missing
        mean = (spent - before) / there if there else 0.0
        guess = f"about {mean * missing:.4g} more, as these did" if there else "an unknown sum: none is answered yet"
        return CapReached(
            f"the spending cap is reached: {spent:.4g} of {self._settings.cap:.4g} are spent, {there} of {asked} "
            f"questions are answered, the others would cost {guess}; raise {self._settings.SECTION_NAME}.cap and start "
            f"the same run again: what is answered is kept"
        )

    async def _seated(self, ask: LlmQuery[R], progress: Callable[[int, int], None]) -> R | InvalidReply:
        async with self._seats:
            if self._given_up:
                raise _GivenUp
            try:
                found = await self._answer(ask, self._reply)
            except _NoMoney:
                raise
            except Exception:
                self._given_up = True
                raise
        if isinstance(found, InvalidReply):
            self._bad.append(found)
            self._given_up |= len(self._bad) > self._max_invalid
        progress(1, 0)
        return found

    async def _answer(
        self, ask: LlmQuery[R], reply: Callable[[KeyedRequest], Awaitable[CachedReply | InvalidReply]]
    ) -> R | InvalidReply:
        """The reply's values, after one repair where it needs that."""
        messages = [{"role": "system", "content": ask.task}] * bool(ask.task)
        messages += [{"role": "user", "content": ask.material}]
        first = await reply(self._request_of(ask, messages))
        if isinstance(first, InvalidReply):
            return first
        found = parse_reply(ask, first)
        if not isinstance(found, InvalidReply) or ask.reply is Solution or not _repairable(found, first):
            return found
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": f"This reply cannot be used: {found.detail}\nReply again, as asked."},
        ]
        second = await reply(self._request_of(ask, messages))
        return second if isinstance(second, InvalidReply) else parse_reply(ask, second)

    async def _kept(self, request: KeyedRequest) -> CachedReply:
        """Raises _NotKept."""
        kept = self._replies.find(request.key) or self._replies.find(request.key_if_cut)
        if kept is None:
            raise _NotKept
        if request.key not in self._counted:
            self._counted.add(request.key)
            self._budget.spent += self._price(kept, request)
            self.usage += Usage(
                reused_completions=1, money=self._price(kept, request), unmetered_replies=int(_is_unmetered(kept))
            )
        return kept

    async def _reply(self, request: KeyedRequest) -> CachedReply | InvalidReply:
        """The kept reply, or a new one; of like questions at one time only the first is sent."""
        async with self._locks[request.key]:
            with suppress(_NotKept):
                return await self._kept(request)
            return await self._new(request)

    async def _new(self, request: KeyedRequest) -> CachedReply | InvalidReply:
        most = self._cost(self._longest_prompt(request), request.body["max_tokens"])
        await self._budget.reserve(most)
        paid: CachedReply | InvalidReply = InvalidReply("unanswered", "")
        try:
            paid = await self._send(request.body)
        finally:
            await self._budget.settle(most, self._price(paid, request) if isinstance(paid, CachedReply) else 0.0)
        if isinstance(paid, CachedReply):
            self._counted.add(request.key)
            self._replies.keep(request.key_if_cut if paid.finish == "length" else request.key, paid)
            self.usage += Usage(
                prompt_tokens=paid.prompt_tokens or 0,
                generated_tokens=paid.generated_tokens or 0,
                unmetered_replies=int(_is_unmetered(paid)),
                money=self._price(paid, request),
            )
        return paid

    def _request_of(self, ask: LlmQuery[Any], messages: Sequence[dict[str, str]]) -> KeyedRequest:
        temperature = self._settings.temperature if ask.temperature is None else ask.temperature
        body = {
            "model": self._settings.model,
            "messages": list(messages),
            "max_tokens": ask.max_tokens,
            "temperature": temperature,
        }
        if ask.top_p is not None:
            body["top_p"] = ask.top_p
        if ask.reply is not Solution:
            schema = {"name": ask.reply.__name__, "schema": ask.reply.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        url, unlimited = self._settings.url, {name: value for name, value in body.items() if name != "max_tokens"}
        return KeyedRequest(reply_key(url, unlimited, ask.sample), reply_key(url, body, ask.sample), body)

    async def _send(self, body: dict[str, Any]) -> CachedReply | InvalidReply:
        """Raises LlmFailed where no other question would fare better."""
        try:
            return await self._endpoint.complete(body)
        except EndpointError as error:
            tries = f"{self._settings.max_tries} tries failed: " if error.kind is Kind.TRANSIENT else ""
            return InvalidReply(INVALID_REASONS.get(error.kind, error.kind.value), f"{tries}{error.text}")

    def _longest_prompt(self, request: KeyedRequest) -> int:
        """Tokens, at most: a token holds at least one byte, and a schema may be told in the prompt."""
        prompt = sum(len(message["content"].encode()) + OVERHEAD for message in request.body["messages"])
        form = request.body.get("response_format")
        return prompt + (len(AS_JSON + json.dumps(form)) if form else 0)

    def _price(self, reply: CachedReply, request: KeyedRequest) -> float:
        """The most that it can have cost, where the endpoint does not say how long it was."""
        prompt, generated = reply.prompt_tokens, reply.generated_tokens
        return self._cost(
            self._longest_prompt(request) if prompt is None else prompt,
            request.body["max_tokens"] if generated is None else generated,
        )

    def _cost(self, prompt: int, generated: int) -> float:
        return (prompt * self._settings.price_in + generated * self._settings.price_out) / 1e6


def _is_unmetered(reply: CachedReply) -> bool:
    return reply.prompt_tokens is None or reply.generated_tokens is None


def _repairable(found: InvalidReply, reply: CachedReply) -> bool:
    """Nothing is to be had by sending back what was held back, or thinking that left no room for a word."""
    return found.reason == "malformed" or (found.reason == "cut-off" and bool(reply.content))
