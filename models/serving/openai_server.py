"""An OpenAI-compatible endpoint, `/v1/chat/completions`, for a pair of models.

The answerer's last turn is the message; all turns before it are the reasoning. In a stream, every turn is sent as
reasoning, since it is not known yet which is the last; the message follows at the end. Parameters that have no effect
are named in the response's header `x-brevity-ignored`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from models.serving.chat_requests import NAME, Ask, ChatRequest, cut_at
from models.serving.two_model_client import (
    BackendDown,
    DialogueDone,
    Rejected,
    TextDelta,
    TooLong,
    TwoModelClient,
    with_seed_after,
)
from reasoning.dialogue import Speaker, Turn

IGNORED = "x-brevity-ignored"
MODEL_CARD = {"id": NAME, "object": "model", "created": 0, "owned_by": "brevity"}
SEEDS_OF_CHOICE = 1000
"""From the seed of a choice to that of the next; more than a dialogue has turns."""
MAX_BODY = 8_000_000
"""Bytes of a request."""
POLL_INTERVAL = 1.0
"""Seconds between two checks whether the client is still connected."""


def create_app(
    client: TwoModelClient, key: str = "", takes_seed: bool = True, hosts: Sequence[str] = ("*",)
) -> FastAPI:
    """The app. Errors follow OpenAI's format: 400 for invalid requests, 503 if a backend is down.

    `key`: what clients must send as their API key; empty: anything. `takes_seed`: whether the backends honour a seed.
    `hosts`: names under which it may be asked, so that no name of somebody else's leads a browser here (DNS rebinding).
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Doorkeeper, key=key)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    _add_errors(app)

    @app.get("/health")
    async def health() -> JSONResponse:
        reason = await client.unhealthy()
        return _error(503, "service_unavailable", reason) if reason else JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [MODEL_CARD]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> JSONResponse:
        return JSONResponse(MODEL_CARD) if name == NAME else _unknown_model(name)

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(chat: ChatRequest, request: Request) -> Response:
        if chat.model != NAME:
            return _unknown_model(chat.model)
        ask, ignored = chat.ask(), chat.ignored
        if not takes_seed and ask.sampling.pop("seed", None) is not None:
            ignored = sorted([*ignored, "seed"])
        headers = {IGNORED: ", ".join(ignored)} if ignored else {}
        dialogues = [
            client.stream_dialogue(ask.question, with_seed_after(ask.sampling, SEEDS_OF_CHOICE * index), ask.max_tokens)
            for index in range(chat.n or 1)
        ]
        if chat.stream:
            # The response starts after the first piece, so that a dead backend is reported by status.
            first = [await anext(dialogues[0]), await anext(dialogues[0])]
            events = _streamed(first, dialogues[0], ask, chat.wants_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        done = await _while_connected(request, dialogues)
        return JSONResponse(_reply(done, ask), headers=headers) if done else Response(status_code=499)

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        places = [".".join(map(str, item["loc"][1:])) or "request" for item in error.errors()]
        details = (f"{place}: {item['msg']}" for place, item in zip(places, error.errors(), strict=True))
        return _error(400, "invalid_request_error", "; ".join(details))

    @app.exception_handler(BackendDown)
    async def backend_down(_: Request, error: BackendDown) -> JSONResponse:
        return _error(503, "service_unavailable", str(error))

    @app.exception_handler(Rejected)
    async def rejected(_: Request, error: Rejected) -> JSONResponse:
        return _error(400, "invalid_request_error", str(error))

    @app.exception_handler(TooLong)
    async def too_long(_: Request, error: TooLong) -> JSONResponse:
        return _error(400, "invalid_request_error", str(error), "context_length_exceeded")


class _Doorkeeper:
    """Lets requests pass that have the key, and those for the health; of others nothing is read. Bodies are bounded."""

    def __init__(self, app: ASGIApp, key: str):
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self._key and scope["path"] != "/health" and not hmac.compare_digest(given.encode(), self._key.encode()):
            return _error(401, "invalid_request_error", "wrong API key", "invalid_api_key")
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > MAX_BODY:
            return _error(413, "invalid_request_error", f"a body has a length, of at most {MAX_BODY} bytes")
        return None


async def _while_connected(
    request: Request, dialogues: Sequence[AsyncIterator[TextDelta | DialogueDone]]
) -> list[DialogueDone] | None:
    """Waits for the end of the dialogues. None if the client disconnects; sampling then stops."""

    async def last_piece(pieces: AsyncIterator[TextDelta | DialogueDone]) -> DialogueDone:
        last = [piece async for piece in pieces][-1]
        assert isinstance(last, DialogueDone)
        return last

    async def all_done() -> list[DialogueDone]:
        async with asyncio.TaskGroup() as group:  # the first failure ends the others
            tasks = [group.create_task(last_piece(pieces)) for pieces in dialogues]
        return [task.result() for task in tasks]

    task = asyncio.create_task(all_done())
    while not task.done():
        await asyncio.wait({task}, timeout=POLL_INTERVAL)
        if not task.done() and await request.is_disconnected():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return None
    try:
        return task.result()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _error(status: int, kind: str, message: str, code: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def _unknown_model(name: str) -> JSONResponse:
    message = f"the model {name!r} does not exist; this endpoint serves {NAME!r}"
    return _error(404, "invalid_request_error", message, "model_not_found")


def _reply(dialogues: Sequence[DialogueDone], ask: Ask) -> dict[str, Any]:
    choices = [_choice(index, done, ask) for index, done in enumerate(dialogues)]
    return {**_frame("chat.completion"), "usage": _usage(dialogues), "choices": choices}


def _choice(index: int, done: DialogueDone, ask: Ask) -> dict[str, Any]:
    turns = done.state.dialogue.turns
    before = turns if done.is_cut else turns[:-1]
    content, reason = _message(done, ask)
    message = {"role": "assistant", "content": content, "reasoning_content": "".join(map(_turn_json, before))}
    return {"index": index, "message": message, "finish_reason": reason, "logprobs": None}


def _message(done: DialogueDone, ask: Ask) -> tuple[str, str]:
    """The message, and the finish reason. Without an answer it is empty; a forced one counts as cut by length."""
    if done.is_cut:
        return "", "length"
    content, is_stopped = cut_at(done.state.dialogue.turns[-1].text.strip(), ask.stops)
    return content, "length" if done.state.dialogue.hit_cap and not is_stopped else "stop"


def _frame(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": NAME}


def _usage(dialogues: Sequence[DialogueDone]) -> dict[str, int]:
    prompt = sum(done.prompt_tokens for done in dialogues)
    sampled = sum(done.state.sampled_tokens for done in dialogues)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


async def _streamed(
    first: list[TextDelta | DialogueDone], rest: AsyncIterator[TextDelta | DialogueDone], ask: Ask, with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events. Errors can only be reported as an event here."""
    frame = _frame("chat.completion.chunk")

    def event(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps({**frame, 'choices': [choice]})}\n\n"

    yield event({"role": "assistant", "content": ""})
    try:
        for piece in first:
            yield event({"reasoning_content": _delta_of(piece)})
        async for piece in rest:
            if isinstance(piece, TextDelta):
                yield event({"reasoning_content": _delta_of(piece)})
            else:
                content, reason = _message(piece, ask)
                yield event({"content": content})
                yield event({}, reason)
                if with_usage:
                    yield f"data: {json.dumps({**frame, 'choices': [], 'usage': _usage([piece])})}\n\n"
        yield "data: [DONE]\n\n"
    except (BackendDown, Rejected) as error:
        yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'service_unavailable'}})}\n\n"


def _delta_of(piece: TextDelta | DialogueDone) -> str:
    assert isinstance(piece, TextDelta)
    return _speaker_label(piece.speaker) if piece.begins else piece.text


def _turn_json(turn: Turn) -> str:
    """A turn as it appears in the reasoning, streamed or not."""
    return _speaker_label(turn.speaker) + turn.text


def _speaker_label(speaker: Speaker) -> str:
    return f"\n[{speaker}] "
