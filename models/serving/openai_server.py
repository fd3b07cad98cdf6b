"""An OpenAI-compatible endpoint, `/v1/chat/completions`, for a pair of models.

The answerer's last turn is the message; all turns before it are the reasoning. In a stream, every turn is sent as
reasoning, since it is not known yet which is the last; the message follows at the end. Unsupported requests are
rejected with the reason; no parameter is silently ignored.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Literal, Self

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.inference.dialogue_sampler import DialogueState
from models.serving.two_model_client import BackendDown, DialogueDone, TextDelta, TooLong, TwoModelClient
from reasoning.dialogue import Speaker, Turn

NAME = "long-short"
POLL_INTERVAL = 1.0
"""Seconds between two checks whether the client is still connected."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["user"]
    content: Annotated[str, Field(min_length=1)]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request with one question. Sampling parameters and limits are fixed to those of the evaluation."""

    model_config = ConfigDict(extra="forbid")
    model: Literal["long-short"]
    messages: Annotated[tuple[_Part, ...], Field(min_length=1, max_length=1)]
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: Literal[1] = 1

    @model_validator(mode="after")
    def _no_unused_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options has no effect without stream")
        return self


def create_app(client: TwoModelClient) -> FastAPI:
    """The app. Errors follow OpenAI's format: 400 for invalid requests, 503 if a backend is down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        details = (f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors())
        return _error(400, "invalid_request_error", "; ".join(details))

    @app.exception_handler(BackendDown)
    async def backend_down(_: Request, error: BackendDown) -> JSONResponse:
        return _error(503, "service_unavailable", str(error))

    @app.exception_handler(TooLong)
    async def too_long(_: Request, error: TooLong) -> JSONResponse:
        return _error(400, "invalid_request_error", str(error))

    @app.get("/health")
    async def health() -> JSONResponse:
        reason = await client.unhealthy()
        return _error(503, "service_unavailable", reason) if reason else JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": NAME, "object": "model", "created": 0, "owned_by": "brevity"}]}

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(chat: ChatRequest, request: Request) -> dict[str, Any] | Response:
        pieces = client.stream_dialogue(chat.messages[0].content)
        if not chat.stream:
            done = await _while_connected(request, pieces)
            return _reply(done) if done else Response(status_code=499)
        # The response starts after the first piece, so that a dead backend is reported by status.
        first = [await anext(pieces), await anext(pieces)]
        wants_usage = chat.stream_options is not None and chat.stream_options.include_usage
        return StreamingResponse(_streamed(first, pieces, wants_usage), media_type="text/event-stream")

    return app


async def _while_connected(request: Request, pieces: AsyncIterator[TextDelta | DialogueDone]) -> DialogueDone | None:
    """Waits for the end of the dialogue. None if the client disconnects; sampling then stops."""

    async def last_piece() -> TextDelta | DialogueDone:
        return [piece async for piece in pieces][-1]

    task = asyncio.create_task(last_piece())
    while not task.done():
        await asyncio.wait({task}, timeout=POLL_INTERVAL)
        if not task.done() and await request.is_disconnected():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return None
    done = task.result()
    assert isinstance(done, DialogueDone)
    return done


def _error(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


def _reply(done: DialogueDone) -> dict[str, Any]:
    *before, last = done.state.dialogue.turns
    message = {"role": "assistant", "content": last.text.strip(), "reasoning_content": "".join(map(_turn_json, before))}
    return {
        **_frame("chat.completion"),
        "usage": _usage(done),
        "choices": [{"index": 0, "message": message, "finish_reason": _reason(done.state), "logprobs": None}],
    }


def _frame(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": NAME}


def _reason(state: DialogueState) -> str:
    """The finish reason; a forced answer counts as cut by length."""
    return "length" if state.dialogue.hit_cap else "stop"


def _usage(done: DialogueDone) -> dict[str, int]:
    prompt, sampled = done.prompt_tokens, done.state.sampled_tokens
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


async def _streamed(
    first: list[TextDelta | DialogueDone], rest: AsyncIterator[TextDelta | DialogueDone], with_usage: bool
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
                yield event({"content": piece.state.dialogue.turns[-1].text.strip()})
                yield event({}, _reason(piece.state))
                if with_usage:
                    yield f"data: {json.dumps({**frame, 'choices': [], 'usage': _usage(piece)})}\n\n"
        yield "data: [DONE]\n\n"
    except BackendDown as error:
        yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'service_unavailable'}})}\n\n"


def _delta_of(piece: TextDelta | DialogueDone) -> str:
    assert isinstance(piece, TextDelta)
    return _speaker_label(piece.speaker) if piece.begins else piece.text


def _turn_json(turn: Turn) -> str:
    """A turn as it appears in the reasoning, streamed or not."""
    return _speaker_label(turn.speaker) + turn.text


def _speaker_label(speaker: Speaker) -> str:
    return f"\n[{speaker}] "
