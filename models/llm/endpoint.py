"""A chat endpoint: requests in the form that it accepts, with retries of transient errors.

Requests are sent one at a time until the first is answered. So each unsupported feature is found only once, and a wrong
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
from models.llm.protocol import GUESSES, Features, adapted, named_feature, next_guess
from models.llm.reply_parsing import json_body, parse_chat_reply
from models.llm.reply_store import CachedReply

LOG = logging.getLogger(__name__)
BACKOFF = wait_exponential_jitter(initial=1, max=60)
AROUND_KEYS = "[\\s\"'`\u2018-\u201f\u00ab\u00bb\u2039\u203a\u200b\ufeff]+"
"""Characters that surround a copied key: blanks, line message, quotes, byte order marks."""
LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class LlmFailed(ReadableError):
    """The endpoint cannot be used with its current settings."""


def key_in(variable: str) -> str:
    """The API key in an environment variable; empty if unset. Raises LlmFailed, whose message does not show the key."""
    key = re.sub(f"^{AROUND_KEYS}|{AROUND_KEYS}$", "", os.environ.get(variable, ""))
    if not re.fullmatch("[!-~]*", key):
        raise LlmFailed(
            f"{variable} holds no key: a key has no blanks and only ASCII characters; set it to the key alone"
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
        """Features that the endpoint does not support."""
        self._has_answered = False
        """Whether it has answered a request."""
        self._paused_until = 0.0
        """No request is sent before this time, seconds since 1970."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Opens the client within one event loop."""
        self._first, self._first_is_done, self._failed = asyncio.Lock(), self._has_answered, None
        async with AsyncOpenAI(
            base_url=self._settings.url, api_key=self._key or "none", timeout=self._settings.timeout, max_retries=0
        ) as self._client:
            yield

    async def complete(self, body: dict[str, Any]) -> CachedReply:
        """Sends a request. Raises LlmFailed for errors that would also fail all other requests, EndpointError for
        others."""
        tries = AsyncRetrying(
            sleep=self._sleep,
            wait=self._wait,
            stop=stop_after_attempt(self._settings.max_tries),
            reraise=True,
            retry=retry_if_exception(lambda error: isinstance(error, EndpointError) and error.kind is Kind.TRANSIENT),
        )
        return await tries(self._send_in_turn, body)

    @staticmethod
    def _wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        has_pause = isinstance(error, EndpointError) and error.retry_after is not None
        return 0.0 if has_pause else BACKOFF(state)  # `_send` keeps a requested pause, for all requests

    async def _send_in_turn(self, body: dict[str, Any]) -> CachedReply:
        async with self._first:
            if not self._first_is_done:
                try:
                    return await self._send_supported(body)
                finally:
                    self._first_is_done = True
        return await self._send_supported(body)

    async def _send_supported(self, body: dict[str, Any]) -> CachedReply:
        """Sends the request with as many features as the endpoint supports."""
        without = known = self.without
        guesses = iter(() if self._has_answered else GUESSES)
        while True:
            sent = adapted(body, without)
            try:
                reply = await self._send(sent, "response_format" not in body)
            except EndpointError as error:
                if refused := named_feature(error, sent):
                    known, without = known | {refused}, without | {refused}
                elif error.kind is Kind.REFUSED and (guess := next_guess(body, sent, known, guesses)):
                    without = guess
                else:
                    raise self._final(error) from None
            else:
                self.without, self._has_answered = self.without | without, True
                return reply

    def _final(self, error: EndpointError) -> EndpointError | LlmFailed:
        """The error to raise. An error that affects all requests is remembered and fails them all; a requested pause
        delays them all."""
        settings, pause, here = self._settings, error.retry_after, self._settings.SECTION_NAME
        again = "then start the same run again: replies are kept"
        match error.kind:
            case Kind.NO_MONEY:
                message = f"the account at {settings.url} has no money ({error.text}); top it up, {again}"
            case Kind.KEY:
                message = f"{settings.url} refuses the key ({error.text}); set {settings.key_variable}"
            case Kind.MODEL:
                message = (
                    f"{settings.url} knows no model {settings.model!r} ({error.text}); correct {here}.url or "
                    f"{here}.model"
                )
            case Kind.TRANSIENT if pause and pause > settings.max_retry_after:
                until = datetime.fromtimestamp(min(self._clock() + pause, LATEST), UTC)
                message = (
                    f"{settings.url} asks for a pause of {pause:.0f} s, until {until:%Y-%m-%d %H:%M} UTC "
                    f"({error.text}); {here}.max_retry_after allows {settings.max_retry_after:g} s; raise it, or wait, "
                    f"{again}"
                )
            case _:
                if pause:
                    LOG.warning("%s asks for a pause of %.0f s", settings.url, pause)
                    self._paused_until = max(self._paused_until, self._clock() + pause)
                return error
        self._failed = LlmFailed(message)
        return self._failed

    async def _send(self, sent: dict[str, Any], with_thinking: bool) -> CachedReply:
        if (pause := self._paused_until - self._clock()) > 0:
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
            text = f"{self._settings.url} answers with something other than a chat reply: {start or 'nothing'}"
            raise EndpointError(Kind.NO_CHAT, text) from None

    def _error(self, status: int, headers: Mapping[str, str], content: bytes) -> EndpointError:
        return error_of(status, headers, content, self._clock(), self._key)
