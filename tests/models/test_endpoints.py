"""Servers elsewhere: whose model they serve, and what happens when one goes and comes back."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from conf.settings import Engine
from models import dispatch, endpoints
from models.checkpoint import Checkpoint
from models.dispatch import ServerFailed
from models.endpoints import RemoteServers
from models.engine import Finished, Refused, Request
from tests.models.fakes import fake_checkpoint
from tests.models.test_dispatch import SAMPLING, Server, well


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pair(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    monkeypatch.setattr(Server, "name", model.fingerprint)
    monkeypatch.setattr(endpoints, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(dispatch, "LATER", 0.005)
    servers = [Server(), Server()]
    yield servers
    for server in servers:
        server.die(server._server)


def engine(servers: list[Server], **settings: Any) -> RemoteServers:
    return RemoteServers(Engine(endpoints=tuple(server.url + "/" for server in servers), concurrency=6, **settings))


def ask(servers: RemoteServers, model: Checkpoint, count: int) -> list[Any]:
    events: SimpleQueue[Any] = SimpleQueue()
    with servers.session(model, events.put) as session:
        for ticket in range(count):
            session.submit(ticket, Request((ticket,), SAMPLING, 3), ticket)
        found = [events.get(timeout=20) for _ in range(count)]
    if errors := [event for event in found if isinstance(event, BaseException)]:
        raise errors[0]
    return found


def test_one_of_two_is_killed_half_way_and_comes_back(pair: list[Server], model: Checkpoint):
    mortal, other = pair
    back = threading.Event()
    before: list[int] = []

    def dies_once(body: dict[str, Any], number: int) -> dict[str, Any] | None:
        return None if number == 30 else well(body, number)

    def brings_back(body: dict[str, Any], number: int) -> dict[str, Any]:
        if mortal.number >= 30 and not back.is_set():
            if not before:
                before.append(number)
            elif number > before[0] + 20:  # it did the other's work meanwhile
                back.set()
                mortal.come_back()
        return well(body, number)

    mortal._answer, other._answer = dies_once, brings_back
    servers = engine(pair)
    assert servers.seats == 12
    found = ask(servers, model, 300)
    assert sorted(event.ticket for event in found) == list(range(300))
    assert all(isinstance(event, Finished) for event in found)
    assert back.is_set()
    assert mortal.number > 60


def test_another_model_is_refused_with_the_name_that_is_wanted(
    pair: list[Server], model: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Server, "name", "gpt")
    with pytest.raises(ServerFailed, match=f"serves gpt, not .* --served-model-name {model.fingerprint}"):
        ask(engine(pair), model, 1)


def test_a_server_that_does_not_come_is_told_of(model: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(endpoints, "LOOK_AGAIN", 0.01)
    gone = Server()
    gone.die(gone._server)
    with pytest.raises(ServerFailed, match=r"127.0.0.1:\d+ was not there for 0.05 s"):
        ask(engine([gone], start_timeout=0.05), model, 1)


def test_a_key_comes_from_the_environment_and_is_in_no_message(
    pair: list[Server], model: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Server, "key", "s3cret")
    monkeypatch.setenv(endpoints.KEY, "wrong-key")
    with pytest.raises(ServerFailed, match=f"wants another API key; set {endpoints.KEY}") as failure:
        ask(engine(pair), model, 1)
    assert "wrong-key" not in str(failure.value)
    monkeypatch.setenv(endpoints.KEY, "s3cret")
    assert not any(isinstance(event, Refused) for event in ask(engine(pair), model, 20))


def test_log_probs_are_asked_of_them_too(pair: list[Server], model: Checkpoint):
    def scored(body: dict[str, Any], number: int) -> dict[str, Any]:
        _ = number
        entries = [None, *({str(token): {"logprob": -float(token)}} for token in body["prompt"][1:])]
        return {"model": body["model"], "choices": [{"prompt_logprobs": entries}]}

    for server in pair:
        server._answer = scored
    assert list(engine(pair).log_probs(model, [(1, 2), (3, 4, 5)])) == [[-2.0], [-4.0, -5.0]]
    assert list(engine(pair).log_probs(model, [])) == []
