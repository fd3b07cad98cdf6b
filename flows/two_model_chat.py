"""Chat with the two models of a run: on the terminal, or through an OpenAI-compatible endpoint."""

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
from models.inference.own_servers import OwnServers, serve_all
from models.inference.remote_servers import KEY, base_url
from models.serving.openai_server import NAME, create_app
from models.serving.two_model_client import Backend, BackendDown, DialogueDone, TextDelta, TooLong, TwoModelClient
from reasoning.dialogue import Speaker
from tasks.reports.layout import strip_control_chars
from tasks.reports.model_pair import load_model_pair

STYLES = {Speaker.LONG: "dim", Speaker.SHORT: "bold"}


class PortTaken(ReadableError):
    """Another process listens on the port."""


def chat(run: Path, urls: Sequence[str]) -> None:
    """Answers one question per line of standard input, until an empty line. Raises ServerFailed."""
    console = Console()
    with ExitStack() as stack:
        client = open_client(stack, run, urls)
        console.print("One question per line; an empty line ends.")
        for question in iter(lambda: sys.stdin.readline().strip(), ""):
            asyncio.run(_answer(client(), question, console))


def serve(run: Path, urls: Sequence[str], port: int) -> None:
    """Serves on loopback until interrupted. Raises PortTaken and ServerFailed."""
    with ExitStack() as stack:
        listener = stack.enter_context(listen_on(port))
        client = open_client(stack, run, urls)
        server = uvicorn.Server(uvicorn.Config(create_app(client()), log_level="warning"))
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions answers as model {NAME!r}", flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def listen_on(port: int) -> socket.socket:
    """A socket that listens on `port`; 0 selects a free port. Raises PortTaken.

    Opened before the model servers start, which takes half a minute. Requests that arrive meanwhile wait.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise PortTaken(f"port {port} cannot be listened on ({reason}); name another with --port") from None
    return listener


def open_client(stack: ExitStack, run: Path, urls: Sequence[str]) -> Callable[[], TwoModelClient]:
    """A factory of clients for the two models of `run`. `stack` closes the servers that are started for them."""
    folders, settings = load_model_pair(run)
    models = [Checkpoint.open(folders[speaker], settings.engine.numerics, settings.prompt) for speaker in SPEAKERS]
    backends = dict(zip(SPEAKERS, backends_of(stack, run, models, settings.engine, urls), strict=True))
    codec, key = TurnCodec(models[0], settings.protocol), os.environ.get(KEY, "") if urls else ""
    engine, sampling = settings.engine, settings.benchmark_sampling
    return lambda: TwoModelClient(codec, backends, sampling, engine.max_model_len, engine.timeout_for(0), key)


def backends_of(
    stack: ExitStack, run: Path, models: Sequence[Checkpoint], engine: Engine, urls: Sequence[str]
) -> list[Backend]:
    """The servers at `urls`, which serve each model under its fingerprint; without `urls` two new servers.

    Raises ServerFailed.
    """
    if urls:
        return [Backend(base_url(url), model.fingerprint) for url, model in zip(urls, models, strict=True)]
    one = engine.model_copy(update={"replicas": 1})
    engines = [OwnServers(one, run / f"vllm-{speaker}.log") for speaker in SPEAKERS]
    for each in engines:
        stack.callback(each.close)
    serve_all(engines, models)
    servers = [each.servers[0] for each in engines]
    return [Backend(server.url, server.name) for server in servers]


async def _answer(client: TwoModelClient, question: str, console: Console) -> None:
    async with client:
        try:
            async for event in client.stream_dialogue(question):
                if isinstance(event, DialogueDone):
                    console.print(Text(f"\n({event.state.sampled_tokens} tokens)"), style="dim")
                else:
                    _show(event, console)
        except (BackendDown, TooLong) as error:
            console.print(Text(strip_control_chars(f"\nerror: {error}")))


def _show(delta: TextDelta, console: Console) -> None:
    if delta.begins:
        console.print(Text(f"\n{delta.speaker}: "), end="", style="italic")
    console.print(Text(strip_control_chars(delta.text)), end="", style=STYLES[delta.speaker], soft_wrap=True)
