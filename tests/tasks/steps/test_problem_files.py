"""Rows from files of every format; an unreadable file is a one-line error."""

import csv
import gzip
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.datasets import Columns
from reasoning.problem_rows import needed_fields, optional_fields
from reasoning.records import InvalidRow
from tasks.steps import problem_files
from tasks.steps.problem_files import Fields, ProblemsRefused, Row, digest_of, files_of, readable_errors, rows_of

ROWS: list[dict[str, Any]] = [{"id": f"p{n}", "problem": f"{n}+½?", "answer": n + 0.5} for n in range(2500)]
COLUMNS = Columns()
FIELDS = Fields(needed_fields(COLUMNS), optional_fields(COLUMNS))


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(path: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> None:
    pq.write_table(pa.Table.from_pylist([*rows]), path, **settings)


def as_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


WRITE: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_bytes(lines(ROWS)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS)),
    "crlf.jsonl": lambda path: path.write_bytes(lines(ROWS).replace(b"\n", b"\r\n")),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS))),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "bom.json": lambda path: path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
    "object.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "lines.json": lambda path: path.write_bytes(lines(ROWS)),
    "rows.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "rows.parquet": lambda path: parquet(path, ROWS, row_group_size=700),
    "rows.csv": lambda path: as_csv(path, ROWS),
}


def contents(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [{name: str(value) for name, value in row.content.items()} for row in rows]


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, where: str):
    WRITE[name](tmp_path / name)
    path = str(tmp_path / name)
    if where == "memory":
        path = f"memory://{tmp_path.name}/{name}"
        fsspec.filesystem("memory").pipe(path, (tmp_path / name).read_bytes())
    assert files_of(path) == [path]
    rows = list(rows_of(path, FIELDS))
    assert contents(rows) == [{name: str(value) for name, value in row.items()} for row in ROWS]
    assert [row.number for row in rows] == list(range(len(ROWS)))
    assert len({row.location for row in rows}) == len(ROWS)
    assert all(row.location.startswith(path) for row in rows)


def test_a_pattern_gives_sorted_files(tmp_path: Path):
    for name in ("b.jsonl", "a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(lines(ROWS[:1]))
    assert files_of(f"{tmp_path}/*.jsonl") == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    (tmp_path / "[1].jsonl").write_bytes(lines(ROWS[:1]))
    assert files_of(f"{tmp_path}/[1].jsonl") == [f"{tmp_path}/[1].jsonl"]
    fsspec.filesystem("memory").pipe("memory://several/a.jsonl", b"")
    assert files_of("memory://several/*.jsonl") == ["memory:///several/a.jsonl"]


def test_the_digest_covers_contents_in_order(tmp_path: Path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert digest_of([a]) == digest_of([c]) != digest_of([b])
    assert digest_of([a, b]) == digest_of([c, b]) != digest_of([b, a])


def test_numbers_keep_their_value(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"problem": "?", "answer": 0.12345678901234567890123}\n')
    (row,) = rows_of(str(tmp_path / "rows.jsonl"), FIELDS)
    assert row.content["answer"] == Decimal("0.12345678901234567890123")
    single = pa.array([0.1, 1e-5, None, 2.0], pa.float32())
    table = pa.table(
        {
            "problem": ["?"] * 4,
            "answer": single,
            "decimal": pa.array([Decimal("2.50")] * 4),
            "struct": pa.StructArray.from_arrays([single], ["x"]),
            "double": [0.1] * 4,
            "list": pa.array([[0.1], [], None, [0.3]], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    fields = Fields(frozenset({"problem", "answer"}), frozenset({"decimal", "struct.x", "list", "double"}))
    read = [row.content for row in rows_of(str(tmp_path / "rows.parquet"), fields)]
    assert [row["answer"] for row in read] == [0.1, 1e-5, None, 2.0]
    assert [row["struct"]["x"] for row in read] == [0.1, 1e-5, None, 2.0]
    assert [row["list"] for row in read] == [[0.1], [], None, [0.3]]
    assert read[0]["decimal"] == Decimal("2.50")
    assert read[0]["double"] == 0.1


def test_only_the_columns_of_a_problem_are_read(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    parquet(path, [row | {"trace": os.urandom(50).hex()} for row in ROWS[:10]], compression="gzip")
    where = pq.ParquetFile(path).metadata.row_group(0).column(3)
    assert where.path_in_schema == "trace"
    content = bytearray(path.read_bytes())
    start = where.dictionary_page_offset or where.data_page_offset
    content[start : start + where.total_compressed_size] = bytes(where.total_compressed_size)
    path.write_bytes(content)
    assert [row.content for row in rows_of(str(path), FIELDS)] == ROWS[:10]
    with pytest.raises(ProblemsRefused, match=r"rows\.parquet: not a Parquet file, or damaged"):
        list(rows_of(str(path), FIELDS._replace(optional=frozenset({"trace"}))))


def test_a_parquet_file_without_a_needed_column_is_refused_before_it_is_read(tmp_path: Path):
    parquet(tmp_path / "rows.parquet", [{"question": "?", "answer": {"x": 1}}])
    path = str(tmp_path / "rows.parquet")
    with pytest.raises(ProblemsRefused, match=r"no field 'problem'; its fields: 'question', 'answer'\. Correct"):
        next(rows_of(path, FIELDS))
    fields = Fields(frozenset({"question", "answer.x"}), frozenset({"level"}))
    assert next(rows_of(path, fields)).content == {"question": "?", "answer": {"x": 1}}


def test_row_groups_come_in_the_requested_order(tmp_path: Path):
    parquet(tmp_path / "rows.parquet", ROWS[:10], row_group_size=4)
    rows = list(rows_of(str(tmp_path / "rows.parquet"), FIELDS, lambda count: range(count)[::-1]))
    assert [row.number for row in rows] == [8, 9, 4, 5, 6, 7, 0, 1, 2, 3]
    assert [row.content for row in rows] == [ROWS[row.number] for row in rows]


def test_malformed_lines_are_invalid_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(problem_files, "MAX_LINE_BYTES", 500)
    good = lines(ROWS[:1])
    content = [
        good,
        b"{\n",
        b'{"problem": "\xff"}\n',
        b"[" * 400 + b"\n",
        b"x" * 10_000 + b"\n",
        b"\n",
        b'{"a": ' + b"1" * 450 + b"}\n",
        good.rjust(500),
        b"y" * 501,
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(content))
    rows = list(rows_of(str(tmp_path / "rows.jsonl"), FIELDS))
    assert [row.location.rpartition(":")[2] for row in rows] == ["1", "2", "3", "4", "5", "7", "8", "9"]
    reasons = [row.content.reason if isinstance(row.content, InvalidRow) else None for row in rows]
    assert reasons == [None, "malformed-json", "not-utf-8", "malformed-json", "too-long", None, None, "too-long"]


@pytest.mark.parametrize("value", [b"[" * 1_000_000, b"1e99999999999999999999}", b"1" * 5000 + b"}"])
def test_extreme_values_are_invalid_rows(tmp_path: Path, value: bytes):
    (tmp_path / "rows.jsonl").write_bytes(b'{"answer": ' + value + b"\n" + lines(ROWS[:1]))
    first, second = rows_of(str(tmp_path / "rows.jsonl"), FIELDS)
    assert isinstance(first.content, InvalidRow)
    assert second.content["id"] == "p0"


def test_text_in_parquet_that_is_not_utf_8_is_one_invalid_row(tmp_path: Path):
    problems = pa.array([b"1?", b"\xff", b"3?"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"problem": problems, "answer": [1, 2, 3]}), tmp_path / "rows.parquet")
    rows = [row.content for row in rows_of(str(tmp_path / "rows.parquet"), FIELDS)]
    assert [row.reason if isinstance(row, InvalidRow) else row["problem"] for row in rows] == ["1?", "not-utf-8", "3?"]


def damaged(path: Path) -> None:
    """Writes a Parquet file with overwritten pages."""
    parquet(path, ROWS)
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)


def checksummed(path: Path) -> None:
    """Writes a Parquet file with one changed character, which only the page checksum detects."""
    parquet(path, ROWS, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    path.write_bytes(content.replace("1+½?".encode(), "2+½?".encode(), 1))


def read(path: str) -> list[Row]:
    names = files_of(path)
    digest_of(names)
    return [row for name in names for row in rows_of(name, FIELDS)]


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("none.jsonl", lambda path: None, ["no such file; correct problems.path"]),
        ("none/*.jsonl", lambda path: None, ["no such file; correct problems.path"]),
        ("folder", Path.mkdir, ["a folder; name its files in problems.path", "folder/*.jsonl"]),
        ("folder.jsonl", Path.mkdir, ["a folder; name its files"]),
        ("rows.xlsx", Path.touch, ["problems come from .jsonl or .parquet files", "convert it"]),
        ("rows.parquet", Path.touch, ["not a Parquet file, or damaged", "write it again"]),
        ("rows.parquet", damaged, ["not a Parquet file, or damaged", "write it again"]),
        ("rows.parquet", checksummed, ["not a Parquet file, or damaged", "write it again"]),
        ("rows.json", lambda path: path.write_text('{"a": 1}'), ["neither a list of rows nor an object that holds"]),
        ("rows.json", lambda path: path.write_text('{"a": [], "b": []}'), ["neither a list of rows"]),
        ("rows.json", lambda path: path.write_text("7"), ["neither a list of rows"]),
        ("rows.json", lambda path: path.write_text("[1, 2"), ["not JSON", "correct it"]),
        ("rows.json", lambda path: path.write_text("[" * 100_000), ["not JSON", "correct it"]),
        ("rows.json", lambda path: path.write_bytes(b'["\xff"]'), ["not UTF-8; save the file as UTF-8"]),
        ("rows.csv", lambda path: path.write_bytes(b"id,problem\n1,\xff\n"), ["not UTF-8; save the file as UTF-8"]),
        ("rows.csv", lambda path: path.write_text("id\n" + "x" * 200_000), ["cannot be read (field larger than"]),
        ("rows.jsonl.gz", lambda path: path.write_text("{}"), ["not a gzip file, or damaged", "write it again"]),
        ("rows.jsonl.gz", lambda path: path.write_bytes(gzip.compress(lines(ROWS))[:-99]), ["not a gzip file"]),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, name: str, write: Callable[[Path], Any], words: list[str]
):
    write(tmp_path / name)
    with pytest.raises(ProblemsRefused) as refused:
        read(str(tmp_path / name))
    assert str(refused.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://bucket/rows.jsonl", "s3fs"),
        ("gs://bucket/rows.jsonl", "gcsfs"),
        ("gcs://bucket/*.parquet", "gcsfs"),
        ("abfs://box/rows.jsonl", "adlfs"),
        ("foo://rows.jsonl", "unknown protocol foo://"),
    ],
)
def test_a_missing_file_system_package_is_named_with_the_remedy(path: str, words: str, monkeypatch: pytest.MonkeyPatch):
    for package in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for protocol in ("s3", "gs", "gcs", "abfs"):  # a test before this one may have used it
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    with pytest.raises(ProblemsRefused) as refused:
        files_of(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "not allowed to read it; change its permissions"),
        (RuntimeError("Unable to locate credentials\nTraceback"), "cannot be read (Unable to locate credentials)"),
        (ConnectionError("no route"), "cannot be read (no route)"),
        (KeyError(), "cannot be read (KeyError)"),
    ],
)
def test_any_exception_of_a_client_is_one_line(error: Exception, words: str):
    with pytest.raises(ProblemsRefused) as refused, readable_errors("s3://bucket/rows.jsonl"):
        raise error
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_random_damage_in_a_parquet_file_never_crashes(tmp_path: Path):
    """Each of 200 damaged files is read or refused."""
    rng = random.Random(0)
    outcomes = set()
    for compression in ("snappy", "none"):
        parquet(tmp_path / "good.parquet", ROWS[:300], compression=compression, row_group_size=100)
        good = (tmp_path / "good.parquet").read_bytes()
        for _ in range(100):
            damaged_bytes = bytearray(good)
            for _ in range(rng.choice((1, 30))):
                damaged_bytes[rng.randrange(len(damaged_bytes))] = rng.randrange(256)
            (tmp_path / "bad.parquet").write_bytes(damaged_bytes)
            try:
                outcomes.add(len(list(rows_of(str(tmp_path / "bad.parquet"), FIELDS))))
            except ProblemsRefused:
                outcomes.add(-1)
    assert {-1, 300} <= outcomes
