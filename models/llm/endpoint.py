"""A chat endpoint: requests in the protocol that it speaks, tried again as long as an error may pass.

Knows: HTTP through the `openai` client, keys, pauses, refusals. Must not know: questions, money, what is kept.

Until the first request has been answered, requests go one by one: what the endpoint refuses is found once, and a wrong
key or an empty account costs one request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import openai
from openai import AsyncOpenAI
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from conf.errors import ReadableError
from conf.llm import Llm
from models.llm.errors import EndpointError, Kind, error_inside, error_of, one_line
from models.llm.protocol import GUESSES, Features, named_feature, next_guess, worded
from models.llm.reply_parsing import json_body, parse_chat_reply
from models.llm.reply_store import CachedReply

LOG = logging.getLogger(__name__)
BACKOFF = wait_exponential_jitter(initial=1, max=60)
AROUND_KEYS = "[\\s\"'`\u2018-\u201f\u00ab\u00bb\u2039\u203a\u200b\ufeff]+"
"""What gets around a key when it is copied: blanks, line ends, quotes, byte order marks."""
LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class LlmFailed(ReadableError):
    """The endpoint cannot be used as it is set up."""


def key_in(variable: str) -> str:
    """The key in an environment variable; empty where there is none. Raises LlmFailed, which does not show it."""
    key = re.sub(f"^{AROUND_KEYS}|{AROUND_KEYS}$", "", os.environ.get(variable, ""))
    if not re.fullmatch("[!-~]*", key):
        raise LlmFailed(
            f"{variable} holds no key: a key has no blanks and no letters beyond ASCII; set it anew, to the key alone"
        )
    return key


class ChatEndpoint:
    def __init__(
        self,
        settings: Llm,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ):
        self._settings, self._key = settings, key_in(settings.key_variable)
        self._sleep, self._clock = sleep, clock
        self.without: Features = frozenset()
        """What it is known to refuse."""
        self._proven = False
        """It has answered a request."""
        self._quiet_until = 0.0
        """It wants no request before, in seconds since 1970."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Within one event loop."""
        self._first, self._tried, self._failed = asyncio.Lock(), self._proven, None
        async with AsyncOpenAI(
            base_url=self._settings.url, api_key=self._key or "none", timeout=self._settings.timeout, max_retries=0
        ) as self._client:
            yield

    async def complete(self, body: dict[str, Any]) -> CachedReply:
        """Raises LlmFailed where no other request would fare better, EndpointError where this one has no answer."""
        tries = AsyncRetrying(
            sleep=self._sleep,
            wait=self._wait,
            stop=stop_after_attempt(self._settings.max_tries),
            reraise=True,
            retry=retry_if_exception(lambda error: isinstance(error, EndpointError) and error.kind is Kind.TRANSIENT),
        )
        return await tries(self._in_turn, body)

    @staticmethod
    def _wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = isinstance(error, EndpointError) and error.retry_after is not None
        return 0.0 if asked else BACKOFF(state)  # a pause that it asks for is kept by all requests

    async def _in_turn(self, body: dict[str, Any]) -> CachedReply:
        async with self._first:
            if not self._tried:
                try:
                    return await self._agreed(body)
                finally:
                    self._tried = True
        return await self._agreed(body)

    async def _agreed(self, body: dict[str, Any]) -> CachedReply:
        """The reply to the request in the fullest wording that the endpoint takes."""
        without = known = self.without
        guesses = iter(() if self._proven else GUESSES)
        while True:
            sent = worded(body, without)
            try:
                paid = await self._send(sent, "response_format" not in body)
            except EndpointError as error:
                if refused := named_feature(error, sent):
                    known, without = known | {refused}, without | {refused}
                elif error.kind is Kind.REFUSED and (guess := next_guess(body, sent, known, guesses)):
                    without = guess
                else:
                    raise self._final(error) from None
            else:
                self.without, self._proven = self.without | without, True
                return paid

    def _final(self, error: EndpointError) -> EndpointError | LlmFailed:
        """What the error comes to. What would meet all requests is kept, and ends them; a pause is kept by all."""
        settings, pause, here = self._settings, error.retry_after, self._settings.SECTION_NAME
        again = "then start the same run again: what is answered is kept"
        match error.kind:
            case Kind.NO_MONEY:
                ends = f"the account at {settings.url} has no money ({error.text}); top it up, {again}"
            case Kind.KEY:
                ends = f"{settings.url} refuses the key ({error.text}); set {settings.key_variable}"
            case Kind.MODEL:
                ends = (
                    f"{settings.url} knows no model {settings.model!r} ({error.text}); correct {here}.url or "
                    f"{here}.model"
                )
            case Kind.TRANSIENT if pause and pause > settings.max_retry_after:
                until = datetime.fromtimestamp(min(self._clock() + pause, LATEST), UTC)
                ends = (
                    f"{settings.url} asks to be left alone for {pause:.0f} s, until {until:%Y-%m-%d %H:%M} UTC "
                    f"({error.text}); {here}.max_retry_after allows {settings.max_retry_after:g} s; raise it, or wait, "
                    f"{again}"
                )
            case _:
                if pause:
                    LOG.warning("%s asks to be left alone for %.0f s", settings.url, pause)
                    self._quiet_until = max(self._quiet_until, self._clock() + pause)
                return error
        self._failed = LlmFailed(ends)
        return self._failed

    async def _send(self, sent: dict[str, Any], with_thinking: bool) -> CachedReply:
        if (pause := self._quiet_until - self._clock()) > 0:
            await self._sleep(pause)
        if self._failed:
            raise self._failed
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**sent)
        except openai.APIStatusError as error:
            raise self._error(error.status_code, error.response.headers, error.response.content) from None
        except openai.APITimeoutError:
            raise EndpointError(Kind.TRANSIENT, f"no reply within {self._settings.timeout:g} s") from None
        except openai.OpenAIError as error:
            raise EndpointError(Kind.TRANSIENT, one_line(str(error.__cause__ or error), self._key)) from None
        inside = error_inside(json_body(raw.content))
        if inside:
            raise self._error(inside[0], raw.headers, inside[1])
        try:
            return parse_chat_reply(raw.content, with_thinking)
        except ValueError:
            start = one_line(raw.content[:200].decode(errors="replace"), self._key)
            text = f"{self._settings.url} answers with what is no reply of a chat: {start or 'nothing'}"
            raise EndpointError(Kind.NO_CHAT, text) from None

    def _error(self, status: int, headers: Mapping[str, str], content: bytes) -> EndpointError:
        return error_of(status, headers, content, self._clock(), self._key)
