"""Requests over endpoints that are full, slow, faulty, killed and brought back."""

import asyncio
import json
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from queue import SimpleQueue
from typing import Any

import pytest

from conf.sampling import Sampling
from models.inference import dispatcher
from models.inference.dispatcher import Dispatcher, EndpointState, InFlightRequest, ScoredText, ServerFailed, score_all
from models.inference.engine import Failure, Finished, Refused, Request

SAMPLING = Sampling(max_tokens=5)
Answer = Callable[[dict[str, Any], int], dict[str, Any] | bytes | int | None]
"""From a request's body and its number: a reply, its bytes, a status, or None: the server dies."""


def well(body: dict[str, Any], number: int) -> dict[str, Any]:
    """Each completion echoes its prompt; the last one is cut by length."""
    _ = number
    choices = [
        {"index": i, "token_ids": [*body["prompt"], i], "finish_reason": "length" if i == body["n"] - 1 else "stop"}
        for i in reversed(range(body["n"]))
    ]
    return {"model": body["model"], "choices": choices}


class Server:
    """An endpoint of ours on loopback that answers as told, dies, and is started again (on another port, unless
    `come_back` does it)."""

    name = "policy"
    key = ""

    def __init__(self, answer: Answer = well, seats: int = 6, is_ours: bool = True, lives: int = 1000):
        self._answer, self.max_concurrency, self.is_ours, self._lives = answer, seats, is_ours, lives
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.started = self.number = 0
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._open: list[Any] = []
        self._dead: list[Any] = []
        self._port = 0
        self.headers: dict[str, str] = {}
        self.restart(threading.Event())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def is_serving(self) -> bool:
        return True

    def restart(self, given_up: threading.Event) -> None:
        _ = given_up
        self._lives -= 1
        if self._lives < 0:
            raise ServerFailed("it does not get ready any more")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                if self.path.endswith("/models"):
                    outer.models(self)
                else:
                    self._send(200, {})

            def list_models(self) -> None:
                if outer.key and self.headers["Authorization"] != f"Bearer {outer.key}":
                    self._send(401, {})
                else:
                    self._send(200, {"data": [{"id": outer.name}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = outer.take(body)
                if reply is None:
                    outer.die(self.server)
                    self.close_connection = True
                    return
                self._send(*((reply, {}) if isinstance(reply, int) else (200, reply)))

            def _send(self, status: int, reply: dict[str, Any] | bytes) -> None:
                blob = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(blob)))
                self.end_headers()
                self.wfile.write(blob)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            request_queue_size = 256

            def process_request(self, request: Any, client_address: Any) -> None:
                if not outer.opened(self, request):
                    request.close()
                    return
                super().process_request(request, client_address)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Listening(("127.0.0.1", self._port), Handler)
        self.started += 1
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def models(self, handler: Any) -> None:
        """What it serves."""
        handler.list_models()

    def come_back(self) -> None:
        self._port = self._server.server_port
        self._server.server_close()
        self.restart(threading.Event())

    def take(self, body: dict[str, Any]) -> dict[str, Any] | bytes | int | None:
        with self._lock:
            self.asked[tuple(body["prompt"])] += 1
            self.number += 1
            number = self.number
            self._at_once += body.get("n", 1)
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self._answer(body, number)
        finally:
            with self._lock:
                self._at_once -= body.get("n", 1)

    def opened(self, server: Any, connection: Any) -> bool:
        """Whether the server still lives, and the connection with it."""
        with self._lock:
            if server not in self._dead:
                self._open.append(connection)
            return server not in self._dead

    def die(self, server: Any) -> None:
        """Drops every connection and refuses new ones, unless this life of it is over already."""
        with self._lock:
            if server is not self._server or server in self._dead:
                return
            self._dead.append(server)
            connections, self._open = self._open, []
        server.socket.close()
        threading.Thread(target=server.shutdown, daemon=True).start()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(2)
            connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*args: Any, **settings: Any) -> Server:
        servers.append(Server(*args, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.die(server._server)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "RETRY_DELAY", 0.005)


def ask(
    servers: list[Server], count: int = 20, near: Callable[[int], int] = lambda n: n, timeout: float = 60
) -> dict[int, Any]:
    """What became of requests for three completions each, by ticket."""
    events: SimpleQueue[Any] = SimpleQueue()
    with Dispatcher(servers, lambda _: timeout, events.put) as session:
        for ticket in range(count):
            session.submit(ticket, Request((ticket,), SAMPLING, 3), near(ticket))
        found: dict[int, Any] = {}
        while len(found) < count:
            event = events.get(timeout=20)
            if isinstance(event, BaseException):
                raise event
            assert event.ticket not in found
            found[event.ticket] = event
        return found


@pytest.mark.parametrize("seats", [1, 3, 6, 100])
def test_every_request_comes_back_once_in_sample_order_within_the_seats(serve: Callable[..., Server], seats: int):
    server = serve(seats=seats)
    found = ask([server])
    assert sorted(found) == list(range(20))
    assert [c.token_ids for c in found[7].completions] == [(7, 0), (7, 1), (7, 2)]
    assert [c.finished for c in found[7].completions] == [True, True, False]
    assert server.most_at_once <= max(3, seats)  # one that is larger than all seats is served alone


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(serve: Callable[..., Server], status: int):
    tries: Counter[int] = Counter()

    def at_the_third_try(body: dict[str, Any], number: int) -> dict[str, Any] | int:
        tries.update(body["prompt"])
        return well(body, number) if tries[body["prompt"][0]] == 3 else status

    assert all(isinstance(event, Finished) for event in ask([serve(at_the_third_try)]).values())


def test_what_never_passes_is_refused_and_the_rest_comes_back(serve: Callable[..., Server]):
    server = serve(lambda body, number: {2: 503, 3: 400}.get(body["prompt"][0]) or well(body, number))
    found = ask([server])
    assert {ticket for ticket, event in found.items() if isinstance(event, Refused)} == {2, 3}
    assert found[2].reason.startswith("5 tries failed; the last: status 503")
    assert found[3].reason.startswith("status 400")
    assert (server.asked[2,], server.asked[3,]) == (5, 1)


def harmed(harm: str) -> Answer:
    """A reply to a request for three completions of five tokens at most, with one fault."""

    def answer(body: dict[str, Any], number: int) -> dict[str, Any] | bytes:
        reply = well(body, number)
        first = reply["choices"][0]
        first |= {
            "aborted": {"finish_reason": "abort"},
            "filtered": {"finish_reason": "content_filter"},
            "endless": {"finish_reason": None},
            "too long": {"token_ids": [1] * 6},
            "no ids": {"token_ids": None},
            "text for ids": {"token_ids": "none"},
            "negative ids": {"token_ids": [-1]},
            "huge ids": {"token_ids": [2**32]},
            "numbers for reasons": {"finish_reason": 3},
        }.get(harm, {})
        if harm == "fewer":
            reply["choices"].pop()
        whole = json.dumps(reply).encode()
        return {
            "half": whole[:40] + b"\n\n",
            "empty": b"",
            "page": b"<html>\xff\xfe</html>",
            "null": b"null",
            "list": b"[]",
            "no choices": json.dumps({"model": "policy"}).encode(),
            "nested": b"[" * 100_000,
            "choices for one": json.dumps({"model": "policy", "choices": {"0": first}}).encode(),
        }.get(harm, reply)

    return answer


@pytest.mark.parametrize(
    ("harm", "tries", "kind", "reason"),
    [
        ("aborted", 5, "aborted", "5 tries failed; the last: a completion was broken off: abort"),
        ("filtered", 1, "aborted", "a completion was broken off: content_filter"),
        ("endless", 1, "aborted", "a completion was broken off: None"),
        ("fewer", 1, "malformed-reply", "asked for 3 completions with token ids, got 2"),
        ("no ids", 1, "malformed-reply", "asked for 3 completions with token ids, got 2"),
        ("too long", 1, "malformed-reply", "a completion is longer than the 5 tokens asked for"),
        *(
            (harm, 5, "malformed-reply", "5 tries failed; the last: no completion in its reply: ")
            for harm in (
                "text for ids",
                "negative ids",
                "huge ids",
                "numbers for reasons",
                "half",
                "empty",
                "page",
                "null",
                "list",
                "no choices",
                "nested",
                "choices for one",
            )
        ),
    ],
)
def test_a_reply_that_is_not_what_was_asked_for_sets_its_request_aside(
    serve: Callable[..., Server], harm: str, tries: int, kind: str, reason: str
):
    bad = harmed(harm)
    server = serve(lambda body, number: bad(body, number) if body["prompt"] == [2] else well(body, number))
    found = ask([server], count=4)
    assert {ticket for ticket, event in found.items() if isinstance(event, Refused)} == {2}
    assert (found[2].kind, server.asked[2,]) == (kind, tries)
    assert found[2].reason.startswith(reason)
    assert "\n" not in found[2].reason


@pytest.mark.parametrize("harm", ["aborted", "half", "page"])
def test_a_fault_that_passes_costs_nothing(serve: Callable[..., Server], harm: str):
    bad = harmed(harm)
    server = serve(lambda body, number: bad(body, number) if number < 3 else well(body, number))
    assert all(isinstance(event, Finished) for event in ask([server], count=4).values())


def test_a_reply_is_waited_for_twice(serve: Callable[..., Server]):
    over = threading.Event()

    def never(body: dict[str, Any], number: int) -> dict[str, Any]:
        if body["prompt"] == [1]:
            over.wait(20)
        return well(body, number)

    server = serve(never)
    found = ask([server], count=3, timeout=0.5)
    over.set()
    assert (found[1].kind, server.asked[1,]) == ("timed-out", 2)
    assert found[1].reason == "2 tries failed; the last: no reply within 0.5 s"
    assert isinstance(found[0], Finished)


def test_a_request_has_time_for_the_tokens_that_it_may_draw(serve: Callable[..., Server]):
    asked: list[int] = []
    events: SimpleQueue[Any] = SimpleQueue()
    with Dispatcher([serve()], lambda tokens: asked.append(tokens) or 60, events.put) as session:
        session.submit(0, Request((0,), SAMPLING, 1), 0)
        session.submit(1, Request((1,), Sampling(max_tokens=32_768), 1), 0)
        assert {events.get(timeout=20).ticket for _ in range(2)} == {0, 1}
    assert sorted(asked) == [5, 32_768]


def test_connections_ask_whether_the_other_machine_is_still_there():
    made = dispatcher._watched_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)))
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    made.close()


def test_a_server_that_dies_is_started_again_and_the_run_goes_on(serve: Callable[..., Server]):
    numbers, ended = defaultdict(count), defaultdict(threading.Event)  # of the requests in each life; of the life

    def answer(body: dict[str, Any], number: int) -> dict[str, Any] | None:
        life = server.started
        place, fatal = next(numbers[life]), {1: 5, 2: 9}.get(life, 1000)
        ended[life - 1].set()
        if place > fatal:  # a server that is about to end answers nobody
            ended[life].wait(20)
        # A life begins with what was in flight when the last one ended; who ends it again then is refused.
        return None if place == fatal else well(body, number)

    server = serve(answer)
    assert all(isinstance(event, Finished) for event in ask([server], count=40).values())
    assert server.started == 3


@pytest.mark.parametrize("culprits", [{11}, {3, 30}, {0, 1, 2}])
def test_a_request_that_kills_the_server_each_time_is_found_and_set_aside(
    serve: Callable[..., Server], culprits: set[int]
):
    server = serve(lambda body, number: None if body["prompt"][0] in culprits else well(body, number), seats=24)
    found = ask([server], count=40)
    assert {ticket for ticket, event in found.items() if isinstance(event, Refused)} == culprits
    assert all(found[culprit].reason == "the server ended each time it was served" for culprit in culprits)


def test_a_suspect_that_is_refused_holds_nobody_up(serve: Callable[..., Server]):
    def answer(body: dict[str, Any], number: int) -> dict[str, Any] | int | None:
        return None if number in (5, 9) else 400 if body["prompt"][0] % 5 == 3 and number > 9 else well(body, number)

    found = ask([serve(answer, seats=24)], count=40)
    assert any(isinstance(event, Refused) for event in found.values())


def test_what_was_served_while_its_server_was_lost_is_no_suspect(serve: Callable[..., Server]):
    async def play() -> bool:
        lane = EndpointState(serve())
        served, suspect, other = (InFlightRequest(n, n, 1, {}, lambda _: ScoredText(0, [])) for n in range(3))
        lane.discard(served)
        lane.mark_up({served, suspect})
        assert not lane.has_room(other)
        lane.discard(suspect)
        return lane.has_room(other)

    assert asyncio.run(play())


def test_the_next_life_of_a_server_does_not_hear_what_was_asked_of_the_last():
    heard = []

    async def reply() -> None:
        heard.append(1)

    async def play() -> None:
        lost = asyncio.Event()
        lost.set()
        with suppress(dispatcher._EndpointLost):
            await dispatcher._until_lost(lost, reply())
        await asyncio.sleep(0)

    asyncio.run(play())
    assert not heard


def test_a_server_that_cannot_be_had_again_ends_the_session(serve: Callable[..., Server]):
    server = serve(lambda body, number: None if number == 5 else well(body, number), lives=1)
    with pytest.raises(ServerFailed, match="does not get ready any more"):
        ask([server])


def test_a_trace_stays_with_its_endpoint(serve: Callable[..., Server]):
    servers = [serve(seats=1000), serve(seats=1000)]
    ask(servers, count=60, near=lambda ticket: ticket % 6)
    homes = {
        trace: {index for index, server in enumerate(servers) for (ticket,) in server.asked if ticket % 6 == trace}
        for trace in range(6)
    }
    assert all(len(where) == 1 for where in homes.values())
    assert {index for where in homes.values() for index in where} == {0, 1}


def test_of_two_endpoints_one_is_lost_and_the_other_takes_over(serve: Callable[..., Server]):
    mortal = serve(lambda body, number: None if number == 4 else well(body, number), is_ours=False, lives=1)
    other = serve(is_ours=False)
    found = ask([mortal, other], count=60)
    assert all(isinstance(event, Finished) for event in found.values())
    assert sum(other.asked.values()) >= 50


def test_an_endpoint_that_is_back_is_used_again(serve: Callable[..., Server]):
    back = serve(lambda body, number: None if number == 2 else well(body, number), is_ours=False)
    ask([back, serve(is_ours=False)], count=200)
    assert sum(back.asked.values()) > 20


def test_a_reply_of_another_model_loses_its_endpoint(serve: Callable[..., Server]):
    changed = serve(
        lambda body, number: well(body | ({"model": "new"} if number > 3 else {}), number), is_ours=False, lives=1
    )
    gone = serve(lambda body, number: 404 if number > 3 else well(body, number), is_ours=False, lives=1)
    found = ask([changed, gone, serve(is_ours=False)], count=60)
    assert all(isinstance(event, Finished) for event in found.values())
    with pytest.raises(ServerFailed):
        ask([changed])


def test_an_endpoint_that_is_not_there_yet_is_waited_for(serve: Callable[..., Server]):
    class Late(Server):
        def is_serving(self) -> bool:
            return self.started > 1

    late = Late(is_ours=False)
    assert all(isinstance(event, Finished) for event in ask([late], count=3).values())
    assert late.started == 2
    late.die(late._server)


def test_log_probs_come_in_order_whatever_happens_to_the_server(serve: Callable[..., Server]):
    def scored(body: dict[str, Any], number: int) -> dict[str, Any] | int | None:
        if body["prompt"][0] == 20:
            return {"model": body["model"], "choices": [{"prompt_logprobs": [None]}]}
        entries = [None, *({str(token): {"logprob": -token / 10}} for token in body["prompt"][1:])]
        reply = {"model": body["model"], "choices": [{"prompt_logprobs": entries}]}
        return {3: None, 7: 503}.get(number, reply)

    texts = [tuple(range(n, n + 3)) for n in range(40)]
    found = list(score_all([serve(scored)], lambda _: 60, texts))
    assert found[20] == Refused(20, "asked for 2 log-probs, got others", Failure.MALFORMED)
    assert [one for n, one in enumerate(found) if n != 20] == [
        [-(n + 1) / 10, -(n + 2) / 10] for n in range(40) if n != 20
    ]
