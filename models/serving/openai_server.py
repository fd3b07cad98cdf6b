"""The two models behind one OpenAI-compatible endpoint, `/v1/chat/completions`.

Knows: the wire format of chat completions, plain and streamed. Must not know: the protocol of the two, who serves them.

The answerer's last turn is the message, all that was said before its reasoning. Streamed, every turn is reasoning while
it is spoken, since nobody knows yet which is the last; the message then follows whole.
What cannot be done as asked is refused with its reason: nothing that a client sets is ignored.
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
LOOK = 1.0
"""Seconds between two looks at whether a client that waits is still there."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["user"]
    content: Annotated[str, Field(min_length=1)]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request: one question. Sampling and limits are those that the models were examined with."""

    model_config = ConfigDict(extra="forbid")
    model: Literal["long-short"]
    messages: Annotated[tuple[_Part, ...], Field(min_length=1, max_length=1)]
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: Literal[1] = 1

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options has no effect without stream")
        return self


def create_app(client: TwoModelClient) -> FastAPI:
    """The endpoint. Errors read as OpenAI's do: 400 for what is not understood, 503 where a server is gone."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        told = (f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors())
        return _error(400, "invalid_request_error", "; ".join(told))

    @app.exception_handler(BackendDown)
    async def gone(_: Request, error: BackendDown) -> JSONResponse:
        return _error(503, "service_unavailable", str(error))

    @app.exception_handler(TooLong)
    async def overflow(_: Request, error: TooLong) -> JSONResponse:
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
        spoken = client.stream_dialogue(chat.messages[0].content)
        if not chat.stream:
            whole = await _while_connected(request, spoken)
            return _reply(whole) if whole else Response(status_code=499)
        # Nothing is promised before the first words are there: a server that is gone is then told as a status.
        first = [await anext(spoken), await anext(spoken)]
        wants_usage = chat.stream_options is not None and chat.stream_options.include_usage
        return StreamingResponse(_streamed(first, spoken, wants_usage), media_type="text/event-stream")

    return app


async def _while_connected(request: Request, spoken: AsyncIterator[TextDelta | DialogueDone]) -> DialogueDone | None:
    """The dialogue once it is over; None when the client has hung up before, and nothing more is drawn then."""

    async def last() -> TextDelta | DialogueDone:
        return [piece async for piece in spoken][-1]

    task = asyncio.create_task(last())
    while not task.done():
        await asyncio.wait({task}, timeout=LOOK)
        if not task.done() and await request.is_disconnected():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return None
    whole = task.result()
    assert isinstance(whole, DialogueDone)
    return whole


def _error(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


def _reply(whole: DialogueDone) -> dict[str, Any]:
    *before, last = whole.state.dialogue.turns
    message = {"role": "assistant", "content": last.text.strip(), "reasoning_content": "".join(map(_turn_json, before))}
    return {
        **_frame("chat.completion"),
        "usage": _usage(whole),
        "choices": [{"index": 0, "message": message, "finish_reason": _reason(whole.state), "logprobs": None}],
    }


def _frame(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": NAME}


def _reason(state: DialogueState) -> str:
    """An answer that was wrung from the answerer counts as cut at the limit."""
    return "length" if state.dialogue.hit_cap else "stop"


def _usage(whole: DialogueDone) -> dict[str, int]:
    prompt, drawn = whole.prompt_tokens, whole.state.sampled_tokens
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}


async def _streamed(
    first: list[TextDelta | DialogueDone], rest: AsyncIterator[TextDelta | DialogueDone], with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events. What goes wrong now can only be told as an event."""
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
    return _named(piece.speaker) if piece.begins else piece.text


def _turn_json(turn: Turn) -> str:
    """As it is heard while it is spoken."""
    return _named(turn.speaker) + turn.text


def _named(speaker: Speaker) -> str:
    return f"\n[{speaker}] "
