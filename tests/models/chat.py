"""A scripted chat endpoint on loopback: valid, invalid, late or missing replies, and errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple


class Answer(NamedTuple):
    content: str = ""
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes | None = None
    """Replaces the chat completion."""
    missing: int = 0
    """Bytes announced in Content-Length but never sent."""
    finish: str = "stop"
    drop: bool = False
    """Closes the connection without a reply."""
    wait: threading.Event | None = None
    """Is waited for before the reply."""


Script = Callable[[dict[str, Any], int], Answer]
"""From a request and its number, counted from 0, to the answer."""


class Chat:
    """The endpoint. `asked`: the requests so far."""

    def __init__(self, script: Script, prompt_tokens: int = 100, generated_tokens: int = 10):
        self._script, self._tokens = script, (prompt_tokens, generated_tokens)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._counted(body, self.headers["Authorization"]) as number:
                    self._send(outer._script(body, number))

            def _send(self, answer: Answer) -> None:
                if answer.wait:
                    answer.wait.wait(30)
                if answer.drop:
                    return
                body = answer.body if answer.body is not None else outer._reply(answer)
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) + answer.missing))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Listening(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def _counted(self, body: dict[str, Any], key: str) -> Iterator[int]:
        with self._lock:
            number = len(self.asked)
            self.asked.append(body)
            self.keys.add(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield number
        finally:
            with self._lock:
                self._at_once -= 1

    def _reply(self, answer: Answer) -> bytes:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.content},
            "finish_reason": answer.finish,
        }
        prompt, generated = self._tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
        return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
