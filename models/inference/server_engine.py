"""Engines over vLLM servers that all serve one model: sessions, log-probs, and what the servers report of themselves.

It knows endpoints by their interface. It must not know who started them, nor how weights reach them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import httpx

from conf.engine import Engine as EngineSettings
from models.checkpoints.checkpoint import Checkpoint
from models.inference.connections import client
from models.inference.dispatcher import Dispatcher, Endpoint, ScoredText, Timeouts
from models.inference.engine import Deliver, FailedRequest, ScorableText, Session

SCORED_AT_ONCE = 16
"""Texts scored at a time on each server; each reply holds one entry per token."""
METRICS = 60.0
"""Timeout of a metrics request, seconds; a busy server is slow to reply."""


class ServerEngine(ABC):
    """An `Engine` over `count` servers, with `engine.max_num_seqs` completions in flight on each."""

    block = 16
    """vLLM's default on a GPU."""

    def __init__(self, settings: EngineSettings, count: int):
        self._settings, self.max_concurrency = settings, settings.max_num_seqs * count
        self._serving: Sequence[Endpoint] = ()
        """The servers of the last session."""

    @abstractmethod
    def _serve(self, model: Checkpoint) -> Sequence[Endpoint]:
        """Servers that serve `model`. Raises ServerFailed."""

    @abstractmethod
    def close(self) -> None:
        """See `Engine.close`."""

    @property
    def cache_tokens(self) -> int | None:
        """Sum over the reachable servers; None if one does not report it."""
        found = [cache_of(server) for server in self._serving if server.is_serving()]
        return sum(size for size in found if size) if found and all(found) else None

    @property
    def computed_prompt_tokens(self) -> int:
        """See `Engine.computed_prompt_tokens`."""
        return sum(computed_by(server) for server in self._serving if server.is_serving())

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        """See `Engine.session`. Raises ServerFailed."""
        self._serving = self._serve(model)
        with Dispatcher(self._serving, self._settings.timeout_for, deliver, model.forbidden_ids) as session:
            yield session

    def log_probs(self, model: Checkpoint, texts: Sequence[ScorableText]) -> Iterator[list[float] | FailedRequest]:
        """See `Engine.log_probs`. Raises ServerFailed."""
        if texts:
            yield from score_all(self._serve(model), self._settings.timeout_for, texts)


def score_all(
    endpoints: Sequence[Endpoint], timeout_for: Timeouts, texts: Sequence[ScorableText]
) -> Iterator[list[float] | FailedRequest]:
    """For each of `texts`, in order, its log-probs. Raises ServerFailed."""
    events: SimpleQueue[ScoredText | FailedRequest | BaseException] = SimpleQueue()
    found: dict[int, list[float] | FailedRequest] = {}
    at_once = SCORED_AT_ONCE * len(endpoints)
    with Dispatcher(endpoints, timeout_for, events.put) as dispatcher:
        for request_id, text in enumerate(texts[:at_once]):
            dispatcher.score(request_id, text)
        for wanted in range(len(texts)):
            while wanted not in found:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                found[event.request_id] = event.log_probs if isinstance(event, ScoredText) else event
            if (request_id := wanted + at_once) < len(texts):
                dispatcher.score(request_id, texts[request_id])
            yield found.pop(wanted)


def cache_of(server: Endpoint) -> int | None:
    """Size of the KV cache of `server`, in tokens; None if it does not report it."""
    found = re.search(r"^vllm:cache_config_info\{(.*)\}", _metrics(server), re.MULTILINE)
    known = dict(re.findall(r'(\w+)="(\d+)"', found[1])) if found else {}
    if not {"block_size", "num_gpu_blocks"} <= known.keys():
        return None
    return int(known["block_size"]) * int(known["num_gpu_blocks"])


def computed_by(server: Endpoint) -> int:
    """Prompt tokens that `server` computed, prefix-cache hits excluded, counted per sample. Replies do not report this:
    with several samples they only give the hits of the last."""
    text = _metrics(server)

    def counter(name: str) -> float:
        return sum(map(float, re.findall(rf"^vllm:{name}_total{{[^}}]*}} (\S+)$", text, re.MULTILINE)))

    return round(counter("prefix_cache_queries") - counter("prefix_cache_hits"))


def _metrics(server: Endpoint) -> str:
    """Empty where the server has just gone."""
    try:
        with client(server.url, headers=server.headers, timeout=METRICS) as http:
            return http.get("/metrics").text
    except httpx.HTTPError:
        return ""
