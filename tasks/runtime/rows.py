"""Records as Arrow tables and Parquet files, and back, group by group, with token ids as arrays and files as bytes. It
must not know steps or where artifacts lie."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from reasoning.records import Record
from reasoning.token_ids import TokenIds

R = TypeVar("R", bound=Record)
TOKEN_IDS = pa.list_(pa.uint32())
FILES = pa.list_(pa.large_binary())
ROWS_PER_GROUP = 256
BUCKETS = 8
"""Parts in which a file is reordered."""
PLAIN = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.large_binary()}


def schema_of(kind: type[BaseModel]) -> pa.Schema:
    """The Arrow schema of records of class `kind`."""
    return pa.schema([(name, _arrow_type(field.annotation)) for name, field in kind.model_fields.items()])


def _arrow_type(annotation: Any) -> pa.DataType:
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part not in (NoneType, ...)]
    if origin in (Union, UnionType):
        (kind,) = {_arrow_type(part) for part in parts}  # the alternatives must look alike
        return kind
    if origin is tuple:
        return pa.list_(_arrow_type(parts[0]))
    if origin is Literal or issubclass(annotation, Enum):
        return pa.string()
    if annotation is TokenIds:
        return TOKEN_IDS
    return pa.struct(schema_of(annotation)) if issubclass(annotation, BaseModel) else PLAIN[annotation]


class RowFile:
    """Records on their way into a Parquet file in a temporary folder: only one group of rows is in memory. Use as a
    context manager; afterwards the file is gone."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self.path = Path(self._scratch.name) / "rows.parquet"
        self._writer: pq.ParquetWriter | None = None
        self._group: list[Record] = []
        self._tables: list[pa.Table] = []
        """Rows of other files that fill no group yet."""
        self._count = 0
        self._is_finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._writer:
                self._writer.close()
        finally:
            self._scratch.cleanup()

    def __len__(self) -> int:
        return self._count

    def append(self, row: Record) -> None:
        assert not self._is_finished
        self._group.append(row)
        self._count += 1
        if len(self._group) == ROWS_PER_GROUP:
            self._write()

    def extend(self, rows: Iterable[Record]) -> None:
        for row in rows:
            self.append(row)

    def extend_from(self, file: Any) -> None:
        """Appends the rows of another Parquet file of such records, a path or an open file."""
        assert not self._is_finished
        assert not self._group
        for table in read_tables(file):
            self._tables.append(table.cast(pa.schema([(name, _as_made(kind)) for name, kind in _fields(table.schema)])))
            self._count += len(table)
            self._write_full_groups()

    def _write_full_groups(self) -> None:
        """Groups hold as many rows as those of records, so that a file does not show in how many parts it was made."""
        if sum(map(len, self._tables)) < ROWS_PER_GROUP:
            return
        rows = pa.concat_tables(self._tables).combine_chunks()
        whole = len(rows) // ROWS_PER_GROUP * ROWS_PER_GROUP
        for first in range(0, whole, ROWS_PER_GROUP):
            self._write_table(rows.slice(first, ROWS_PER_GROUP))
        self._tables = [rows.slice(whole)] if whole < len(rows) else []

    def finish(self) -> Path:
        """Completes the file: no row can be appended any more. Returns its path."""
        self._is_finished = True
        if self._tables:
            self._write_table(pa.concat_tables(self._tables).combine_chunks())
            self._tables = []
        if self._group or (self._writer is None and not self.path.exists()):
            self._write()
        if self._writer:
            self._writer.close()
            self._writer = None
        return self.path

    def read(self, kind: type[R]) -> Iterator[R]:
        """The rows, once all are appended."""
        yield from read_rows(self.finish(), kind)

    def reordered(self, places: Sequence[int], kind: type[R]) -> Iterator[R]:
        """The rows, once all are appended, each at its place of `places`. `BUCKETS` passes over a file of its own, with
        one bucket of rows in memory at a time."""
        size = max(1, -(-len(places) // BUCKETS))
        for start in range(0, len(places), size):
            bucket = range(start, start + size)
            rows = zip(places, self.read(kind), strict=True)
            held = {at: row for at, row in rows if at in bucket}
            yield from (held[at] for at in sorted(held))

    def _write(self) -> None:
        self._write_table(table_of(self._group))
        self._group = []

    def _write_table(self, table: pa.Table) -> None:
        if self._writer is None:
            # Ids use a part of their four bytes only. Split by byte, they are smaller, and compressed faster.
            split = {
                f"{field.name}.list.element": "BYTE_STREAM_SPLIT" for field in table.schema if field.type == TOKEN_IDS
            }
            self._writer = pq.ParquetWriter(
                self.path, table.schema, compression="zstd", use_dictionary=False, column_encoding=split or None
            )
        self._writer.write_table(table)


def _as_made(kind: pa.DataType) -> pa.DataType:
    """The type of a column that was read as it is when made: Parquet gives the elements of lists another name."""
    if pa.types.is_list(kind):
        return pa.list_(_as_made(kind.value_type))
    return pa.struct([(name, _as_made(part)) for name, part in _fields(kind)]) if pa.types.is_struct(kind) else kind


def _fields(of: pa.Schema | pa.StructType) -> Iterator[tuple[str, pa.DataType]]:
    return ((field.name, field.type) for field in of)


def read_tables(file: Any) -> Iterator[pa.Table]:
    """A Parquet file, group by group. `file`: a path or an open file."""
    for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP):
        yield pa.Table.from_batches([batch])


def read_rows(file: Any, kind: type[R]) -> Iterator[R]:
    """The rows of a Parquet file, one group in memory at a time. `file`: a path or an open file."""
    for table in read_tables(file):
        yield from records_of(table, kind)


def table_of(rows: Sequence[Record]) -> pa.Table:
    """`rows`, all of one class, as a table."""
    if not rows:
        return pa.table({})
    schema = schema_of(type(rows[0]))
    binary = [field.name for field in schema if field.type in (TOKEN_IDS, FILES)]
    plain = pa.schema([field for field in schema if field.name not in binary])
    table = pa.Table.from_pylist([row.model_dump(mode="json", exclude=set(binary)) for row in rows], plain)
    for index, field in enumerate(schema):
        if field.name in binary:
            cells = [getattr(row, field.name) for row in rows]
            column = _token_column(cells) if field.type == TOKEN_IDS else pa.array(map(list, cells), FILES)
            table = table.add_column(index, field, column)
    return table


def records_of(table: pa.Table, kind: type[R]) -> Iterator[R]:
    """The rows of a table as records of class `kind`."""
    names = [field.name for field in schema_of(kind) if field.type == TOKEN_IDS and field.name in table.column_names]
    columns = [_read_token_column(table[name]) for name in names]
    for row, *ids in zip(table.drop_columns(names).to_pylist(), *columns, strict=True):
        yield kind.model_validate(row | dict(zip(names, ids, strict=True)))


def _token_column(cells: Sequence[TokenIds | None]) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(cell or ()) for cell in cells)], dtype=np.int32)
    arrays = [cell.array for cell in cells if cell is not None]
    values = pa.array(np.concatenate(arrays) if arrays else np.array([], dtype=np.uint32))
    mask = pa.array([cell is None for cell in cells])
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=TOKEN_IDS, mask=mask)


def _read_token_column(column: pa.ChunkedArray) -> list[TokenIds | None]:
    """Shares memory with the column. Tables of earlier versions hold eight bytes for each id."""
    lists = column.combine_chunks().cast(TOKEN_IDS)
    values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    cells = [TokenIds.of(values[start:end]) for start, end in pairwise(offsets.tolist())]
    return [cell if there else None for cell, there in zip(cells, lists.is_valid().to_pylist(), strict=True)]
