"""Our client of vLLM's interface against a small server that answers well and badly."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conf.settings import Engine
from models.checkpoint import Checkpoint
from models.vllm_server import SwapNotProven, VllmServer, prove
from tests.models.fakes import fake_checkpoint

Answer = Callable[[dict[str, Any], int], dict[str, Any] | int | None]
"""From a request's body and its number: a reply, a status, or None to drop the connection."""


class Loopback(VllmServer):
    """The client alone, talking to a server that a test started."""

    def __init__(self, url: str, concurrency: int = 8):
        super().__init__(Engine(concurrency=concurrency), Path("unused"))
        self.url = url

    def _serve(self, model: Checkpoint) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet a reply: two would each wait for the other side's delayed acknowledgement
            number = 0

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                number, Handler.number = Handler.number, Handler.number + 1
                reply = answer(body, number)
                if reply is None:
                    self.close_connection = True
                    return
                status, reply = (reply, {}) if isinstance(reply, int) else (200, reply)
                blob = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(blob)))
                self.end_headers()
                self.wfile.write(blob)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


def test_nothing_asked_starts_nothing(model: Checkpoint):
    server = VllmServer(Engine(), Path("unused"))
    assert list(server.log_probs(model, [])) == []
    assert server.pid is None


def test_a_swap_is_proven_only_by_the_trainers_log_probs(model: Checkpoint):
    prove([-1.0, -2.0], [-1.5, -2.0], [-1.0005, -2.0], 1e-3, model)
    with pytest.raises(SwapNotProven, match="no nearer"):  # a small update: the old weights are within the tolerance
        prove([-1.0, -2.0], [-1.0005, -2.0], [-1.0004, -2.0], 1e-3, model)
    with pytest.raises(SwapNotProven, match=r"differ from the trainer's by 0\.5"):
        prove([-1.0, -2.0], [-1.0, -2.0], [-1.5, -2.0], 1e-3, model)
    with pytest.raises(SwapNotProven, match="no nearer"):
        prove([-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], 1e-3, model)


def test_log_probs_come_in_order_and_are_asked_for_again_when_a_connection_drops(
    model: Checkpoint, serve: Callable[[Answer], str]
):
    def scored(body: dict[str, Any], number: int) -> dict[str, Any] | None:
        entries = [None, *({str(token): {"logprob": -token / 10}} for token in body["prompt"][1:])]
        return None if number == 3 else {"choices": [{"prompt_logprobs": entries}]}

    server = Loopback(serve(scored))
    texts = [tuple(range(n, n + 3)) for n in range(10)]
    assert list(server.log_probs(model, texts)) == [[-(n + 1) / 10, -(n + 2) / 10] for n in range(10)]
