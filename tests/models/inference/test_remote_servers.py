"""Remote servers: which model they serve, and failures and recoveries."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from pydantic import ValidationError

from conf.engine import Engine
from models.checkpoints.checkpoint import Checkpoint
from models.inference import dispatcher, remote_servers
from models.inference.dispatcher import ServerFailed
from models.inference.engine import FailedRequest, Finished, Request, ScorableText
from models.inference.remote_servers import RemoteServers, WrongEndpoint, base_url
from reasoning.token_ids import TokenIds
from tests.models.fakes import fake_checkpoint
from tests.models.inference.test_dispatcher import SAMPLING, Server, valid_reply


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pair(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    monkeypatch.setattr(Server, "name", model.fingerprint)
    monkeypatch.setattr(remote_servers, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(dispatcher, "RETRY_DELAY", 0.005)
    servers = [Server(), Server()]
    yield servers
    for server in servers:
        server.die(server._server)


def engine(servers: list[Server], **settings: Any) -> RemoteServers:
    return RemoteServers(Engine(endpoints=tuple(server.url + "/" for server in servers), max_num_seqs=6, **settings))


def ask(servers: RemoteServers, model: Checkpoint, count: int) -> list[Any]:
    events: SimpleQueue[Any] = SimpleQueue()
    with servers.session(model, events.put) as session:
        for request_id in range(count):
            session.submit(request_id, Request(TokenIds((request_id,)), SAMPLING, 3), request_id)
        found = [events.get(timeout=20) for _ in range(count)]
    if errors := [event for event in found if isinstance(event, BaseException)]:
        raise errors[0]
    return found


def test_one_of_two_servers_is_killed_and_recovers(pair: list[Server], model: Checkpoint):
    first, other = pair
    back, served = threading.Event(), threading.Event()
    before: list[int] = []

    def dies_once(body: dict[str, Any], number: int) -> dict[str, Any] | None:
        if number > 60:
            served.set()
        return None if number == 30 else valid_reply(body, number)

    def brings_back(body: dict[str, Any], number: int) -> dict[str, Any]:
        if first.number >= 30 and not back.is_set():
            if not before:
                before.append(number)
            elif number > before[0] + 20:  # it did the other server's work meanwhile
                back.set()
                first.come_back()
        if back.is_set():  # the rest is left to the other server, however slow this machine is
            served.wait(20)
        return valid_reply(body, number)

    first._answer, other._answer = dies_once, brings_back
    servers = engine(pair)
    assert servers.max_concurrency == 12
    found = ask(servers, model, 300)
    assert sorted(event.request_id for event in found) == list(range(300))
    assert all(isinstance(event, Finished) for event in found)
    assert back.is_set()
    assert first.number > 60


def test_another_model_is_refused_with_the_expected_name(
    pair: list[Server], model: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Server, "name", "gpt")
    with pytest.raises(ServerFailed, match=f"serves gpt, not .* --served-model-name {model.fingerprint}"):
        ask(engine(pair), model, 1)


def test_an_unreachable_server_is_reported(model: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_servers, "POLL_INTERVAL", 0.01)
    gone = Server()
    gone.die(gone._server)
    with pytest.raises(ServerFailed, match=r"127.0.0.1:\d+ was not reachable for 0.05 s"):
        ask(engine([gone], start_timeout=0.05), model, 1)


def test_the_api_key_comes_from_the_environment_and_is_in_no_message(
    pair: list[Server], model: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Server, "key", "s3cret")
    monkeypatch.setenv(remote_servers.KEY, "wrong-key")
    with pytest.raises(ServerFailed, match=f"rejects the API key; set {remote_servers.KEY}") as failure:
        ask(engine(pair), model, 1)
    assert "wrong-key" not in str(failure.value)
    monkeypatch.setenv(remote_servers.KEY, "s3cret")
    assert not any(isinstance(event, FailedRequest) for event in ask(engine(pair), model, 20))


def test_log_probs(pair: list[Server], model: Checkpoint):
    def scored(body: dict[str, Any], number: int) -> dict[str, Any]:
        _ = number
        entries = [None, *({str(token): {"logprob": -float(token)}} for token in body["prompt"][1:])]
        return {"model": body["model"], "choices": [{"prompt_logprobs": entries}]}

    for server in pair:
        server._answer = scored
    texts = [ScorableText(TokenIds(ids)) for ids in ((1, 2), (3, 4, 5))]
    assert list(engine(pair).log_probs(model, texts)) == [[-2.0], [-4.0, -5.0]]
    assert list(engine(pair).log_probs(model, [])) == []


class NotVllm(Server):
    """A server at a URL that is not vLLM."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]):
        self._reply = (status, body, headers)
        super().__init__()

    def models(self, handler: Any) -> None:
        status, body, headers = self._reply
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<!DOCTYPE html>\n<html>\xff</html>", "with no list of models ('<!DOCTYPE html> <html>"),
        (200, b"{}", "with no list of models ('{}')"),
        (200, b'{"object": "list"}', "with no list of models"),
        (200, b'{"data": null}', "with no list of models"),
        (200, b'{"data": ["policy"]}', "with no list of models"),
        (200, b'{"data": [{"name": "policy"}]}', "with no list of models"),
        (200, b'[{"id": "policy"}]', "with no list of models"),
        (200, b"", "with no list of models ('')"),
        (200, b'{"data": [', "with no list of models"),
        (204, b"", "with status 204"),
        (301, b"", "with status 301 to https://elsewhere/v1/models"),
        (400, b"bad request", "with status 400"),
        (404, b"<h1>Not found</h1>", "with status 404"),
    ],
)
def test_a_url_without_vllm_is_reported_at_once_in_one_line(model: Checkpoint, status: int, body: bytes, words: str):
    other_server = NotVllm(status, body, {"Location": "https://elsewhere/v1/models"} if status == 301 else {})
    with pytest.raises(WrongEndpoint) as failure:
        ask(engine([other_server]), model, 1)
    other_server.die(other_server._server)
    message = str(failure.value)
    assert message.startswith(f"{other_server.url} answers /v1/models {words}")
    assert message.endswith("so it is no vLLM server; correct engine.endpoints, as in http://node1:8000")
    assert "\n" not in message


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/completions", "/v1/chat/completions/", "/v1/models"])
def test_paths_of_other_clients_are_stripped(pair: list[Server], model: Checkpoint, path: str):
    servers = RemoteServers(Engine(endpoints=tuple(server.url + path for server in pair)))
    assert all(isinstance(event, Finished) for event in ask(servers, model, 4))


def test_a_path_before_v1_is_kept():
    assert base_url("https://gate.example/models/v1x/v1/") == "https://gate.example/models/v1x"
    assert base_url("http://v1") == "http://v1"


def test_an_invalid_address_is_reported(model: Checkpoint):
    with pytest.raises(WrongEndpoint, match=r"http://node:80a0 cannot be asked \(Invalid port"):
        ask(RemoteServers(Engine(endpoints=("http://node:80a0",))), model, 1)
    with pytest.raises(ValidationError):
        Engine(endpoints=("http://",))


def test_endpoint_cases(cases: Callable[[str], list[dict[str, Any]]]):
    """Each case has a test in this file."""
    (case,) = (row for row in cases("checkpoints.jsonl") if "engine.endpoints" in row)
    assert case["engine.endpoints"] == "a URL ending in /v1; an HTML page; JSON without data"


@pytest.mark.parametrize(("given", "tokens", "seconds"), [(None, 0, 900), (None, 32_768, 9092), (60.0, 32_768, 60)])
def test_the_timeout_follows_the_longest_completion(given: float | None, tokens: int, seconds: float):
    # 900 + 32,768 / 4
    assert Engine(request_timeout=given).timeout_for(tokens) == seconds
