"""A server that answers every completion request at once with the same eight tokens, so that only the client's cost is
measured. It reads no JSON: `python -m bench.null_server MODEL` prints its port."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop

TOKENS = 8


def reply(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


class NullServer(asyncio.Protocol):
    """One connection."""

    def __init__(self, model: str):
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
            self._transport.write(self._models if head.startswith(b"get") else self._completion)


async def serve(model: str) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: NullServer(model), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
