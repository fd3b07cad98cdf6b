"""vLLM servers that run elsewhere and serve one model: an engine of one URL or many.

Knows: how a server tells what it serves. Must not know: who started it, weight swaps, pipelines.

A server elsewhere serves a model under its fingerprint (`--served-model-name`), so that each reply says whose it is.
Its weights are never swapped: that interface must not face a network.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
from pydantic import BaseModel, ValidationError

from conf.engine import Engine as EngineSettings
from models.checkpoints.checkpoint import Checkpoint
from models.inference.dispatcher import Dispatcher, ServerFailed, cache_of, computed_by, excerpt, score_all
from models.inference.engine import Deliver, Refused, Session

KEY = "BREVITY_ENDPOINT_KEY"
"""Environment variable with the servers' API key, where they want one."""
POLL_INTERVAL = 2.0
"""Seconds until a server that is gone is looked for again."""


class WrongEndpoint(ServerFailed):
    """What is found at a URL will not serve this run, however long it is waited for."""


class _Served(BaseModel):
    id: str


class _Models(BaseModel):
    """The reply to `/v1/models`."""

    data: list[_Served]


def base_url(url: str) -> str:
    """Without the paths that other clients want."""
    return re.sub(r"(?<!/)/v1(/models|/(chat/)?completions)?$", "", url.rstrip("/"))


class RemoteServer:
    """An `Endpoint` that somebody else started."""

    is_ours = False

    def __init__(self, url: str, model: Checkpoint, settings: EngineSettings):
        self.url, self.name = base_url(url), model.fingerprint
        self.max_concurrency = settings.max_num_seqs
        self._patience = settings.start_timeout
        key = os.environ.get(KEY)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def is_serving(self) -> bool:
        """See `Endpoint.is_serving`. Raises WrongEndpoint."""
        try:
            reply = httpx.get(f"{self.url}/v1/models", headers=self.headers, timeout=5)
        except httpx.TransportError:
            return False
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise self._wrong(f"cannot be asked ({error})") from None
        if reply.status_code == 429 or reply.status_code >= 500:
            return False
        served = self._served(reply)
        if self.name not in served:
            raise WrongEndpoint(
                f"{self.url} serves {excerpt(', '.join(served)) or 'nothing'}, not this run's base model; start it "
                f"with --served-model-name {self.name}"
            )
        return True

    def _served(self, reply: httpx.Response) -> list[str]:
        """Names of the models there. Raises WrongEndpoint."""
        if reply.status_code in (401, 403):
            raise WrongEndpoint(f"{self.url} wants another API key; set {KEY}")
        if reply.status_code != 200:
            place = f" to {reply.headers['location']}" if "location" in reply.headers else ""
            raise self._wrong(f"answers /v1/models with status {reply.status_code}{place}")
        try:
            return [entry.id for entry in _Models.model_validate_json(reply.content).data]
        except ValidationError:
            told = excerpt(reply.text)[:80]
            raise self._wrong(f"answers /v1/models with no list of models ({told!r})") from None

    def _wrong(self, what: str) -> WrongEndpoint:
        return WrongEndpoint(
            f"{self.url} {what}, so no vLLM server is there; correct engine.endpoints, as in http://node1:8000"
        )

    def restart(self, given_up: threading.Event) -> None:
        """See `Endpoint.restart`: it is waited for."""
        deadline = time.monotonic() + self._patience
        while not self.is_serving():
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.url} was not there for {self._patience:g} s")
            if given_up.wait(POLL_INTERVAL):
                return


class RemoteServers:
    """An `Engine` over all of `settings.endpoints`, as many completions at once on each as `settings.concurrency`."""

    block = 16
    """vLLM's default on a GPU."""

    def __init__(self, settings: EngineSettings):
        self._settings = settings
        self._serving: list[RemoteServer] = []

    @property
    def max_concurrency(self) -> int:
        return self._settings.max_num_seqs * len(self._settings.endpoints)

    @property
    def cache_tokens(self) -> int | None:
        """Of all servers that can be reached; None where one of them does not say."""
        found = [cache_of(server) for server in self._serving if server.is_serving()]
        return sum(size for size in found if size) if found and all(found) else None

    @property
    def computed_prompt_tokens(self) -> int:
        """See `Engine.computed_prompt_tokens`."""
        return sum(computed_by(server) for server in self._serving if server.is_serving())

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        """See `Engine.session`. Raises ServerFailed where a server serves another model."""
        self._serving = self._servers(model)
        with Dispatcher(self._serving, self._settings.timeout_for, deliver) as session:
            yield session

    def log_probs(self, model: Checkpoint, texts: Sequence[tuple[int, ...]]) -> Iterator[list[float] | Refused]:
        """See `Engine.log_probs`. Raises ServerFailed."""
        if texts:
            yield from score_all(self._servers(model), self._settings.timeout_for, texts)

    def close(self) -> None:
        """Nothing here is ours to end."""

    def _servers(self, model: Checkpoint) -> list[RemoteServer]:
        return [RemoteServer(url, model, self._settings) for url in self._settings.endpoints]
