"""Talking with the two models of a run: on the terminal, or behind an OpenAI-compatible endpoint.

Knows: runs, servers of our own, terminals. Must not know: the protocol, the wire format.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import uvicorn
from rich.console import Console
from rich.text import Text

from conf.engine import Engine
from conf.errors import ReadableError
from models.checkpoints.checkpoint import Checkpoint
from models.inference.dialogue_sampler import SPEAKERS, TurnCodec
from models.inference.remote_servers import KEY, base_url
from models.inference.vllm_server import VllmServer, serve_all
from models.serving.openai_server import NAME, create_app
from models.serving.two_model_client import Backend, BackendDown, DialogueDone, TextDelta, TooLong, TwoModelClient
from reasoning.dialogue import Speaker
from tasks.reports.layout import strip_control_chars
from tasks.reports.model_pair import load_model_pair

STYLES = {Speaker.LONG: "dim", Speaker.SHORT: "bold"}


class PortTaken(ReadableError):
    """Another process listens there."""


def chat(run: Path, urls: Sequence[str]) -> None:
    """Answers one question a line, until the input ends. Raises as `backends_of`."""
    console = Console()
    with ExitStack() as stack:
        client = open_client(stack, run, urls)
        console.print("One question a line; an empty line ends.")
        for question in iter(lambda: sys.stdin.readline().strip(), ""):
            asyncio.run(_tell(client(), question, console))


def serve(run: Path, urls: Sequence[str], port: int) -> None:
    """Serves until it is interrupted; on loopback alone. Raises PortTaken, and as `backends_of`."""
    with ExitStack() as stack:
        door = stack.enter_context(free_port(port))
        client = open_client(stack, run, urls)
        server = uvicorn.Server(uvicorn.Config(create_app(client()), log_level="warning"))
        print(f"http://127.0.0.1:{door.getsockname()[1]}/v1/chat/completions answers as model {NAME!r}", flush=True)
        with suppress(KeyboardInterrupt):  # the way to end it
            server.run(sockets=[door])


def free_port(port: int) -> socket.socket:
    """A port of our own, taken before half a minute is spent on starting servers; who asks meanwhile waits. Raises
    PortTaken."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind(("127.0.0.1", port))
        door.listen(2048)
    except (OSError, OverflowError) as error:
        door.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise PortTaken(f"port {port} cannot be listened on ({reason}); name another with --port") from None
    return door


def open_client(stack: ExitStack, run: Path, urls: Sequence[str]) -> Callable[[], TwoModelClient]:
    """Makes clients of the run's two models; servers that are started for them live as long as `stack`."""
    folders, settings = load_model_pair(run)
    models = [Checkpoint.open(folders[speaker], settings.engine.dtype, settings.prompt) for speaker in SPEAKERS]
    backends = dict(zip(SPEAKERS, backends_of(stack, run, models, settings.engine, urls), strict=True))
    codec, key = TurnCodec(models[0], settings.protocol), os.environ.get(KEY, "") if urls else ""
    engine, sampling = settings.engine, settings.benchmark_sampling
    return lambda: TwoModelClient(codec, backends, sampling, engine.max_model_len, engine.timeout_for(0), key)


def backends_of(
    stack: ExitStack, run: Path, models: Sequence[Checkpoint], engine: Engine, urls: Sequence[str]
) -> list[Backend]:
    """Servers elsewhere, which serve each model under its fingerprint, where `urls` names them; else two of our own,
    started side by side. Raises ServerFailed."""
    if urls:
        return [Backend(base_url(url), model.fingerprint) for url, model in zip(urls, models, strict=True)]
    servers = [VllmServer(engine, run / f"vllm-{speaker}.log") for speaker in SPEAKERS]
    for server in servers:
        stack.callback(server.close)
    serve_all(servers, models)
    return [Backend(server.url, server.name) for server in servers]


async def _tell(client: TwoModelClient, question: str, console: Console) -> None:
    async with client:
        try:
            async for piece in client.stream_dialogue(question):
                if isinstance(piece, DialogueDone):
                    console.print(Text(f"\n({piece.state.sampled_tokens} tokens)"), style="dim")
                else:
                    _show(piece, console)
        except (BackendDown, TooLong) as error:
            console.print(Text(strip_control_chars(f"\nerror: {error}")))


def _show(piece: TextDelta, console: Console) -> None:
    if piece.begins:
        console.print(Text(f"\n{piece.speaker}: "), end="", style="italic")
    console.print(Text(strip_control_chars(piece.text)), end="", style=STYLES[piece.speaker], soft_wrap=True)
