"""What every engine that samples offers: token ids in, token ids out, each batch of finished work as it comes.

Knows: requests and completions. Must not know: who serves them, who stores them, what they are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from conf.settings import Sampling
from models.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Request:
    """`count` completions of one prompt."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    """`sampling.samples` is not read here: `count` says how many."""
    count: int


@dataclass(frozen=True, slots=True)
class Completion:
    token_ids: tuple[int, ...]
    finished: bool
    """False: cut at max_tokens."""


@dataclass(frozen=True, slots=True)
class Finished:
    """All completions of one request, and what it cost."""

    index: int
    """Position of the request in the sequence that was given."""
    completions: tuple[Completion, ...]
    prompt_tokens: int
    cached_prompt_tokens: int


class Engine(Protocol):
    """Samples from one model at a time."""

    def generate(self, model: Checkpoint, requests: Sequence[Request]) -> Iterator[list[Finished]]:
        """Serves `requests` in any order; yields each batch that has finished since the last one."""
        ...

    def log_probs(self, model: Checkpoint, texts: Sequence[tuple[int, ...]]) -> Iterator[list[float]]:
        """For each of `texts`, in order, the log-prob of each token but the first, given those before it."""
        ...

    def close(self) -> None: ...
