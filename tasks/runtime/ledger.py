"""Which steps a run took, what they read, and what a reader of its report must know first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

from tasks.runtime.artifacts import ArtifactRef


class LedgerEntry(NamedTuple):
    """A step that was taken or found in the cache; `artifact.count` holds its rows and its cost when it was made."""

    step: str
    version: str
    """Digest of the code that made it."""
    artifact: ArtifactRef
    cached: bool
    inputs: frozenset[int]
    """Positions in the ledger of the steps whose results it read."""


class Ledger:
    """Entries in the order in which steps ended. Steps may add to it from several threads."""

    def __init__(self) -> None:
        self._entries: list[LedgerEntry] = []
        self._lock = threading.Lock()
        self.warnings: list[str] = []
        """Shown above the report."""

    def add(self, entry: LedgerEntry) -> int:
        """Returns the entry's position."""
        with self._lock:
            self._entries.append(entry)
            return len(self._entries) - 1

    def upstream_steps(self, artifact: ArtifactRef) -> list[LedgerEntry]:
        """The steps whose results went into `artifact`, each once, the last one first."""
        wanted = {artifact.entry}
        for position in reversed(range(len(self._entries))):
            if position in wanted:
                wanted |= self._entries[position].inputs
        return [self._entries[position] for position in reversed(range(len(self._entries))) if position in wanted]

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, position: int) -> LedgerEntry:
        return self._entries[position]
