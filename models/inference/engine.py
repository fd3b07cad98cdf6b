"""The interface of sampling engines: token ids in, token ids out; results are delivered as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.images import PromptImages
from reasoning.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class Request:
    """`count` completions of one prompt."""

    prompt_ids: TokenIds
    sampling: Sampling
    """`sampling.samples` is ignored; `count` is used."""
    count: int
    stop: tuple[str, ...] = ()
    """Stop strings. The completion includes the one that ended it."""
    images: PromptImages | None = None
    """Of the prompt."""


class ScorableText(NamedTuple):
    """Prompt and completion, whose log-probs are wanted."""

    token_ids: TokenIds
    images: PromptImages | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    token_ids: TokenIds
    finished: bool
    """False: truncated at max_tokens."""


@dataclass(frozen=True, slots=True)
class Finished:
    """All completions of one request."""

    request_id: int
    """The caller's id of the request."""
    completions: tuple[Completion, ...]


class Failure(StrEnum):
    """Why a request has no completion. The values appear in the ledger."""

    REFUSED = "refused"
    """The server rejected the request."""
    TIMED_OUT = "timed-out"
    SERVER_ERROR = "server-error"
    """Every attempt failed."""
    SERVER_CRASH = "server-crash"
    """The server crashed each time it ran the request."""
    ABORTED = "aborted"
    """The server aborted the completion."""
    MALFORMED = "malformed-reply"
    UNDECODABLE = "undecodable"
    """The tokens of a trace cannot be aligned with its text."""


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request that failed for good. Other requests continue."""

    request_id: int
    reason: str
    """Human-readable."""
    kind: Failure = Failure.REFUSED


Deliver = Callable[[Finished | FailedRequest | BaseException], None]
"""Callback for the result of a request, called from any thread. An exception ends the session: nothing else will be
delivered."""


class Session(Protocol):
    """Accepts requests for one model."""

    def submit(self, request_id: int, request: Request, affinity_key: int) -> None:
        """Returns at once; the result is delivered under `request_id`. Requests with the same `affinity_key` share a
        prefix and go to the same server."""
        ...


class Engine(Protocol):
    """Samples from one model at a time."""

    @property
    def max_concurrency(self) -> int:
        """Largest number of completions in flight."""
        ...

    @property
    def block(self) -> int:
        """Tokens per KV-cache block, the unit of prefix caching."""
        ...

    @property
    def cache_tokens(self) -> int | None:
        """Size of the KV cache in tokens; None if unknown. Valid within a session."""
        ...

    @property
    def computed_prompt_tokens(self) -> int:
        """Prompt tokens computed, not found in the prefix cache, since the engine started. A remote server also counts
        its other users. Valid within a session."""
        ...

    def session(self, model: Checkpoint, deliver: Deliver) -> AbstractContextManager[Session]:
        """Serves `model` until the context exits; requests still in flight are then cancelled."""
        ...

    def log_probs(self, model: Checkpoint, texts: Sequence[ScorableText]) -> Iterator[list[float] | FailedRequest]:
        """For each of `texts`, in order, the log-prob of each token but the first, given those before it; FailedRequest
        where the request failed."""
        ...

    def close(self) -> None: ...
