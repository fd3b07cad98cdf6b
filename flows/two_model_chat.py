"""Chat with the two models of a run on the terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from conf.engine import Engine
from conf.long_short import LongShort
from models.checkpoints.checkpoint import Checkpoint
from models.inference.dialogue_sampler import SPEAKERS, TurnCodec
from models.inference.own_servers import OwnServers, serve_all
from models.inference.remote_servers import KEY, base_url
from models.serving.two_model_client import Backend, BackendDown, DialogueDone, TextDelta, TooLong, TwoModelClient
from reasoning.dialogue import Speaker
from tasks.reports.layout import strip_control_chars
from tasks.reports.model_pair import StoredPair, load_model_pair

STYLES = {Speaker.LONG: "dim", Speaker.SHORT: "bold"}


def chat(run: Path, urls: Sequence[str]) -> None:
    """Answers one question per line of standard input, until an empty line. Raises ServerFailed."""
    console = Console()
    with ExitStack() as stack:
        client = open_client(stack, run, urls)
        console.print("One question per line; an empty line ends.")
        for question in iter(lambda: sys.stdin.readline().strip(), ""):
            asyncio.run(_answer(client(), question, console))


def open_client(stack: ExitStack, run: Path, urls: Sequence[str]) -> Callable[[], TwoModelClient]:
    """A factory of clients for the two models of `run`. `stack` closes the servers that are started for them."""
    pair = models_of_run(run)
    backends = backends_of(stack, run, pair.models, pair.settings.engine, urls)
    key = os.environ.get(KEY, "") if urls else ""
    return lambda: new_client(pair, backends, key)


class OpenedPair(NamedTuple):
    """The long-thought and the short-thought model of a run, and its settings."""

    models: list[Checkpoint]
    settings: LongShort
    stored: StoredPair
    """Referred to as long as the models' files are needed."""


def models_of_run(run: Path) -> OpenedPair:
    stored = load_model_pair(run)
    numerics, prompt = stored.settings.engine.numerics, stored.settings.prompt
    models = [Checkpoint.open(stored.folders[speaker], numerics, prompt) for speaker in SPEAKERS]
    return OpenedPair(models, stored.settings, stored)


def new_client(pair: OpenedPair, backends: Sequence[Backend], key: str) -> TwoModelClient:
    engine, named = pair.settings.engine, dict(zip(SPEAKERS, backends, strict=True))
    return TwoModelClient(
        TurnCodec(pair.models[0], pair.settings.protocol),  # the two have one tokenizer
        named,
        pair.settings.benchmark_sampling,
        engine.max_model_len,
        engine.timeout_for(0),
        key,
    )


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
