"""Two served models that answer a question together, each turn as it is spoken (Long⊗Short, papers, section C.4).

Knows: vLLM's streamed completions, the protocol. Must not know: who started the servers, who listens.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from conf.errors import ReadableError
from conf.sampling import Sampling
from models.inference.dialogue_sampler import DialogueState, TurnCodec
from models.inference.engine import Completion
from reasoning.dialogue import STOPS, Dialogue, Speaker, settled_text
from reasoning.records import Problem, TextPart


class BackendDown(ReadableError):
    """A server of the two does not answer."""


class TooLong(ReadableError):
    """A question that leaves no room for a dialogue."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where one of the models is served, and what it is called there."""

    url: str
    name: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a turn; a turn's first piece is its own."""

    speaker: Speaker
    text: str
    begins: bool = False


@dataclass(frozen=True, slots=True)
class DialogueDone:
    """A dialogue that is over."""

    state: DialogueState
    prompt_tokens: int
    """Shown to both models, turn by turn."""


@dataclass(frozen=True, slots=True)
class _Piece:
    token_ids: tuple[int, ...]
    finished: bool | None
    """None while more is to come; False: cut at its limit."""


class TwoModelClient:
    """Use as an asynchronous context manager."""

    def __init__(
        self,
        codec: TurnCodec,
        backends: Mapping[Speaker, Backend],
        sampling: Sampling,
        context: int,
        timeout: float,
        key: str = "",
    ):
        """`context`: tokens of the servers' longest prompt and completion; `timeout`: seconds of silence after which a
        server counts as gone; `key`: their API key."""
        self._context = context
        self._codec, self._backends, self._sampling = codec, backends, sampling
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        self._client = httpx.AsyncClient(headers=headers, limits=limits, timeout=httpx.Timeout(timeout, connect=5))

    async def __aenter__(self) -> TwoModelClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def stream_dialogue(self, question: str) -> AsyncIterator[TextDelta | DialogueDone]:
        """Pieces of the turns as they are spoken, and at last the whole. Raises BackendDown, TooLong."""
        problem = Problem(id="", prompt=(TextPart(text=question),), answer="")
        prompts, state = self._codec.prompts(problem), DialogueState(Dialogue(self._codec.max_rounds))
        room = self._context - self._codec.longest
        if max(map(len, prompts.values())) > room:
            raise TooLong(f"the question is too long: with its role it may hold {room} tokens")
        while not state.dialogue.is_over:
            speaker, token_ids, text, told = state.dialogue.next_speaker, (), "", ""
            shown = prompts[speaker] + state.token_ids + self._codec.turn_prefix(state.dialogue)
            finished, listen = False, self._codec.stream_decoder()
            yield TextDelta(speaker, "", begins=True)
            async for piece in self._stream_turn(speaker, shown):
                token_ids += piece.token_ids
                finished = bool(piece.finished)
                text += listen(piece.token_ids)
                heard = "" if state.dialogue.must_answer else settled_text(text)
                if heard.startswith(told) and heard != told:
                    yield TextDelta(speaker, heard[len(told) :])
                    told = heard
            state = state.with_turn(self._codec.decode_turn(state.dialogue, Completion(token_ids, finished)))
            yield TextDelta(speaker, state.dialogue.turns[-1].text[len(told) :])
        calls = (call for one in Speaker for call in state.calls(one, len(prompts[one])))
        yield DialogueDone(state, sum(call.prompt_tokens for call in calls))

    async def unhealthy(self) -> str | None:
        """What is wrong with a server; None while both are well."""
        for speaker, backend in self._backends.items():
            try:
                reply = await self._client.get(f"{backend.url}/health", timeout=5)
                well = reply.status_code == 200
            except httpx.HTTPError:
                well = False
            if not well:
                return f"the {speaker}-thought model's server at {backend.url} does not answer"
        return None

    async def _stream_turn(self, speaker: Speaker, prompt: tuple[int, ...]) -> AsyncIterator[_Piece]:
        backend = self._backends[speaker]
        body = {
            "model": backend.name,
            "prompt": prompt,
            "stream": True,
            "return_token_ids": True,
            **self._sampling.request,
            "max_tokens": self._codec.max_turn_tokens,
            "stop": STOPS,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        }
        try:
            async with self._client.stream("POST", f"{backend.url}/v1/completions", json=body) as reply:
                if reply.status_code != 200:
                    told = (await reply.aread()).decode(errors="replace")[:200]
                    raise BackendDown(f"the {speaker}-thought model's server: status {reply.status_code}: {told}")
                ended = False
                async for line in reply.aiter_lines():
                    if line.startswith("data: {"):
                        piece = _piece(line.removeprefix("data: "))
                        ended = ended or piece.finished is not None
                        yield piece
        except httpx.HTTPError as error:
            raise BackendDown(f"the {speaker}-thought model's server at {backend.url}: {error!r}") from None
        if not ended:
            raise BackendDown(f"the {speaker}-thought model's server at {backend.url} broke off")


def _piece(line: str) -> _Piece:
    """Raises BackendDown for what is no piece: an error that came when the stream had begun, half a line, the end of a
    turn that was given up."""
    try:
        told: dict[str, Any] = json.loads(line)
    except ValueError:
        told = {}
    choices = told.get("choices")
    if not choices:
        raise BackendDown(f"a server sent no completion: {line[:200]}")
    reason = choices[0].get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise BackendDown(f"a server gave a turn up: {reason!r}")
    return _Piece(tuple(choices[0].get("token_ids") or ()), None if reason is None else reason == "stop")
