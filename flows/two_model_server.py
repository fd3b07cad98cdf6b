"""Serves the two models of a run behind an OpenAI-compatible endpoint, with one or more processes.

It knows addresses, keys and processes. It must not know how a request is answered.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from uvicorn.supervisors import Multiprocess

from conf.errors import ReadableError
from flows.two_model_chat import backends_of, models_of_run, new_client
from models.inference.devices import on_cpu
from models.inference.remote_servers import KEY
from models.serving.chat_requests import NAME
from models.serving.openai_server import create_app
from models.serving.two_model_client import Backend

SERVE_KEY = "BREVITY_SERVE_KEY"
"""Environment variable with the key that clients must send."""
SERVED = "BREVITY_SERVED"
"""Environment variable with what the processes must know that answer requests."""
HEALTH_SECONDS = 60
"""A process that does not respond for so long is replaced; it takes some seconds to load the tokenizer."""


class PortTaken(ReadableError):
    """Another process listens on the port."""


class MissingKey(ReadableError):
    """An address that other machines reach, without a key."""


class Served(BaseModel):
    """What the processes must know that answer requests."""

    run: Path
    backends: list[Backend]
    """Of the long-thought model, then of the short-thought model."""
    is_remote: bool
    """Whether the servers are somebody else's, and may ask for a key."""
    hosts: list[str]
    """Names under which it may be asked."""
    parent: int
    """The process that starts them, and without which they end. It may be gone before they ask for it."""


def serve(run: Path, urls: Sequence[str], host: str, port: int, workers: int) -> None:
    """Serves until interrupted. The processes share the socket and the two models' servers.

    Raises MissingKey, PortTaken and ServerFailed.
    """
    if not is_loopback(host) and not os.environ.get(SERVE_KEY):
        raise MissingKey(f"other machines reach {host}: set {SERVE_KEY} to the key that clients must send")
    with ExitStack() as stack:
        listener = stack.enter_context(listen_on(host, port))
        pair = models_of_run(run)
        backends = backends_of(stack, run, pair.models, pair.settings.engine, urls)
        os.environ[SERVED] = Served(
            run=run, backends=backends, is_remote=bool(urls), hosts=hosts_of(host), parent=os.getpid()
        ).model_dump_json()
        print(f"http://{host}:{listener.getsockname()[1]}/v1/chat/completions answers as model {NAME!r}", flush=True)
        Multiprocess(process_config(workers), [listener]).run()


def process_config(workers: int) -> uvicorn.Config:
    return uvicorn.Config(
        f"{__name__}:app",
        factory=True,
        workers=workers,
        log_level="warning",
        timeout_worker_healthcheck=HEALTH_SECONDS,
    )


def app() -> FastAPI:
    """The app of one process, which ends with the process that started it."""
    served = Served.model_validate_json(os.environ[SERVED])
    threading.Thread(target=_end_with, args=(served.parent,), daemon=True).start()
    pair = models_of_run(served.run)
    client = new_client(pair, served.backends, os.environ.get(KEY, "") if served.is_remote else "")
    # vLLM's CPU engine dies of a seed when a prompt is computed in several chunks.
    takes_seed = served.is_remote or not on_cpu()
    return create_app(client, os.environ.get(SERVE_KEY, ""), takes_seed, served.hosts)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def hosts_of(host: str) -> list[str]:
    """On loopback only its own names; where a key is asked for, any."""
    return [host, "localhost", "127.0.0.1"] if is_loopback(host) else ["*"]


def is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listen_on(host: str, port: int) -> socket.socket:
    """A socket that listens on `port`; 0 selects a free port. Raises PortTaken.

    Opened before the model servers start, which takes half a minute. Requests that arrive meanwhile wait.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise PortTaken(f"{host}:{port} cannot be listened on ({reason}); name another with --host or --port") from None
    return listener
