"""An engine for tests and dry runs: a function writes the completions, and every call is counted.

Knows: the engine protocol. Must not know: any real model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from models.checkpoint import Checkpoint
from models.engine import Completion, Finished, Request

Script = Callable[[Checkpoint, Request, int], Completion]
"""From model, request and the request's running number to a completion."""


class ScriptedEngine:
    """An `Engine` whose replies are `script`'s. `requests` and `completions` count what was asked of it."""

    def __init__(self, script: Script):
        self._script = script
        self.requests = 0
        self.completions = 0

    def generate(self, model: Checkpoint, requests: Sequence[Request]) -> Iterator[list[Finished]]:
        for index, request in enumerate(requests):
            self.requests += 1
            drawn = []
            for _ in range(request.count):
                drawn.append(self._script(model, request, self.completions))
                self.completions += 1
            yield [Finished(index, tuple(drawn), len(request.prompt_ids), 0)]

    def log_probs(self, model: Checkpoint, texts: Sequence[tuple[int, ...]]) -> Iterator[list[float]]:
        """Every token is certain to it."""
        _ = model
        return ([0.0] * (len(text) - 1) for text in texts)

    def close(self) -> None:
        pass
