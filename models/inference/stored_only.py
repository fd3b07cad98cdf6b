"""An engine that samples nothing: whoever needs more than the rollout store holds is told so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Deliver, FailedRequest, ScorableText, Session
from models.inference.vllm_server import block_size


class EngineNeeded(Exception):
    """Not all that is asked for is in the rollout store."""


class StoredOnly:
    """An `Engine` for work that may be done already: it raises EngineNeeded when it is to sample."""

    max_concurrency = 256
    cache_tokens = None
    computed_prompt_tokens = 0

    def __init__(self, *_: Any):
        self.block = block_size()

    @contextmanager
    def session(self, model: Checkpoint, deliver: Deliver) -> Iterator[Session]:
        """Raises EngineNeeded."""
        raise EngineNeeded((model, deliver))
        yield

    def log_probs(self, model: Checkpoint, texts: Sequence[ScorableText]) -> Iterator[list[float] | FailedRequest]:
        """Raises EngineNeeded where there are texts: log-probs are not stored."""
        if texts:
            raise EngineNeeded(model)
        return iter(())

    def close(self) -> None:
        """Nothing to do."""
