"""Fake vLLM servers that stream scripted turns: the two models of a dialogue."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from conf.long_short import Protocol
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint

MODEL = Checkpoint.open(TINY_MODEL)
PROTOCOL = Protocol(long_role="<|long|>", short_role="<|short|>", max_turn_tokens=64, max_rounds=2)
END = "<|endoftext|>"
Script = Callable[[str], str | None]
"""From the prompt's text to the turn; None: the connection breaks."""


class Vllm:
    """A server that streams the turns of its script token by token."""

    def __init__(self, script: Script):
        outer, self.script = self, script
        self.ends_with = "stop"
        self.status = 200
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert len(body["stop"]) <= 4  # OpenAI's limit
                prompt = MODEL.decode(tuple(body["prompt"]))
                outer.asked.append(prompt)
                outer.bodies.append(body)
                turn = outer.script(prompt)
                if outer.status != 200:
                    self.send_error(outer.status, "no")
                    return
                self.send_response(200)
                self.end_headers()
                for token in MODEL.encode((turn or "\nHm") + END):
                    reason = outer.ends_with if token == MODEL.end_id else None
                    if turn is not None or reason is None:
                        choice = {"index": 0, "text": "", "token_ids": [token], "finish_reason": reason}
                        self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n" if turn is not None else b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Ignores clients that have disconnected."""

        self._server = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def think(prompt: str) -> str:
    return "\nWait, 4 < 5.\n</think>" if "</rethink>" in prompt else "\nStart with 4.\n</think>"


def answer(prompt: str) -> str:
    return "\nThe answer is \\boxed{4}.\n</answer>" if "</rethink>" in prompt else "\nIt is 4?\n</rethink>"
