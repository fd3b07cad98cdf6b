"""Dispatching requests to endpoints that are full, slow, faulty, killed and restarted."""

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
from models.inference import connections, dispatcher
from models.inference.dispatcher import Dispatcher, EndpointState, InFlightRequest, ScoredText, ServerFailed
from models.inference.engine import FailedRequest, Failure, Finished, Request, ScorableText
from models.inference.server_engine import score_all
from reasoning.token_ids import TokenIds

SAMPLING = Sampling(max_tokens=5)
Answer = Callable[[dict[str, Any], int], dict[str, Any] | bytes | int | None]
"""From a request's body and number to a reply, its bytes, or a status; None: the server dies."""


def valid_reply(body: dict[str, Any], number: int) -> dict[str, Any]:
    """A valid reply: each completion echoes its prompt; the last one is truncated."""
    _ = number
    choices = [
        {"index": i, "token_ids": [*body["prompt"], i], "finish_reason": "length" if i == body["n"] - 1 else "stop"}
        for i in reversed(range(body["n"]))
    ]
    return {"model": body["model"], "choices": choices}


class Server:
    """A scripted endpoint on loopback that can die and be restarted, on another port unless by `come_back`."""

    name = "policy"
    key = ""

    def __init__(self, answer: Answer = valid_reply, slots: int = 6, is_ours: bool = True, lives: int = 1000):
        self._answer, self.max_concurrency, self.is_ours, self._lives = answer, slots, is_ours, lives
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

    def restart(self, closed: threading.Event) -> None:
        _ = closed
        self._lives -= 1
        if self._lives < 0:
            raise ServerFailed("it does not start any more")
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
        """Answers /v1/models."""
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
        """Registers a connection. False if the server is dead."""
        with self._lock:
            if server not in self._dead:
                self._open.append(connection)
            return server not in self._dead

    def die(self, server: Any) -> None:
        """Drops all connections and refuses new ones, unless this server is dead already."""
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
def _short_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "RETRY_DELAY", 0.005)


def ask(
    servers: list[Server], count: int = 20, affinity: Callable[[int], int] = lambda n: n, timeout: float = 60
) -> dict[int, Any]:
    """Results of requests for three completions each, by request id."""
    events: SimpleQueue[Any] = SimpleQueue()
    with Dispatcher(servers, lambda _: timeout, events.put) as session:
        for request_id in range(count):
            session.submit(request_id, Request(TokenIds((request_id,)), SAMPLING, 3), affinity(request_id))
        found: dict[int, Any] = {}
        while len(found) < count:
            event = events.get(timeout=20)
            if isinstance(event, BaseException):
                raise event
            assert event.request_id not in found
            found[event.request_id] = event
        return found


@pytest.mark.parametrize("slots", [1, 3, 6, 100])
def test_each_request_is_served_once_in_sample_order_within_the_slots(serve: Callable[..., Server], slots: int):
    server = serve(slots=slots)
    found = ask([server])
    assert sorted(found) == list(range(20))
    assert [c.token_ids for c in found[7].completions] == [TokenIds((7, number)) for number in range(3)]
    assert [c.finished for c in found[7].completions] == [True, True, False]
    assert server.most_at_once <= max(3, slots)  # a request larger than all slots runs alone


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_errors_are_retried(serve: Callable[..., Server], status: int):
    tries: Counter[int] = Counter()

    def at_the_third_try(body: dict[str, Any], number: int) -> dict[str, Any] | int:
        tries.update(body["prompt"])
        return valid_reply(body, number) if tries[body["prompt"][0]] == 3 else status

    assert all(isinstance(event, Finished) for event in ask([serve(at_the_third_try)]).values())


def test_permanent_errors_refuse_only_their_request(serve: Callable[..., Server]):
    server = serve(lambda body, number: {2: 503, 3: 400}.get(body["prompt"][0]) or valid_reply(body, number))
    found = ask([server])
    assert {request_id for request_id, event in found.items() if isinstance(event, FailedRequest)} == {2, 3}
    assert found[2].reason.startswith("5 attempts failed; the last: status 503")
    assert found[3].reason.startswith("status 400")
    assert (server.asked[2,], server.asked[3,]) == (5, 1)


def faulty(fault: str) -> Answer:
    """A reply to a request for three completions of at most five tokens, with one fault."""

    def answer(body: dict[str, Any], number: int) -> dict[str, Any] | bytes:
        reply = valid_reply(body, number)
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
        }.get(fault, {})
        if fault == "fewer":
            reply["choices"].pop()
        blob = json.dumps(reply).encode()
        return {
            "half": blob[:40] + b"\n\n",
            "empty": b"",
            "page": b"<html>\xff\xfe</html>",
            "null": b"null",
            "list": b"[]",
            "no choices": json.dumps({"model": "policy"}).encode(),
            "nested": b"[" * 100_000,
            "choices for one": json.dumps({"model": "policy", "choices": {"0": first}}).encode(),
        }.get(fault, reply)

    return answer


@pytest.mark.parametrize(
    ("fault", "tries", "kind", "reason"),
    [
        ("aborted", 5, "aborted", "5 attempts failed; the last: a completion was aborted: abort"),
        ("filtered", 1, "aborted", "a completion was aborted: content_filter"),
        ("endless", 1, "aborted", "a completion was aborted: None"),
        ("fewer", 1, "malformed-reply", "requested 3 completions with token ids, got 2"),
        ("no ids", 1, "malformed-reply", "requested 3 completions with token ids, got 2"),
        ("too long", 1, "malformed-reply", "a completion is longer than the 5 tokens requested"),
        *(
            (fault, 5, "malformed-reply", "5 attempts failed; the last: no completion in the reply: ")
            for fault in (
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
def test_an_invalid_reply_refuses_its_request(
    serve: Callable[..., Server], fault: str, tries: int, kind: str, reason: str
):
    bad = faulty(fault)
    server = serve(lambda body, number: bad(body, number) if body["prompt"] == [2] else valid_reply(body, number))
    found = ask([server], count=4)
    assert {request_id for request_id, event in found.items() if isinstance(event, FailedRequest)} == {2}
    assert (found[2].kind, server.asked[2,]) == (kind, tries)
    assert found[2].reason.startswith(reason)
    assert "\n" not in found[2].reason


@pytest.mark.parametrize("fault", ["aborted", "half", "page"])
def test_a_transient_fault_refuses_nothing(serve: Callable[..., Server], fault: str):
    bad = faulty(fault)
    server = serve(lambda body, number: bad(body, number) if number < 3 else valid_reply(body, number))
    assert all(isinstance(event, Finished) for event in ask([server], count=4).values())


def test_a_timeout_is_retried_once(serve: Callable[..., Server]):
    over = threading.Event()

    def never(body: dict[str, Any], number: int) -> dict[str, Any]:
        if body["prompt"] == [1]:
            over.wait(20)
        return valid_reply(body, number)

    server = serve(never)
    found = ask([server], count=3, timeout=0.5)
    over.set()
    assert (found[1].kind, server.asked[1,]) == ("timed-out", 2)
    assert found[1].reason == "2 attempts failed; the last: no reply within 0.5 s"
    assert isinstance(found[0], Finished)


def test_the_timeout_depends_on_max_tokens(serve: Callable[..., Server]):
    asked: list[int] = []
    events: SimpleQueue[Any] = SimpleQueue()
    with Dispatcher([serve()], lambda tokens: asked.append(tokens) or 60, events.put) as session:
        session.submit(0, Request(TokenIds((0,)), SAMPLING, 1), 0)
        session.submit(1, Request(TokenIds((1,)), Sampling(max_tokens=32_768), 1), 0)
        assert {events.get(timeout=20).request_id for _ in range(2)} == {0, 1}
    assert sorted(asked) == [5, 32_768]


def test_connections_use_tcp_keepalive():
    made = connections._watched_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)))
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    made.close()


def test_a_crashed_server_is_restarted_and_all_requests_finish(serve: Callable[..., Server]):
    numbers, ended = defaultdict(count), defaultdict(threading.Event)  # request numbers by life; ends of lives

    def answer(body: dict[str, Any], number: int) -> dict[str, Any] | None:
        life = server.started
        place, fatal = next(numbers[life]), {1: 5, 2: 9}.get(life, 1000)
        ended[life - 1].set()
        if place > fatal:  # no replies shortly before the crash
            ended[life].wait(20)
        # A restarted server first reruns the requests in flight; one that crashes it again then would be refused.
        return None if place == fatal else valid_reply(body, number)

    server = serve(answer)
    assert all(isinstance(event, Finished) for event in ask([server], count=40).values())
    assert server.started == 3


@pytest.mark.parametrize("poison", [{11}, {3, 30}, {0, 1, 2}])
def test_poison_requests_are_found_and_refused(serve: Callable[..., Server], poison: set[int]):
    server = serve(lambda body, number: None if body["prompt"][0] in poison else valid_reply(body, number), slots=24)
    found = ask([server], count=40)
    assert {request_id for request_id, event in found.items() if isinstance(event, FailedRequest)} == poison
    assert all(found[request_id].reason == "the server crashed each time it ran this request" for request_id in poison)


def test_a_refused_request_leaves_quarantine(serve: Callable[..., Server]):
    def answer(body: dict[str, Any], number: int) -> dict[str, Any] | int | None:
        return (
            None
            if number in (5, 9)
            else 400
            if body["prompt"][0] % 5 == 3 and number > 9
            else valid_reply(body, number)
        )

    found = ask([serve(answer, slots=24)], count=40)
    assert any(isinstance(event, FailedRequest) for event in found.values())


def test_a_request_served_before_the_crash_is_not_quarantined(serve: Callable[..., Server]):
    async def play() -> bool:
        state = EndpointState(serve())
        requests = (InFlightRequest(n, n, 1, "", {}, 1, lambda _: ScoredText(0, [])) for n in range(3))
        served, quarantined, other = requests
        state.discard(served)
        state.mark_up({served, quarantined})
        assert not state.has_capacity(other)
        state.discard(quarantined)
        return state.has_capacity(other)

    assert asyncio.run(play())


def test_a_request_that_another_server_has_finished_leaves_quarantine(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
):
    """It moved when its server was lost, which is back before the other has finished it."""

    async def play() -> bool:
        back, other = EndpointState(serve()), EndpointState(serve())
        moved, waiting = (InFlightRequest(n, n, 1, "", {}, 1, lambda _: ScoredText(0, [])) for n in range(2))
        session = Dispatcher([], lambda _: 60, lambda _: None)
        session._states, session._changed = [back, other], asyncio.Condition()

        async def acquire(_: InFlightRequest) -> EndpointState:
            return other

        async def reply(*_: Any) -> ScoredText:
            back.mark_up({moved})
            assert not back.has_capacity(waiting)
            return ScoredText(0, [])

        monkeypatch.setattr(session, "_acquire_slot", acquire)
        monkeypatch.setattr(session, "_request", reply)
        await session._serve_once(moved)
        return back.has_capacity(waiting)

    assert asyncio.run(play())


def test_a_restarted_server_does_not_receive_old_requests(serve: Callable[..., Server]):
    received = []

    async def reply() -> None:
        received.append(1)

    async def play() -> None:
        state = EndpointState(serve())
        old = state.down
        state.mark_down()
        state.mark_up(set())
        with suppress(dispatcher._EndpointLost):
            await state.until_lost(old, reply())
        await asyncio.sleep(0)
        await state.client.close()

    asyncio.run(play())
    assert not received


@pytest.mark.parametrize(("is_lost", "error"), [(True, dispatcher._EndpointLost), (False, asyncio.CancelledError)])
def test_a_lost_server_frees_its_requests_and_a_closed_session_ends_them(
    serve: Callable[..., Server], is_lost: bool, error: type[BaseException]
):
    """Both cancel the request's task; only one of them is to be answered with another attempt."""

    async def play() -> None:
        state = EndpointState(serve())
        waiting = asyncio.create_task(state.until_lost(state.down, asyncio.Event().wait()))
        await asyncio.sleep(0)
        if is_lost:
            state.mark_down()
        else:
            waiting.cancel()
        with pytest.raises(error):
            await waiting
        await state.client.close()

    asyncio.run(play())


def test_a_failed_restart_ends_the_session(serve: Callable[..., Server]):
    server = serve(lambda body, number: None if number == 5 else valid_reply(body, number), lives=1)
    with pytest.raises(ServerFailed, match="does not start any more"):
        ask([server])


def test_requests_of_a_trace_go_to_one_endpoint(serve: Callable[..., Server]):
    servers = [serve(slots=1000), serve(slots=1000)]
    ask(servers, count=60, affinity=lambda request_id: request_id % 6)
    homes = {
        trace: {
            index for index, server in enumerate(servers) for (request_id,) in server.asked if request_id % 6 == trace
        }
        for trace in range(6)
    }
    assert all(len(where) == 1 for where in homes.values())
    assert {index for where in homes.values() for index in where} == {0, 1}


def test_one_of_two_endpoints_takes_over(serve: Callable[..., Server]):
    mortal = serve(lambda body, number: None if number == 4 else valid_reply(body, number), is_ours=False, lives=1)
    other = serve(is_ours=False)
    found = ask([mortal, other], count=60)
    assert all(isinstance(event, Finished) for event in found.values())
    assert sum(other.asked.values()) >= 50


def test_a_recovered_endpoint_is_used_again(serve: Callable[..., Server]):
    back = serve(lambda body, number: None if number == 2 else valid_reply(body, number), is_ours=False)
    ask([back, serve(is_ours=False)], count=200)
    assert sum(back.asked.values()) > 20


def test_a_reply_of_another_model_marks_the_endpoint_as_down(serve: Callable[..., Server]):
    changed = serve(
        lambda body, number: valid_reply(body | ({"model": "new"} if number > 3 else {}), number),
        is_ours=False,
        lives=1,
    )
    gone = serve(lambda body, number: 404 if number > 3 else valid_reply(body, number), is_ours=False, lives=1)
    found = ask([changed, gone, serve(is_ours=False)], count=60)
    assert all(isinstance(event, Finished) for event in found.values())
    with pytest.raises(ServerFailed):
        ask([changed])


def test_an_endpoint_that_is_down_at_first_is_awaited(serve: Callable[..., Server]):
    class Late(Server):
        def is_serving(self) -> bool:
            return self.started > 1

    late = Late(is_ours=False)
    assert all(isinstance(event, Finished) for event in ask([late], count=3).values())
    assert late.started == 2
    late.die(late._server)


def test_log_probs_keep_their_order_despite_faults(serve: Callable[..., Server]):
    def scored(body: dict[str, Any], number: int) -> dict[str, Any] | int | None:
        if body["prompt"][0] == 20:
            return {"model": body["model"], "choices": [{"prompt_logprobs": [None]}]}
        entries = [None, *({str(token): {"logprob": -token / 10}} for token in body["prompt"][1:])]
        reply = {"model": body["model"], "choices": [{"prompt_logprobs": entries}]}
        return {3: None, 7: 503}.get(number, reply)

    texts = [ScorableText(TokenIds(range(n, n + 3))) for n in range(40)]
    found = list(score_all([serve(scored)], lambda _: 60, texts))
    assert found[20] == FailedRequest(20, "requested 2 log-probs, got others", Failure.MALFORMED)
    assert [one for n, one in enumerate(found) if n != 20] == [
        [-(n + 1) / 10, -(n + 2) / 10] for n in range(40) if n != 20
    ]
