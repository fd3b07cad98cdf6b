"""Rows about traces, taken as the traces pass: one row of each artifact is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from reasoning.records import OfTrace, Record, trace_name
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext

R = TypeVar("R", bound=Record)


class Beside(Generic[R]):
    """The rows of an artifact, in the order of the traces that they are about. Without an artifact there are none."""

    def __init__(self, ctx: RunContext, ref: ArtifactRef | None, kind: type[R]):
        self._rows: Iterator[R] = ctx.artifacts.stream(ref, kind) if ref else iter(())
        self._next = next(self._rows, None)

    def of(self, trace: OfTrace) -> list[R]:
        """All rows about a trace."""
        found: list[R] = []
        while self._next is not None and trace_name(self._next) == trace_name(trace):  # type: ignore[arg-type]
            found.append(self._next)
            self._next = next(self._rows, None)
        return found

    def validate_all_taken(self) -> None:
        """Raises ValueError if rows remain: they are not in the order of the traces."""
        if self._next is not None:
            raise ValueError(f"{trace_name(self._next)}: not in the order of the traces")  # type: ignore[arg-type]

    def one(self, trace: OfTrace) -> R | None:
        """The row about a trace, if there is one."""
        return next(iter(self.of(trace)), None)
