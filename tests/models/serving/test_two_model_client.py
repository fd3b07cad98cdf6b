"""Two models behind one endpoint: what the official client sees, also where one is gone."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from openai import AsyncOpenAI, OpenAI

from conf.sampling import Sampling
from models.inference.dialogue_sampler import TurnCodec
from models.serving import openai_server
from models.serving.openai_server import create_app
from models.serving.two_model_client import Backend, TwoModelClient
from reasoning.dialogue import Speaker
from tests.models.spoken import MODEL, PROTOCOL, Vllm, answer, think


@pytest.fixture
def backends() -> Iterator[dict[Speaker, Vllm]]:
    servers = {Speaker.LONG: Vllm(think), Speaker.SHORT: Vllm(answer)}
    yield servers
    for server in servers.values():
        server.close()


class Listening(uvicorn.Server):
    """Says when it can be asked."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@pytest.fixture
def url(backends: dict[Speaker, Vllm]) -> Iterator[str]:
    named = {speaker: Backend(server.url, "policy") for speaker, server in backends.items()}
    client = TwoModelClient(TurnCodec(MODEL, PROTOCOL), named, Sampling(), context=2048, timeout=20)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Listening(uvicorn.Config(create_app(client), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.ready.wait(20)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


def client(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key="none", max_retries=0)


ASK: Any = {"model": "long-short", "messages": [{"role": "user", "content": "Ann has 4."}]}
REASONING = "\n[long] \nStart with 4.\n\n[short] \nIt is 4?\n\n[long] \nWait, 4 < 5.\n"


def test_a_plain_reply(url: str, backends: dict[Speaker, Vllm]):
    reply = client(url).chat.completions.create(**ASK)
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("The answer is \\boxed{4}.", "stop")
    assert choice.message.model_dump()["reasoning_content"] == REASONING
    shown = [len(MODEL.encode(prompt)) for server in backends.values() for prompt in server.asked]
    assert reply.usage
    # The end tokens of earlier turns stand in a prompt, and not in its text: 0, 1, 2 and 3 of them.
    assert reply.usage.prompt_tokens == sum(shown) + 6
    drawn = [think(""), answer(""), think("</rethink>"), answer("</rethink>")]
    assert reply.usage.completion_tokens == sum(len(MODEL.encode(turn)) + 1 for turn in drawn)


def test_a_streamed_reply(url: str):
    chunks = list(client(url).chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks if chunk.choices]
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert "".join(delta.get("content") or "" for delta in deltas) == "The answer is \\boxed{4}."
    assert reasoning == REASONING + "\n[short] \nThe answer is \\boxed{4}.\n"
    assert len(deltas) > 20  # as it is spoken, not turn by turn
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_what_never_ends_is_made_to_answer(url: str, backends: dict[Speaker, Vllm]):
    backends[Speaker.SHORT].script = lambda prompt: " 4}. More" if prompt.endswith("{") else "\nAgain.\n</rethink>"
    reply = client(url).chat.completions.create(**ASK)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("The answer is \\boxed{ 4}", "length")


def test_32_at_once(url: str):
    async def ask_all() -> list[str | None]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as one:
            replies = await asyncio.gather(*(one.chat.completions.create(**ASK) for _ in range(32)))
        return [reply.choices[0].message.content for reply in replies]

    assert asyncio.run(ask_all()) == ["The answer is \\boxed{4}."] * 32


@pytest.mark.parametrize("gone", Speaker)
@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_backend_is_a_clean_503(url: str, backends: dict[Speaker, Vllm], gone: Speaker, stream: bool):
    backends[gone].close()
    if stream and gone is Speaker.SHORT:  # the first turn has been told by then
        with pytest.raises(openai.APIError, match="short-thought model's server"):
            list(client(url).chat.completions.create(**ASK, stream=True))
        return
    with pytest.raises(openai.InternalServerError) as caught:
        client(url).chat.completions.create(**ASK, stream=stream)
    assert caught.value.status_code == 503
    assert f"the {gone}-thought model's server" in caught.value.message


def test_a_turn_that_a_backend_gives_up_is_no_turn(url: str, backends: dict[Speaker, Vllm]):
    backends[Speaker.SHORT].ends_with = "abort"
    with pytest.raises(openai.InternalServerError, match="gave a turn up: 'abort'"):
        client(url).chat.completions.create(**ASK)


def test_a_backend_that_breaks_off_is_told(url: str, backends: dict[Speaker, Vllm]):
    backends[Speaker.SHORT].script = lambda prompt: None
    with pytest.raises(openai.InternalServerError, match="broke off"):
        client(url).chat.completions.create(**ASK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "gpt-4"}, "model: Input should be 'long-short'"),
        ({"temperature": 0.1}, "temperature: Extra inputs are not permitted"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "role: Input should be 'user'"),
        ({"n": 2}, "n: Input should be 1"),
        ({"stream_options": {"include_usage": True}}, "no effect without stream"),
        ({"messages": [{"role": "user", "content": "Ann has 4. " * 500}]}, "the question is too long"),
    ],
)
def test_what_cannot_be_done_is_refused(url: str, change: dict[str, Any], words: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client(url).chat.completions.create(**{**ASK, **change})
    assert words in caught.value.message


def test_nothing_more_is_drawn_for_a_client_that_has_gone(
    url: str, backends: dict[Speaker, Vllm], monkeypatch: pytest.MonkeyPatch
):
    noticed, go, said = threading.Event(), threading.Event(), threading.Event()
    results: list[object] = []

    def slow(prompt: str) -> str:
        go.wait(20)
        said.set()
        return think(prompt)

    async def told(*arguments: Any) -> Any:
        results.append(await unless_gone(*arguments))
        noticed.set()
        return results[-1]

    unless_gone = openai_server._while_connected
    monkeypatch.setattr(openai_server, "_while_connected", told)
    backends[Speaker.LONG].script = slow
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=0.2) as one, pytest.raises(openai.APITimeoutError):
        one.chat.completions.create(**ASK)
    assert noticed.wait(20)
    assert results == [None]
    go.set()
    assert said.wait(20)
    # One that went on would have asked the answerer before this one has asked twice, and is through.
    backends[Speaker.LONG].script = think
    client(url).chat.completions.create(**ASK)
    assert len(backends[Speaker.SHORT].asked) == 2


def test_health_is_that_of_both_servers(url: str, backends: dict[Speaker, Vllm]):
    root = url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    backends[Speaker.SHORT].close()
    reply = httpx.get(f"{root}/health")
    assert reply.status_code == 503
    assert "short-thought model's server" in reply.json()["error"]["message"]
