"""Two models behind one endpoint, as seen by the openai client, also when a backend is down."""

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
from models.processes import free_port
from models.serving import openai_server
from models.serving.openai_server import create_app
from models.serving.two_model_client import Backend, BackendDown, TwoModelClient, read_piece
from reasoning.dialogue import Speaker
from tests.models.spoken import MODEL, PROTOCOL, Vllm, answer, think


@pytest.fixture
def backends() -> Iterator[dict[Speaker, Vllm]]:
    servers = {Speaker.LONG: Vllm(think), Speaker.SHORT: Vllm(answer)}
    yield servers
    for server in servers.values():
        server.close()


class Listening(uvicorn.Server):
    """A server with an event that is set when it accepts requests."""

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
    port = free_port()
    server = Listening(uvicorn.Config(create_app(client), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.ready.wait(20)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


def client(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key="none", max_retries=0)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
ASK: Any = {"model": "long-short", "messages": [{"role": "user", "content": "Ann has 4."}]}
REASONING = "\n[long] \nStart with 4.\n\n[short] \nIt is 4?\n\n[long] \nWait, 4 < 5.\n"


def test_a_plain_reply(url: str, backends: dict[Speaker, Vllm]):
    reply = client(url).chat.completions.create(**ASK)
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("The answer is \\boxed{4}.", "stop")
    assert choice.message.model_dump()["reasoning_content"] == REASONING
    prompt_tokens = [len(MODEL.encode(prompt)) for server in backends.values() for prompt in server.asked]
    assert reply.usage
    # End tokens of earlier turns are in a prompt's ids but not in its text: 0, 1, 2 and 3 of them.
    assert reply.usage.prompt_tokens == sum(prompt_tokens) + 6
    sampled = [think(""), answer(""), think("</rethink>"), answer("</rethink>")]
    assert reply.usage.completion_tokens == sum(len(MODEL.encode(turn)) + 1 for turn in sampled)


def test_a_streamed_reply(url: str):
    chunks = list(client(url).chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks if chunk.choices]
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert "".join(delta.get("content") or "" for delta in deltas) == "The answer is \\boxed{4}."
    assert reasoning == REASONING + "\n[short] \nThe answer is \\boxed{4}.\n"
    assert len(deltas) > 20  # token by token, not turn by turn
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_dialogue_at_its_limit_is_forced_to_answer(url: str, backends: dict[Speaker, Vllm]):
    backends[Speaker.SHORT].script = lambda prompt: " 4}. More" if prompt.endswith("{") else "\nAgain.\n</rethink>"
    reply = client(url).chat.completions.create(**ASK)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("The answer is \\boxed{ 4}", "length")


def test_32_concurrent_requests(url: str):
    async def ask_all() -> list[str | None]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as one:
            replies = await asyncio.gather(*(one.chat.completions.create(**ASK) for _ in range(32)))
        return [reply.choices[0].message.content for reply in replies]

    assert asyncio.run(ask_all()) == ["The answer is \\boxed{4}."] * 32


@pytest.mark.parametrize("down", Speaker)
@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_backend_is_a_clean_503(url: str, backends: dict[Speaker, Vllm], down: Speaker, stream: bool):
    backends[down].close()
    if stream and down is Speaker.SHORT:  # the first turn has been sent by then
        with pytest.raises(openai.APIError, match="short-thought model's server"):
            list(client(url).chat.completions.create(**ASK, stream=True))
        return
    with pytest.raises(openai.InternalServerError) as caught:
        client(url).chat.completions.create(**ASK, stream=stream)
    assert caught.value.status_code == 503
    assert f"the {down}-thought model's server" in caught.value.message


def test_an_aborted_turn_is_an_error(url: str, backends: dict[Speaker, Vllm]):
    backends[Speaker.SHORT].ends_with = "abort"
    with pytest.raises(openai.InternalServerError, match="aborted a turn: 'abort'"):
        client(url).chat.completions.create(**ASK)


def test_a_stream_that_ends_early_is_an_error(url: str, backends: dict[Speaker, Vllm]):
    backends[Speaker.SHORT].script = lambda prompt: None
    with pytest.raises(openai.InternalServerError, match="ended the stream early"):
        client(url).chat.completions.create(**ASK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "the last message must be the user's"),
        ({"messages": [{"role": "user", "content": " "}]}, "the last message must be the user's, with a text"),
        ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "1"}]}, "messages.0.role: Input should be"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "parts of type image_url are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "parts of type [] are not supported"),
        ({"n": 2, "stream": True}, "n above 1 is not supported with stream"),
        ({"tools": [{"type": "function", "function": {"name": "add"}}]}, "tools is not supported: the models call no"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"messages": [{"role": "user", "content": "Ann has 4. " * 500}]}, "the question is too long"),
    ],
)
def test_unsupported_requests_are_refused(url: str, change: dict[str, Any], words: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client(url).chat.completions.create(**{**ASK, **change})
    assert words in caught.value.message


def test_another_model_is_not_found(url: str):
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-4' does not exist"):
        client(url).chat.completions.create(**{**ASK, "model": "gpt-4"})
    assert [model.id for model in client(url).models.list()] == ["long-short"]
    assert client(url).models.retrieve("long-short").id == "long-short"
    with pytest.raises(openai.NotFoundError):
        client(url).models.retrieve("gpt-4")


def test_sampling_parameters_reach_every_turn(url: str, backends: dict[Speaker, Vllm]):
    given = {"temperature": 0, "top_p": 0.5, "presence_penalty": 0.5, "frequency_penalty": None}
    client(url).chat.completions.create(**ASK, **given, seed=2**63 + 7, n=2)
    bodies = [body for server in backends.values() for body in server.bodies]
    assert {(body["temperature"], body["top_p"], body["presence_penalty"]) for body in bodies} == {(0, 0.5, 0.5)}
    assert not any("frequency_penalty" in body for body in bodies)
    # Four turns for each of two choices, with seeds of their own.
    assert sorted(body["seed"] for body in bodies) == [7, 8, 9, 10, 1007, 1008, 1009, 1010]


def test_without_parameters_the_evaluations_sampling_is_used(url: str, backends: dict[Speaker, Vllm]):
    client(url).chat.completions.create(**ASK)
    bodies = [body for server in backends.values() for body in server.bodies]
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(Sampling().temperature, 64)}
    assert not any("seed" in body for body in bodies)


def test_max_tokens_is_of_all_turns_together(url: str, backends: dict[Speaker, Vllm]):
    whole = client(url).chat.completions.create(**ASK)
    assert whole.usage
    first = len(MODEL.encode(think(""))) + 1
    cut = client(url).chat.completions.create(**ASK, max_tokens=first)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("", "length")
    assert cut.usage
    assert cut.usage.completion_tokens == first
    assert cut.choices[0].message.model_dump()["reasoning_content"] == "\n[long] \nStart with 4.\n"
    rest = client(url).chat.completions.create(**ASK, max_completion_tokens=whole.usage.completion_tokens)
    assert rest.choices == whole.choices
    # What is left for the last turn.
    assert backends[Speaker.SHORT].bodies[-1]["max_tokens"] == len(MODEL.encode(answer("</rethink>"))) + 1


def test_a_stop_ends_the_message(url: str):
    reply = client(url).chat.completions.create(**ASK, stop=["}", "\\boxed"])
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("The answer is ", "stop")
    reply = client(url).chat.completions.create(**ASK, stop="Question:")
    assert reply.choices[0].message.content == "The answer is \\boxed{4}."


def test_several_choices(url: str):
    reply = client(url).chat.completions.create(**ASK, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"The answer is \\boxed{4}."}
    one = client(url).chat.completions.create(**ASK)
    assert reply.usage
    assert one.usage
    assert reply.usage.total_tokens == 3 * one.usage.total_tokens


STRANGE = {"温度": 1, "a\r\nset-cookie: b": 2, "n" * 65: 3}
"""Names that may not stand in a header."""


@pytest.mark.parametrize("stream", [False, True])
def test_what_has_no_effect_is_named(url: str, stream: bool):
    given = {"user": "ann", "store": False, "logit_bias": {"1": 2}, "metadata": None, "extra_body": STRANGE}
    raw = client(url).chat.completions.with_raw_response.create(**ASK, **given, stream=stream)
    assert raw.headers["x-brevity-ignored"] == "logit_bias, store, user"
    raw = client(url).chat.completions.with_raw_response.create(**ASK, stream=stream)
    assert "x-brevity-ignored" not in raw.headers


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        ([("system", "Be exact."), ("user", "Ann has 4.")], "Be exact.\n\nAnn has 4."),
        ([("developer", "Be exact."), ("system", None), ("user", "Ann has 4.")], "Be exact.\n\nAnn has 4."),
        ([("user", [{"type": "text", "text": "Ann "}, {"type": "text", "text": "has 4."}])], "Ann has 4."),
        (
            [("user", "Ann has 4."), ("assistant", "4"), ("user", "And Bo?")],
            "User: Ann has 4.\n\nAssistant: 4\n\nUser: And Bo?",
        ),
    ],
)
def test_messages_become_one_question(
    url: str, backends: dict[Speaker, Vllm], messages: list[tuple[str, Any]], question: str
):
    given = [{"role": role, "content": content} for role, content in messages]
    client(url).chat.completions.create(**{**ASK, "messages": given})
    assert f"<|user|>{question}<|assistant|>" in backends[Speaker.LONG].asked[0]


def test_a_refused_parameter_is_the_clients_mistake(url: str, backends: dict[Speaker, Vllm]):
    backends[Speaker.LONG].status = 400
    with pytest.raises(openai.BadRequestError, match="the long-thought model's server refuses the request"):
        client(url).chat.completions.create(**ASK)
    backends[Speaker.LONG].status = 500
    with pytest.raises(openai.InternalServerError, match="status 500"):
        client(url).chat.completions.create(**ASK)


def test_a_body_without_an_end_is_not_read(url: str):
    def endless() -> Iterator[bytes]:
        yield b"{"

    assert httpx.post(f"{url}/chat/completions", content=endless()).status_code == 413
    large = b" " * (openai_server.MAX_BODY + 1)
    assert httpx.post(f"{url}/chat/completions", content=large).status_code == 413


def test_a_request_of_nulls_is_one_of_defaults(url: str):
    names = "temperature top_p max_tokens max_completion_tokens seed stop n stream stream_options tools logprobs user"
    given = dict.fromkeys([*names.split(), "response_format"])
    reply = httpx.post(f"{url}/chat/completions", json=ASK | given, timeout=20)
    assert reply.status_code == 200
    assert (
        reply.json()["choices"] == client(url).chat.completions.create(**ASK).model_dump(exclude_unset=True)["choices"]
    )
    assert "x-brevity-ignored" not in reply.headers


def test_sampling_stops_when_the_client_disconnects(
    url: str, backends: dict[Speaker, Vllm], monkeypatch: pytest.MonkeyPatch
):
    noticed, proceed, replied = threading.Event(), threading.Event(), threading.Event()
    results: list[object] = []

    def slow(prompt: str) -> str:
        proceed.wait(20)
        replied.set()
        return think(prompt)

    async def recorded(*arguments: Any) -> Any:
        results.append(await while_connected(*arguments))
        noticed.set()
        return results[-1]

    while_connected = openai_server._while_connected
    monkeypatch.setattr(openai_server, "_while_connected", recorded)
    backends[Speaker.LONG].script = slow
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=0.2) as one, pytest.raises(openai.APITimeoutError):
        one.chat.completions.create(**ASK)
    assert noticed.wait(20)
    assert results == [None]
    proceed.set()
    assert replied.wait(20)
    # A cancelled dialogue that continued would add a third request to the answerer before this one is done.
    backends[Speaker.LONG].script = think
    client(url).chat.completions.create(**ASK)
    assert len(backends[Speaker.SHORT].asked) == 2


def test_health_covers_both_servers(url: str, backends: dict[Speaker, Vllm]):
    root = url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    backends[Speaker.SHORT].close()
    reply = httpx.get(f"{root}/health")
    assert reply.status_code == 503
    assert "short-thought model's server" in reply.json()["error"]["message"]


@pytest.mark.parametrize("ids", ["[-1]", "[null]", "[1.5]", '"12"', "[4294967296]"])
def test_what_are_no_token_ids_is_an_error_of_the_server(ids: str):
    with pytest.raises(BackendDown, match="a server sent no token ids"):
        read_piece(f'{{"choices": [{{"token_ids": {ids}}}]}}')
