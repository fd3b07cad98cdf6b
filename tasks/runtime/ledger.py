"""The ledger of a run: its steps, their inputs and costs, and the run's warnings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

from tasks.runtime.artifacts import ArtifactRef


class LedgerEntry(NamedTuple):
    """A step that was run or found in the cache. `artifact.count` has its rows, and its cost when it was run."""

    step: str
    version: str
    """Version digest of the step's code."""
    artifact: ArtifactRef
    cached: bool
    inputs: frozenset[int]
    """Positions of the steps whose results it read."""


class Ledger:
    """Entries in the order in which steps ended. Thread-safe."""

    def __init__(self) -> None:
        self._entries: list[LedgerEntry] = []
        self._lock = threading.Lock()
        self.warnings: list[str] = []
        """Printed above the report."""

    def add(self, entry: LedgerEntry) -> int:
        """Appends an entry and returns its position."""
        with self._lock:
            self._entries.append(entry)
            return len(self._entries) - 1

    def upstream_steps(self, artifact: ArtifactRef) -> list[LedgerEntry]:
        """The steps that `artifact` depends on, its own included, latest first."""
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
