"""Reads the rows of data set files as a stream: JSON Lines, JSON, CSV or Parquet, on any file system of fsspec.

A file that cannot be read raises ProblemsRefused, whose one line says what is wrong and how to correct it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.registry import known_implementations

from conf.errors import ReadableError
from reasoning.records import InvalidRow

SUFFIXES = (".jsonl", ".parquet", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
MAX_LINE_BYTES = 64 << 20
"""Longest accepted line of a text file, in bytes."""
ROWS_PER_BATCH = 1024
"""Rows of a Parquet file that are converted to Python objects at once."""


class ProblemsRefused(ReadableError):
    """A source cannot be used. The message says what is wrong, where, and what to do."""


class Row(NamedTuple):
    """One row of a file."""

    location: str
    """File and line or index, for messages."""
    number: int
    """Position in the file, from 0."""
    content: Any
    """The parsed row, or an InvalidRow."""


class Fields(NamedTuple):
    """Names of the fields that are read; other columns of a Parquet file are skipped."""

    needed: frozenset[str]
    optional: frozenset[str]


def files_of(path: str) -> list[str]:
    """The file at `path`, or the sorted matches of the pattern `path`. Raises ProblemsRefused."""
    with readable_errors(path):
        files, location = fsspec.url_to_fs(path)
        if files.exists(location):
            names = [path]
        else:
            matches = sorted(map(str, files.glob(location))) if any(sign in location for sign in "*?[") else []
            names = [files.unstrip_protocol(match).removeprefix("file://") for match in matches]
        # Over HTTP, isdir would read the whole file.
        if names == [path] and not path.startswith("http") and files.isdir(location):
            raise ProblemsRefused(f"{path}: a folder; name its files in problems.path, such as {path}/*.jsonl")
    if not names:
        raise ProblemsRefused(f"{path}: no such file; correct problems.path")
    for name in names:
        validate_file_type(name)
    return names


def validate_file_type(name: str) -> None:
    """Raises ProblemsRefused for an unsupported file type."""
    if not name.endswith(SUFFIXES):
        raise ProblemsRefused(
            f"{name}: problems come from .jsonl or .parquet files, also from {', '.join(SUFFIXES[2:])}; convert it and "
            f"change problems.path"
        )


def digest_of(names: Sequence[str]) -> str:
    """Digest of the files' contents, in the given order. Raises ProblemsRefused."""
    digests = []
    for name in names:
        with readable_errors(name), fsspec.open(name, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())  # pyright: ignore[reportArgumentType]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def rows_of(name: str, fields: Fields, order: Callable[[int], Sequence[int]] = range) -> Iterator[Row]:
    """The rows of one file. Raises ProblemsRefused for a damaged file.

    Of a Parquet file only `fields` are read. `order` maps the number of row groups to the order in which they are read.
    """
    validate_file_type(name)
    with readable_errors(name):
        if name.endswith(".parquet"):
            yield from _rows_of_parquet(name, fields, order)
            return
        read = {"jsonl": _rows_of_lines, "json": _rows_of_json, "csv": _rows_of_csv}
        handle: Any = fsspec.open(name, "rb", compression="infer")
        with handle as file:
            yield from read[name.removesuffix(".gz").rpartition(".")[2]](file, name)


@contextmanager
def readable_errors(path: str) -> Iterator[None]:
    """Turns any exception of a file system or parser into ProblemsRefused with a one-line message."""
    try:
        yield
    except ReadableError:
        raise
    except Exception as error:  # clients of remote file systems raise many types
        raise ProblemsRefused(f"{path}: {_explanation(path, error)}") from None


def _explanation(path: str, error: Exception) -> str:
    """What is wrong and what to do, in one line."""
    protocol = path.partition("://")[0]
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    match error:
        case ImportError():
            package = known_implementations.get(protocol, {}).get("err", message)
            return f"{protocol}:// needs a package that is not installed ({package}); install it, or copy the file here"
        case ValueError() if message.startswith("Protocol not known"):
            return (
                f"unknown protocol {protocol}://; name a local path, or a URL such as s3://, gs://, https:// or hf://"
            )
        case FileNotFoundError():
            return "no such file; correct problems.path"
        case PermissionError():
            return "not allowed to read it; change its permissions, or give this user the credentials for it"
        case UnicodeDecodeError():
            return "not UTF-8; save the file as UTF-8"
        case pa.ArrowException() | OSError() if path.endswith(".parquet"):
            return f"not a Parquet file, or damaged ({message}); write it again"
        case gzip.BadGzipFile() | EOFError() | zlib.error():
            return f"not a gzip file, or damaged ({message}); write it again"
        case json.JSONDecodeError() | RecursionError():
            return f"not JSON ({message}); correct it"
        case _:
            return f"cannot be read ({message}); correct problems.path, or copy the file here"


def _rows_of_lines(file: IO[bytes], name: str) -> Iterator[Row]:
    """JSON Lines. A malformed line becomes an InvalidRow."""
    for number, line in enumerate(_lines(file)):
        location = f"{name}:{number + 1}"
        if line is None:
            detail = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; shorten or remove it"
            yield Row(location, number, InvalidRow(location=location, id=None, reason="too-long", detail=detail))
        elif line.strip():
            yield Row(location, number, _parsed(line, location))


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """The lines of a file; None for a line that is too long. At most the length limit is held in memory."""
    buffered = io.BufferedReader(file)  # type: ignore[arg-type]
    while line := buffered.readline(MAX_LINE_BYTES):
        complete = line.endswith(b"\n") or len(line) < MAX_LINE_BYTES
        yield line if complete else None
        while not complete:
            rest = buffered.readline(MAX_LINE_BYTES)
            complete = rest.endswith(b"\n") or len(rest) < MAX_LINE_BYTES


def _parsed(line: bytes, location: str) -> Any:
    try:
        return json.loads(line, parse_float=_decimal)
    except UnicodeDecodeError:
        return InvalidRow(
            location=location, id=None, reason="not-utf-8", detail="the line is not UTF-8; save the file as UTF-8"
        )
    except (ValueError, RecursionError) as error:
        return InvalidRow(
            location=location, id=None, reason="malformed-json", detail=f"not JSON ({error}); correct the line"
        )


def _decimal(text: str) -> Decimal:
    """The exact number, not the nearest float."""
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"a number out of range: {text[:20]}") from None


def _rows_of_json(file: IO[bytes], name: str) -> Iterator[Row]:
    """A list of rows, or an object with exactly one list; or JSON Lines, as in many files named .json."""
    text = file.read()
    try:
        value = json.loads(text, parse_float=_decimal)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        yield from _rows_of_lines(io.BytesIO(text), name)
        return
    lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise ProblemsRefused(f"{name}: neither a list of rows nor an object that holds one list; write it as .jsonl")
    for number, row in enumerate(lists[0]):
        yield Row(f"{name}, row {number}", number, row)


def _rows_of_csv(file: IO[bytes], name: str) -> Iterator[Row]:
    """CSV with a header line. Every field is text, so `007` keeps its zeros."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")  # type: ignore[type-var]
    reader = csv.DictReader(text)
    for number, row in enumerate(reader):
        yield Row(f"{name}:{reader.line_num}", number, row)


def _rows_of_parquet(name: str, fields: Fields, order: Callable[[int], Sequence[int]]) -> Iterator[Row]:
    # fsspec's cache would read megabytes ahead, also of columns that are skipped.
    with fsspec.open(name, "rb", cache_type="none") as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        columns = _columns(parquet.schema_arrow.names, fields, name)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        for group in order(len(sizes)):
            number = sum(sizes[:group])
            for batch in parquet.iter_batches(ROWS_PER_BATCH, [group], columns):
                for content in _objects(pa.Table.from_batches([batch]), name):
                    yield Row(f"{name}, row {number}", number, content)
                    number += 1


def _columns(names: Sequence[str], fields: Fields, file: str) -> list[str]:
    """The columns that contain the fields. Raises ProblemsRefused when a needed field is missing."""
    column = {field: field if field in names else field.partition(".")[0] for field in fields.needed | fields.optional}
    for field in sorted(fields.needed):
        if column[field] not in names:
            known = ", ".join(map(repr, names[:12]))
            raise ProblemsRefused(f"{file}: no field {field!r}; its fields: {known}. Correct problems.columns")
    return [name for name in names if name in column.values()]


def _objects(table: pa.Table, name: str) -> Iterator[Any]:
    """The rows as Python objects; an InvalidRow for a row with text that is not UTF-8."""
    table = _shortest_floats(table)
    try:
        yield from table.to_pylist()
    except UnicodeDecodeError:
        for index in range(table.num_rows):
            try:
                yield from table.slice(index, 1).to_pylist()
            except UnicodeDecodeError:
                detail = "text is not UTF-8; write the file again"
                yield InvalidRow(location=name, id=None, reason="not-utf-8", detail=detail)


def _shortest_floats(table: pa.Table) -> pa.Table:
    """Rounds 32-bit floats to their shortest decimal: 0.1, not 0.10000000149011612."""
    schemas = [
        pa.schema([field.with_type(_float_as(field.type, new)) for field in table.schema])
        for new in (pa.string(), pa.float64())
    ]
    return table if schemas[0].equals(table.schema) else table.cast(schemas[0]).cast(schemas[1])


def _float_as(kind: pa.DataType, new: pa.DataType) -> pa.DataType:
    """`kind` with 32-bit floats replaced by `new`, at any depth."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_float_as(field.type, new)) for field in kind.fields])
    if pa.types.is_list(kind):
        return pa.list_(_float_as(kind.value_type, new))
    return new if pa.types.is_float32(kind) else kind
