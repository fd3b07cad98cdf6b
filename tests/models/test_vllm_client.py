"""Our client of vLLM's interface against a small server that answers well and badly."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from conf.settings import Engine, Sampling
from models.checkpoint import Checkpoint
from models.engine import Finished, Request
from models.vllm_server import ServerFailed, SwapNotProven, VllmServer, prove
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


def well(body: dict[str, Any], number: int) -> dict[str, Any]:
    """Each completion echoes its prompt; the last one is cut by length."""
    _ = number
    choices = [
        {"index": i, "token_ids": [*body["prompt"], i], "finish_reason": "length" if i == body["n"] - 1 else "stop"}
        for i in reversed(range(body["n"]))
    ]
    usage = {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": {"cached_tokens": 1}}
    return {"choices": choices, "usage": usage}


def ask(url: str, model: Checkpoint, count: int = 20, concurrency: int = 8) -> dict[int, Finished]:
    requests = [Request((index,), Sampling(max_tokens=5), 3) for index in range(count)]
    batches = Loopback(url, concurrency).generate(model, requests)
    return {finished.index: finished for batch in batches for finished in batch}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fake_checkpoint(tmp_path_factory.mktemp("model"))


def test_a_broken_off_completion_is_not_taken_for_a_finished_one(serve, model: Checkpoint):
    def aborted(body: dict[str, Any], number: int) -> dict[str, Any]:
        reply = well(body, number)
        reply["choices"][0]["finish_reason"] = "abort"
        return reply

    with pytest.raises(ServerFailed, match="broken off"):
        ask(serve(aborted), model, count=1)


@pytest.mark.parametrize("concurrency", [1, 2, 64])
def test_every_request_comes_back_once_in_sample_order(serve, model: Checkpoint, concurrency: int):
    finished = ask(serve(well), model, concurrency=concurrency)
    assert sorted(finished) == list(range(20))
    assert [c.token_ids for c in finished[7].completions] == [(7, 0), (7, 1), (7, 2)]
    assert [c.finished for c in finished[7].completions] == [True, True, False]
    assert (finished[7].prompt_tokens, finished[7].cached_prompt_tokens) == (1, 1)


def test_a_dropped_connection_is_tried_again(serve, model: Checkpoint):
    assert len(ask(serve(lambda body, number: None if number == 0 else well(body, number)), model, count=3)) == 3


def test_a_refusal_is_an_error_not_a_loss(serve, model: Checkpoint):
    url = serve(lambda body, number: 400 if body["prompt"] == [2] else well(body, number))
    with pytest.raises(httpx.HTTPStatusError):
        ask(url, model, count=4)


def test_a_reply_without_token_ids_is_refused(serve, model: Checkpoint):
    def bare(body: dict[str, Any], number: int) -> dict[str, Any]:
        reply = well(body, number)
        reply["choices"].pop()
        return reply

    with pytest.raises(ServerFailed, match="asked for 3 completions with token ids, got 2"):
        ask(serve(bare), model, count=1)


def test_nothing_asked_starts_nothing(model: Checkpoint):
    server = VllmServer(Engine(), Path("unused"))
    assert list(server.generate(model, [])) == []
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
