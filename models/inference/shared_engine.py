"""One engine for callers that work side by side: each has a view of its own, with its share of what there is.

It knows that they sample from one model at a time. It must not know what they sample.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Deliver, Engine, FailedRequest, ScorableText, Session


class SharedEngine:
    """Views of an engine whose sessions of one model may run side by side. Each view sends as many requests as if it
    were alone, and the server queues what it cannot run yet: so it stays full while one view's last requests end."""

    def __init__(self, engine: Engine, views: int):
        self.engine, self.count = engine, views
        self._computed: dict[EngineView, float] = {}
        """Prompt tokens by view, of those that are at work."""
        self._settled = 0
        """Prompt tokens of the engine that are shared out."""
        self._lock = threading.Lock()

    def view(self) -> EngineView:
        return EngineView(self)

    @contextmanager
    def at_work(self, view: EngineView) -> Iterator[None]:
        self._settle()
        with self._lock:
            self._computed[view] = 0.0
        try:
            yield
        finally:
            self._settle()
            with self._lock:
                del self._computed[view]

    def computed_for(self, view: EngineView) -> int:
        """Prompt tokens computed since `view` began its work; equal shares of those computed for several."""
        self._settle()
        return round(self._computed[view])

    def _settle(self) -> None:
        with self._lock:
            total = self.engine.computed_prompt_tokens
            new, self._settled = max(0, total - self._settled), total  # a restarted server counts from zero
            for view in self._computed:
                self._computed[view] += new / len(self._computed)


class EngineView:
    """An `Engine`, one of several over the same servers. It has no servers to close."""

    def __init__(self, shared: SharedEngine):
        self._shared, self._engine = shared, shared.engine
        self.max_concurrency, self.block = shared.engine.max_concurrency, shared.engine.block

    @property
    def cache_tokens(self) -> int | None:
        """An equal share: the views do not know of each other's prompts."""
        tokens = self._engine.cache_tokens
        return tokens // self._shared.count if tokens else None

    @property
    def computed_prompt_tokens(self) -> int:
        """See `Engine.computed_prompt_tokens`; valid within a session."""
        return self._shared.computed_for(self)

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        """See `Engine.session`."""
        with self._engine.session(model, deliver) as session, self._shared.at_work(self):
            yield session

    def log_probs(self, model: Checkpoint, texts: Sequence[ScorableText]) -> Iterator[list[float] | FailedRequest]:
        """See `Engine.log_probs`."""
        with self._shared.at_work(self):
            yield from self._engine.log_probs(model, texts)

    def close(self) -> None:
        """Nothing to do: whoever made the engine closes it."""
