"""An engine for tests and dry runs: a function writes the completions, and every call is counted.

Knows: the engine protocol. Must not know: any real model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Deliver, Finished, Refused, Request, Session

Script = Callable[[Checkpoint, Request, int], Completion]
"""From model, request and the request's running number to a completion."""


class ScriptedEngine:
    """An `Engine` without a cache whose replies are `script`'s. `requests` and `completions` count what was asked."""

    max_concurrency = 256
    block = 32
    cache_tokens = None

    def __init__(self, script: Script):
        self._script = script
        self.requests = 0
        self.completions = 0
        self.computed_prompt_tokens = 0

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        yield _ScriptedSession(self, model, deliver)

    def serve(self, model: Checkpoint, ticket: int, request: Request) -> Finished | Refused:
        self.requests += 1
        drawn = []
        for _ in range(request.count):
            drawn.append(self._script(model, request, self.completions))
            self.completions += 1
        self.computed_prompt_tokens += request.count * len(request.prompt_ids)
        return Finished(ticket, tuple(drawn))

    def log_probs(self, model: Checkpoint, texts: Sequence[tuple[int, ...]]) -> Iterator[list[float] | Refused]:
        """Every token is certain to it."""
        _ = model
        return ([0.0] * (len(text) - 1) for text in texts)

    def close(self) -> None:
        pass


class _ScriptedSession:
    """Serves each request at once."""

    def __init__(self, engine: ScriptedEngine, model: Checkpoint, deliver: Deliver):
        self._engine, self._model, self._deliver = engine, model, deliver

    def submit(self, ticket: int, request: Request, affinity_key: int) -> None:
        _ = affinity_key
        self._deliver(self._engine.serve(self._model, ticket, request))
