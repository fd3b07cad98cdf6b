"""An engine for tests and dry runs: a function writes the completions, and all calls are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, Deliver, FailedRequest, Finished, Request, ScorableText, Session

Script = Callable[[Checkpoint, Request, int], Completion]
"""From model, request and the number of completions so far to a completion."""


class ScriptedEngine:
    """An `Engine` without a prefix cache whose completions come from `script`. `requests` and `completions` count
    calls."""

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

    def serve(self, model: Checkpoint, request_id: int, request: Request) -> Finished | FailedRequest:
        self.requests += 1
        completions = []
        for _ in range(request.count):
            completions.append(self._script(model, request, self.completions))
            self.completions += 1
        self.computed_prompt_tokens += request.count * len(request.prompt_ids)
        return Finished(request_id, tuple(completions))

    def log_probs(self, model: Checkpoint, texts: Sequence[ScorableText]) -> Iterator[list[float] | FailedRequest]:
        """Log-prob 0 for every token."""
        _ = model
        return ([0.0] * (len(text.token_ids) - 1) for text in texts)

    def close(self) -> None:
        pass


class _ScriptedSession:
    """Delivers each result within `submit`."""

    def __init__(self, engine: ScriptedEngine, model: Checkpoint, deliver: Deliver):
        self._engine, self._model, self._deliver = engine, model, deliver

    def submit(self, request_id: int, request: Request, affinity_key: int) -> None:
        _ = affinity_key
        self._deliver(self._engine.serve(self._model, request_id, request))
