"""Shards of problems: the rows of a step's inputs, divided by problem.

It knows row files and the columns that name problems. It must not know steps, nor who works on a shard.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.runtime.artifacts import ArtifactRef, ArtifactStore
from tasks.runtime.rows import ROWS_PER_GROUP, RowFile, read_tables

PROBLEMS = "problems"
"""Kind of the artifacts whose rows are the problems themselves."""
MAX_SHARDS = 256
"""More are not made: each has files that are open while the rows are divided."""


class ShardFile(NamedTuple):
    """The rows of one input for one shard, as a Parquet file."""

    content: bytes
    rows: int


def no_rows() -> ShardFile:
    """A file can be read that holds none."""
    with RowFile() as file:
        return ShardFile(file.finish().read_bytes(), 0)


class Shards:
    """The rows of artifacts in shards of about `size` problems, on disk. Use as a context manager.

    The order of the problems is that of the first artifact which is made of problems, as traces are; else that of the
    problems. Results of all shards, one after another, are then in the order of those of the whole.
    """

    def __init__(self, artifacts: ArtifactStore, refs: Sequence[ArtifactRef], size: int):
        self._artifacts = artifacts
        self._refs = {ref.fingerprint(): ref for ref in refs}
        leading = next((ref for ref in refs if ref.kind != PROBLEMS), refs[0])
        names = dict.fromkeys(name for (name,) in artifacts.columns(leading, column_of(leading)))
        self.problems = len(names)
        self._count = max(1, min(-(-len(names) // size), MAX_SHARDS))
        self._number_of = {name: place * self._count // len(names) for place, name in enumerate(names)}
        self._rows: dict[tuple[str, int], int] = {}
        """By artifact and shard: number of rows."""

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="brevity-shards-")
        for name, ref in self._refs.items():
            self._divide(name, ref)
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def __len__(self) -> int:
        return self._count

    def problems_in(self, number: int) -> int:
        return sum(shard == number for shard in self._number_of.values())

    def files(self, number: int) -> Mapping[str, ShardFile]:
        """The inputs of one shard, by the fingerprints of the artifacts."""
        return {
            name: ShardFile(self._path(name, number).read_bytes(), rows)
            for name in self._refs
            if (rows := self._rows.get((name, number), 0))
        }

    def _path(self, name: str, number: int) -> Path:
        return Path(self._scratch.name) / f"{[*self._refs].index(name)}-{number}.parquet"

    def _divide(self, name: str, ref: ArtifactRef) -> None:
        """Writes the rows of an artifact to a file for each shard, one group in memory at a time."""
        with ExitStack() as stack, self._artifacts.local_path(ref).open("rb") as file:
            writers: dict[int, pq.ParquetWriter] = {}
            for table in read_tables(file):
                for number, rows in self._by_shard(table, column_of(ref)).items():
                    if number not in writers:
                        writers[number] = stack.enter_context(pq.ParquetWriter(self._path(name, number), table.schema))
                    writers[number].write_table(rows, ROWS_PER_GROUP)
                    self._rows[name, number] = self._rows.get((name, number), 0) + len(rows)

    def _by_shard(self, table: pa.Table, column: str) -> dict[int, pa.Table]:
        """The rows of a table by shard, in their order. Problems without a row in the leading artifact are in none."""
        places: dict[int, list[int]] = {}
        for place, name in enumerate(table[column].to_pylist()):
            if (number := self._number_of.get(name)) is not None:
                places.setdefault(number, []).append(place)
        return {number: table.take(rows) for number, rows in places.items()}


def column_of(ref: ArtifactRef) -> str:
    """The column of an artifact's rows that names their problem."""
    return "id" if ref.kind == PROBLEMS else "problem_id"
