"""A server that answers every completion request with the same eight tokens, so that only the client is measured. It
reads no JSON. `python -m bench.null_server MODEL SECONDS SLOTS` prints its port; replies come at once, or on average
after SECONDS: from half of them to half as many more, in a fixed order. Requests wait while SLOTS are in use."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, ClassVar

import uvloop

TOKENS = 8
UNLIMITED = -1
"""Slots."""
GOLDEN = 0.618034
"""Its multiples spread evenly between whole numbers."""


def reply(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


class NullServer(asyncio.Protocol):
    """One connection."""

    numbers = count()
    waiting: ClassVar[deque[Any]] = deque()
    """Transports whose requests have no slot."""
    running = 0

    def __init__(self, model: str, seconds: float, slots: int):
        self._seconds, self._slots = seconds, slots
        choice = {"index": 0, "text": "42}.", "token_ids": list(range(TOKENS)), "finish_reason": "stop"}
        self._completion = reply({"id": "x", "model": model, "choices": [choice]})
        self._models = reply({"object": "list", "data": [{"id": model, "max_model_len": 1 << 20}]})
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end]).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
            if len(self._buffer) < end + 4 + length:
                return
            del self._buffer[: end + 4 + length]
            if head.startswith(b"get"):
                self._transport.write(self._models)
            else:
                self._answer()

    def _answer(self) -> None:
        if not self._seconds:
            self._transport.write(self._completion)
        elif NullServer.running == self._slots:
            self.waiting.append(self._transport)
        else:
            NullServer.running += 1
            self._begin(self._transport)

    def _begin(self, transport: Any) -> None:
        latency = self._seconds * (0.5 + next(self.numbers) * GOLDEN % 1)
        asyncio.get_running_loop().call_later(latency, self._finish, transport)

    def _finish(self, transport: Any) -> None:
        transport.write(self._completion)
        if self.waiting:
            self._begin(self.waiting.popleft())
        else:
            NullServer.running -= 1


async def serve(model: str, seconds: float, slots: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: NullServer(model, seconds, slots), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def null_server(model: str, seconds: float = 0.0) -> Iterator[str]:
    """The URL of one in a process of its own."""
    command = [sys.executable, "-m", "bench.null_server", model, str(seconds), str(UNLIMITED)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
