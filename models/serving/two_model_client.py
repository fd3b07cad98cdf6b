"""A client that runs a dialogue of two served models and streams its turns (Long⊗Short, arXiv 2505.11827)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from conf.errors import ReadableError
from conf.sampling import Sampling
from models.inference.connections import async_client
from models.inference.dialogue_sampler import DialogueState, TurnCodec
from models.inference.engine import Completion
from reasoning.dialogue import STOPS, Dialogue, Speaker, settled_text
from reasoning.records import Problem, TextPart
from reasoning.token_ids import TokenIds

MAX_SEED = 2**63
"""Seeds of vLLM are below."""
EMPTY: Mapping[str, float] = {}


class BackendDown(ReadableError):
    """One of the two servers does not respond."""


class Rejected(ReadableError):
    """A server refuses the parameters of a request."""


class TooLong(ReadableError):
    """The question leaves no room in the context for a dialogue."""


@dataclass(frozen=True, slots=True)
class Backend:
    """URL of a model's server, as `models.inference.connections` takes it, and the model's name there."""

    url: str
    name: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of a turn. Each turn starts with an empty piece."""

    speaker: Speaker
    text: str
    begins: bool = False


@dataclass(frozen=True, slots=True)
class DialogueDone:
    """The end of a dialogue."""

    state: DialogueState
    prompt_tokens: int
    """Prompt tokens of all turns of both models."""
    is_cut: bool = False
    """Whether the limit of tokens was reached before the dialogue was over."""


@dataclass(frozen=True, slots=True)
class _Piece:
    token_ids: TokenIds
    finished: bool | None
    """None if more tokens follow; False: truncated at max_tokens."""


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
        """`context`: the servers' max_model_len; `timeout`: seconds without data after which a server counts as down;
        `key`: the servers' API key."""
        self._context = context
        self._codec, self._backends, self._sampling = codec, backends, sampling
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
        options: Any = {"headers": headers, "timeout": httpx.Timeout(timeout, connect=5)}
        self._clients = {name: async_client(one.url, limits, **options) for name, one in backends.items()}

    async def __aenter__(self) -> TwoModelClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def stream_dialogue(
        self, question: str, sampling: Mapping[str, float] = EMPTY, max_tokens: int | None = None
    ) -> AsyncIterator[TextDelta | DialogueDone]:
        """Yields the pieces of all turns as they are sampled, then a DialogueDone.

        `sampling` replaces parameters of the evaluation; a seed is that of the first turn, the next has the next.
        `max_tokens`: of all turns together; the dialogue is cut there. Raises BackendDown, Rejected, TooLong.
        """
        problem = Problem(id="", prompt=(TextPart(text=question),), answer="")
        prompts, state = self._codec.prompts(problem), DialogueState(Dialogue(self._codec.max_rounds))
        max_prompt_tokens = self._context - self._codec.longest
        if max(map(len, prompts.values())) > max_prompt_tokens:
            raise TooLong(f"the question is too long: with its role prompt it may have {max_prompt_tokens} tokens")
        while not state.dialogue.is_over:
            limit = self._codec.max_turn_tokens
            if max_tokens is not None and (limit := min(limit, max_tokens - state.sampled_tokens)) <= 0:
                break
            speaker, token_ids, text, sent = state.dialogue.next_speaker, TokenIds(), "", ""
            prompt = prompts[speaker] + state.token_ids + self._codec.turn_prefix(state.dialogue)
            finished, decode = False, self._codec.stream_decoder()
            yield TextDelta(speaker, "", begins=True)
            turn = {**self._sampling.request, **with_seed_after(sampling, len(state.turns)), "max_tokens": limit}
            async for piece in self._stream_turn(speaker, prompt, turn):
                token_ids += piece.token_ids
                finished = bool(piece.finished)
                text += decode(piece.token_ids)
                settled = "" if state.dialogue.must_answer else settled_text(text)
                if settled.startswith(sent) and settled != sent:
                    yield TextDelta(speaker, settled[len(sent) :])
                    sent = settled
            state = state.with_turn(self._codec.decode_turn(state.dialogue, Completion(token_ids, finished)))
            yield TextDelta(speaker, state.dialogue.turns[-1].text[len(sent) :])
        calls = (call for one in Speaker for call in state.calls(one, len(prompts[one])))
        yield DialogueDone(state, sum(call.prompt_tokens for call in calls), not state.dialogue.is_over)

    async def unhealthy(self) -> str | None:
        """The problem of an unhealthy server; None if both are healthy."""
        for speaker, backend in self._backends.items():
            try:
                reply = await self._clients[speaker].get("/health", timeout=5)
                is_healthy = reply.status_code == 200
            except httpx.HTTPError:
                is_healthy = False
            if not is_healthy:
                return f"the {speaker}-thought model's server at {backend.url} does not respond"
        return None

    async def _stream_turn(
        self, speaker: Speaker, prompt: TokenIds, sampling: Mapping[str, float]
    ) -> AsyncIterator[_Piece]:
        backend = self._backends[speaker]
        body = {
            "model": backend.name,
            "prompt": prompt.tolist(),
            "stream": True,
            "return_token_ids": True,
            **sampling,
            "stop": STOPS,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        }
        try:
            async with self._clients[speaker].stream("POST", "/v1/completions", json=body) as reply:
                if reply.status_code != 200:
                    detail = (await reply.aread()).decode(errors="replace")[:200]
                    if reply.status_code == 400:
                        raise Rejected(f"the {speaker}-thought model's server refuses the request: {detail}")
                    raise BackendDown(f"the {speaker}-thought model's server: status {reply.status_code}: {detail}")
                ended = False
                async for line in reply.aiter_lines():
                    if line.startswith("data: {"):
                        piece = read_piece(line.removeprefix("data: "))
                        ended = ended or piece.finished is not None
                        yield piece
        except httpx.HTTPError as error:
            raise BackendDown(f"the {speaker}-thought model's server at {backend.url}: {error!r}") from None
        if not ended:
            raise BackendDown(f"the {speaker}-thought model's server at {backend.url} ended the stream early")


def with_seed_after(sampling: Mapping[str, float], offset: int) -> dict[str, float]:
    """The sampling with a seed of its own, if it has one: with one for all, equal prompts would repeat each other."""
    return {**sampling, "seed": (int(sampling["seed"]) + offset) % MAX_SEED} if "seed" in sampling else dict(sampling)


def read_piece(line: str) -> _Piece:
    """Parses one line of the stream. Raises BackendDown for an error after the start of the stream, an incomplete line,
    or an aborted turn."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        event = {}
    choices = event.get("choices")
    if not choices:
        raise BackendDown(f"a server sent no completion: {line[:200]}")
    reason = choices[0].get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise BackendDown(f"a server aborted a turn: {reason!r}")
    try:
        token_ids = TokenIds(choices[0].get("token_ids") or ())
    except (TypeError, OverflowError):
        raise BackendDown(f"a server sent no token ids: {line[:200]}") from None
    return _Piece(token_ids, None if reason is None else reason == "stop")
