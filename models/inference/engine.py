"""What every engine that samples offers: token ids in, token ids out, each batch of finished work as it comes.

Knows: requests and completions. Must not know: who serves them, who stores them, what they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from conf.sampling import Sampling
from models.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Request:
    """`count` completions of one prompt."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    """`sampling.samples` is not read here: `count` says how many."""
    count: int
    stop: tuple[str, ...] = ()
    """Texts with which a completion ends, the first that comes included."""


@dataclass(frozen=True, slots=True)
class Completion:
    token_ids: tuple[int, ...]
    finished: bool
    """False: cut at max_tokens."""


@dataclass(frozen=True, slots=True)
class Finished:
    """All completions of one request."""

    ticket: int
    """The caller's number for the request."""
    completions: tuple[Completion, ...]


class Failure(StrEnum):
    """Why there is no completion, in the ledger's words."""

    REFUSED = "refused"
    """The server will not draw it."""
    TIMED_OUT = "timed-out"
    SERVER_ERROR = "server-error"
    """At every try."""
    SERVER_CRASH = "server-crash"
    """The server ended each time."""
    ABORTED = "aborted"
    """It was broken off before its end."""
    MALFORMED = "malformed-reply"
    UNDECODABLE = "undecodable"
    """Its tokens cannot be told apart in its text."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that no engine can serve: it is set aside, the others go on."""

    ticket: int
    reason: str
    """For a person."""
    kind: Failure = Failure.REFUSED


Deliver = Callable[[Finished | Refused | BaseException], None]
"""Takes what becomes of a request, from any thread. An exception ends the session: nothing more will come."""


class Session(Protocol):
    """Requests in flight on one model."""

    def submit(self, ticket: int, request: Request, affinity_key: int) -> None:
        """Returns at once; what becomes of the request is delivered under its `ticket`. Requests with the same `near`
        begin alike."""
        ...


class Engine(Protocol):
    """Samples from one model at a time."""

    @property
    def max_concurrency(self) -> int:
        """Completions that may be in flight at once."""
        ...

    @property
    def block(self) -> int:
        """Tokens of one block of its cache, the smallest part that is found again."""
        ...

    @property
    def cache_tokens(self) -> int | None:
        """Tokens whose keys and values stay at hand; None where that is not known. Asked for within a session."""
        ...

    @property
    def computed_prompt_tokens(self) -> int:
        """Prompt tokens that were not found in its cache, since it was started; a server elsewhere counts those of its
        other users, too. Asked for within a session."""
        ...

    def session(self, model: Checkpoint, deliver: Deliver) -> AbstractContextManager[Session]:
        """Serves `model` until it is left; requests still in flight then are given up."""
        ...

    def log_probs(self, model: Checkpoint, texts: Sequence[tuple[int, ...]]) -> Iterator[list[float] | Refused]:
        """For each of `texts`, in order, the log-prob of each token but the first, given those before it; Refused where
        it cannot be had."""
        ...

    def close(self) -> None: ...
