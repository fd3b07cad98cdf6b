"""The auxiliary language model: questions to any OpenAI-compatible endpoint, each answered once and paid for once.

Knows: HTTP through the `openai` client, schemas, prices. Must not know: roles, prompts, pipelines.

What may pass (429 with its Retry-After, 5xx, time-outs, dropped connections) is tried again by the client. A reply that
does not fit its schema is sent back once, with what is wrong. Money is set aside before a request is sent, as if its
reply were as long as allowed, so the cap cannot be passed. What makes all further replies useless ends the asking at
once: nothing more is sent.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import openai
from openai import AsyncOpenAI
from pydantic import AliasChoices, BaseModel, Field, NonNegativeInt, ValidationError

from conf.auxiliary import Llm
from conf.errors import ReadableError
from models.replies import Paid, ReplyStore, identity
from reasoning.asking import Ask, R, Solution, Unusable
from reasoning.records import Usage
from reasoning.thinking import CLOSE_THINK

SHOWN = 400
"""Characters of an unusable reply, or of an error, that a person gets to see."""
OVERHEAD = 64
"""Tokens that a chat template may add to a message."""


class LlmFailed(ReadableError):
    """The endpoint cannot be used as it is set up."""


class CapReached(ReadableError):
    """The spending cap would be passed."""


class TooManyUnusable(ReadableError):
    """The model is not up to its role."""


class _GivenUp(Exception):
    """A question that is not asked any more."""


class _NoMoney(Exception):
    """Not even one more request fits under the cap."""


class Request(NamedTuple):
    """A question as it is sent, and what identifies it."""

    key: bytes
    body: dict[str, Any]


class _NotKept(Exception):
    """A reply that is not there yet."""


class Purse:
    """Money spent and set aside, in the currency of the prices."""

    def __init__(self, cap: float | None, spent: float):
        self._cap, self.spent = cap, spent
        self._aside: list[float] = []
        self._changed = asyncio.Condition()

    async def set_aside(self, most: float) -> None:
        """Waits while others may give back enough. Raises _NoMoney when there is nobody left who could."""
        async with self._changed:
            while self._cap is not None and self.spent + sum(self._aside) + most > self._cap:
                if not self._aside:
                    raise _NoMoney
                await self._changed.wait()
            self._aside.append(most)

    async def pay(self, aside: float, price: float) -> None:
        """Gives back what was set `aside` but for the `price`."""
        async with self._changed:
            self._aside.remove(aside)
            self.spent += price
            self._changed.notify_all()


class AuxiliaryLlm:
    """Answers a run's questions. `usage` accounts for the last ones, with the money that reused replies had cost, each
    once in a run."""

    def __init__(self, settings: Llm, replies: ReplyStore):
        self._settings, self._replies = settings, replies
        self._paid = 0.0
        """Money that the run's questions have cost."""
        self._key = os.environ.get(settings.key_variable, "")
        self._counted: set[bytes] = set()
        """Kept replies that are paid for in this run."""
        self.usage = Usage()

    def ask(
        self, asks: Sequence[Ask[R]], progress: Callable[[int, int], None], most_unusable: float = 1.0,
        spent: float = 0.0,
    ) -> list[R | Unusable]:  # fmt: skip
        """What becomes of each question. `spent`: money that counts towards the cap, and was not paid through here.

        Raises LlmFailed, CapReached, and TooManyUnusable above that share.
        """
        self.usage = Usage()
        self._purse = Purse(self._settings.cap, spent + self._paid)
        try:
            return asyncio.run(self._ask_all(asks, progress, most_unusable))
        finally:
            self._paid = self._purse.spent - spent

    async def _ask_all(
        self, asks: Sequence[Ask[R]], progress: Callable[[int, int], None], most_unusable: float
    ) -> list[R | Unusable]:
        settings, before = self._settings, self._purse.spent
        self._seats = asyncio.Semaphore(settings.concurrency)
        self._locks: dict[bytes, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._given_up, self._bad, self._most_bad = False, list[Unusable](), most_unusable * len(asks)
        # What is kept is counted first: then nothing is sent that would not fit beside it under the cap.
        for ask in asks:
            with suppress(_NotKept):
                await self._answer(ask, self._kept)
        async with AsyncOpenAI(
            base_url=settings.url, api_key=self._key or "none", timeout=settings.timeout,
            max_retries=settings.tries - 1,
        ) as self._client:  # fmt: skip
            found = await asyncio.gather(*(self._seated(ask, progress) for ask in asks), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, _NoMoney | _GivenUp):
                raise error
        if len(self._bad) > self._most_bad:
            raise self._too_many(len(asks), most_unusable)
        missing = sum(isinstance(one, _NoMoney) for one in found)
        if missing:
            raise self._cap_reached(missing, len(asks), before)
        return found  # type: ignore[return-value]

    def _too_many(self, asked: int, share: float) -> TooManyUnusable:
        reasons = Counter(one.reason for one in self._bad).most_common()
        return TooManyUnusable(
            f"{len(self._bad)} replies of {self._settings.model} cannot be used "
            f"({', '.join(f'{count} × {reason}' for reason, count in reasons)}; the first: {self._bad[0].detail}); "
            f"most_unusable allows {share:.0%} of {asked}, so nothing more was asked. Take a model that can play this "
            f"role"
        )

    def _cap_reached(self, missing: int, asked: int, before: float) -> CapReached:
        spent, there = self._purse.spent, asked - missing
        mean = (spent - before) / there if there else 0.0
        guess = f"about {mean * missing:.4g} more, as these did" if there else "an unknown sum: none is answered yet"
        return CapReached(
            f"the spending cap is reached: {spent:.4g} of {self._settings.cap:.4g} are spent, {there} of {asked} "
            f"questions are answered, the others would cost {guess}; raise llm.cap and start the same run again: what "
            f"is answered is kept"
        )

    async def _seated(self, ask: Ask[R], progress: Callable[[int, int], None]) -> R | Unusable:
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
        if isinstance(found, Unusable):
            self._bad.append(found)
            self._given_up |= len(self._bad) > self._most_bad
        progress(1, 0)
        return found

    async def _answer(self, ask: Ask[R], reply: Callable[[Request], Awaitable[Paid | Unusable]]) -> R | Unusable:
        """The reply's values, after one repair where it needs that."""
        messages = [{"role": "system", "content": ask.task}] * bool(ask.task)
        messages += [{"role": "user", "content": ask.material}]
        first = await reply(self._request_of(ask, messages))
        if isinstance(first, Unusable):
            return first
        found = read(ask, first)
        if not isinstance(found, Unusable) or ask.reply is Solution:
            return found
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": f"This reply cannot be used: {found.detail}\nReply again, as asked."},
        ]
        second = await reply(self._request_of(ask, messages))
        return second if isinstance(second, Unusable) else read(ask, second)

    async def _kept(self, request: Request) -> Paid:
        """Raises _NotKept."""
        kept = self._replies.find(request.key)
        if kept is None:
            raise _NotKept
        if request.key not in self._counted:
            self._counted.add(request.key)
            self._purse.spent += self._price(kept)
            self.usage += Usage(reused_completions=1, money=self._price(kept))
        return kept

    async def _reply(self, request: Request) -> Paid | Unusable:
        """The kept reply, or a new one; of like questions at one time only the first is sent."""
        async with self._locks[request.key]:
            with suppress(_NotKept):
                return await self._kept(request)
            return await self._new(request)

    async def _new(self, request: Request) -> Paid | Unusable:
        most = self._most(request.body)
        await self._purse.set_aside(most)
        paid: Paid | Unusable = Unusable("unanswered", "")
        try:
            paid = await self._send(request.body)
        finally:
            await self._purse.pay(most, self._price(paid) if isinstance(paid, Paid) else 0.0)
        if isinstance(paid, Paid):
            self._counted.add(request.key)
            self._replies.keep(request.key, paid)
            self.usage += Usage(
                prompt_tokens=paid.prompt_tokens, generated_tokens=paid.generated_tokens, money=self._price(paid)
            )
        return paid

    def _request_of(self, ask: Ask[Any], messages: Sequence[dict[str, str]]) -> Request:
        temperature = self._settings.temperature if ask.temperature is None else ask.temperature
        body = {
            "model": self._settings.model, "messages": list(messages), "max_tokens": ask.max_tokens,
            "temperature": temperature,
        }  # fmt: skip
        if ask.top_p is not None:
            body["top_p"] = ask.top_p
        if ask.reply is not Solution:
            schema = {"name": ask.reply.__name__, "schema": ask.reply.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return Request(identity(self._settings.url, body, ask.sample), body)

    async def _send(self, body: dict[str, Any]) -> Paid | Unusable:
        """Raises LlmFailed where no other question would fare better."""
        settings = self._settings
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**body)
            return _Chat.model_validate_json(raw.content).paid(with_thinking="response_format" not in body)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise LlmFailed(
                f"{settings.url} refuses the key ({self._told(error)}); set {settings.key_variable}"
            ) from None
        except openai.NotFoundError as error:
            raise LlmFailed(
                f"{settings.url} knows no model {settings.model!r} ({self._told(error)}); correct llm.url or llm.model"
            ) from None
        except openai.APIConnectionError as error:  # time-outs among them
            return Unusable("unanswered", f"{settings.tries} tries failed: {self._told(error)}")
        except openai.APIStatusError as error:
            may_pass = error.status_code >= 500 or error.status_code == 429
            return Unusable("unanswered" if may_pass else "refused", self._told(error))
        except (ValueError, openai.OpenAIError) as error:
            return Unusable("no-chat", f"what came is no reply of a chat: {self._told(error)}")

    def _told(self, error: Exception) -> str:
        """An error's words, without the key: some endpoints repeat it."""
        text = str(error).replace(self._key, "***") if self._key else str(error)
        return text[:SHOWN]

    def _most(self, body: dict[str, Any]) -> float:
        """What a request may cost at most: a token holds at least one byte."""
        prompt = sum(len(message["content"].encode()) + OVERHEAD for message in body["messages"])
        return self._cost(prompt + len(str(body.get("response_format", ""))), body["max_tokens"])

    def _price(self, reply: Paid) -> float:
        return self._cost(reply.prompt_tokens, reply.generated_tokens)

    def _cost(self, prompt: int, generated: int) -> float:
        return (prompt * self._settings.price_in + generated * self._settings.price_out) / 1e6


class _Message(BaseModel):
    content: str | None = None
    thinking: str | None = Field(None, validation_alias=AliasChoices("reasoning_content", "reasoning"))
    """Where an endpoint tells it apart; the names are those of DeepSeek's and vLLM's."""


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Tokens(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class _Chat(BaseModel):
    """What is read of a chat's reply: the client itself checks nothing."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Tokens

    def paid(self, with_thinking: bool) -> Paid:
        message, finish = self.choices[0].message, (self.choices[0].finish_reason or "")[:32]
        content = message.content or ""
        if with_thinking and message.thinking:
            content = f"{message.thinking}{CLOSE_THINK}{content}"
        content = content.replace("\0", "")  # PostgreSQL keeps none
        return Paid(content, finish, self.usage.prompt_tokens, self.usage.completion_tokens)


def read(ask: Ask[R], reply: Paid) -> R | Unusable:
    """The reply's values."""
    if ask.reply is Solution:
        if CLOSE_THINK not in reply.content:
            return Unusable("without-thinking", f"its thinking does not end with {CLOSE_THINK}, or is not shown at all")
        return Solution(text=reply.content, truncated=reply.finish == "length")  # type: ignore[return-value]
    if reply.finish == "length":
        return Unusable("cut-off", f"it is longer than {ask.max_tokens} tokens")
    try:
        return ask.reply.model_validate_json(reply.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return Unusable("malformed", f"{where + ': ' if where else ''}{first['msg']}"[:SHOWN])
