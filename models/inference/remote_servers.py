"""Remote vLLM servers that serve one model: an engine over one or more URLs.

A remote server serves a model under its fingerprint (`--served-model-name`), so every reply names its model.
Its weights are never swapped: the endpoints for that must not face a network.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping, Sequence

import httpx
from pydantic import BaseModel, ValidationError

from conf.engine import Engine as EngineSettings
from models.checkpoints.checkpoint import Checkpoint
from models.inference.connections import client
from models.inference.dispatcher import ServerFailed, excerpt
from models.inference.server_engine import ServerEngine

KEY = "BREVITY_ENDPOINT_KEY"
"""Environment variable with the servers' API key, if they need one."""
POLL_INTERVAL = 2.0
"""Seconds between two checks of a server that is down."""


class WrongEndpoint(ServerFailed):
    """The URL does not serve this run's model; waiting will not help."""


class _Served(BaseModel):
    id: str


class _Models(BaseModel):
    """The reply to `/v1/models`."""

    data: list[_Served]


def model_names(reply: str | bytes) -> list[str]:
    """Names of the models in a reply to `/v1/models`. Raises ValidationError if it is no list of models."""
    return [entry.id for entry in _Models.model_validate_json(reply).data]


def base_url(url: str) -> str:
    """`url` without the paths that other clients append."""
    return re.sub(r"(?<!/)/v1(/models|/(chat/)?completions)?$", "", url.rstrip("/"))


def key_headers() -> dict[str, str]:
    """Headers with the servers' API key, if there is one."""
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def served_models(url: str, headers: Mapping[str, str]) -> list[str] | None:
    """Names of the models that the server at `url` (see `base_url`) serves; None if it is not reachable now. Raises
    WrongEndpoint."""
    try:
        with client(url, headers=headers, timeout=5) as http:
            reply = http.get("/v1/models")
    except httpx.TransportError:
        return None
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise _wrong(url, f"cannot be asked ({error})") from None
    if reply.status_code == 429 or reply.status_code >= 500:
        return None
    if reply.status_code in (401, 403):
        raise WrongEndpoint(f"{url} rejects the API key; set {KEY}")
    if reply.status_code != 200:
        location = f" to {reply.headers['location']}" if "location" in reply.headers else ""
        raise _wrong(url, f"answers /v1/models with status {reply.status_code}{location}")
    try:
        return model_names(reply.content)
    except ValidationError:
        raise _wrong(url, f"answers /v1/models with no list of models ({excerpt(reply.text)[:80]!r})") from None


def _wrong(url: str, problem: str) -> WrongEndpoint:
    return WrongEndpoint(f"{url} {problem}, so it is no vLLM server; correct engine.endpoints, as in http://node1:8000")


class RemoteServer:
    """An `Endpoint` that this process did not start."""

    is_ours = False

    def __init__(self, url: str, model: Checkpoint, settings: EngineSettings):
        self.url, self.name = base_url(url), model.fingerprint
        self.max_concurrency = settings.max_num_seqs
        self._start_timeout = settings.start_timeout
        self.headers = key_headers()

    def is_serving(self) -> bool:
        """See `Endpoint.is_serving`. Raises WrongEndpoint."""
        served = served_models(self.url, self.headers)
        if served is None:
            return False
        if self.name not in served:
            raise WrongEndpoint(
                f"{self.url} serves {excerpt(', '.join(served)) or 'nothing'}, not this run's base model; start it "
                f"with --served-model-name {self.name}"
            )
        return True

    def restart(self, closed: threading.Event) -> None:
        """See `Endpoint.restart`. Waits until the server is back."""
        deadline = time.monotonic() + self._start_timeout
        while not self.is_serving():
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.url} was not reachable for {self._start_timeout:g} s")
            if closed.wait(POLL_INTERVAL):
                return


class RemoteServers(ServerEngine):
    """An `Engine` over `settings.endpoints`."""

    def __init__(self, settings: EngineSettings):
        super().__init__(settings, len(settings.endpoints))

    def close(self) -> None:
        """Nothing to do: remote servers keep running."""

    def _serve(self, model: Checkpoint) -> Sequence[RemoteServer]:
        """Nothing is asked of the servers yet: a session asks which are reachable, and that they serve `model`."""
        return [RemoteServer(url, model, self._settings) for url in self._settings.endpoints]
