"""Records in Parquet files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reasoning.records as every
from reasoning.records import ImagePart, OptimisedTrace, Problem, Record, Scan, Score, TextPart, Trace, Verdict
from reasoning.token_ids import TokenIds
from tasks.runtime.rows import ROWS_PER_GROUP, RowFile, read_rows, records_of, schema_of, table_of

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=5).map(TokenIds)
TRACES = st.builds(
    Trace,
    problem_id=st.text(max_size=3),
    sample=st.integers(0, 9),
    token_ids=IDS,
    text=st.text(max_size=5),
    truncated=st.booleans(),
    verdict=st.sampled_from(Verdict),
)
OPTIMISED = st.builds(
    OptimisedTrace,
    problem_id=st.text(max_size=3),
    sample=st.integers(0, 9),
    token_ids=IDS,
    removed=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    premature_ids=st.none() | IDS,
)


@settings(deadline=None)  # Arrow is loaded in the first example
@given(st.lists(TRACES, max_size=6) | st.lists(OPTIMISED, max_size=6))
def test_rows_come_back_as_they_were(rows: list[Any]):
    assert list(records_of(table_of(rows), type(rows[0]) if rows else Trace)) == rows


@pytest.mark.parametrize(
    "row",
    [
        Problem(id="a", prompt=(TextPart(text="x"),), answer="1", choices=("1", "2"), level=3),
        Problem(id="b", prompt=(), answer="1"),
        Problem(id="c", prompt=(ImagePart(), TextPart(text="x")), images=(b"\x89PNG\xff\0", b""), answer="1"),
        Scan(problem_id="a", sample=0, ends=(3, 9), probes=({"segment": 0, "right": 1, "total": 8},), crossing=None),  # type: ignore[arg-type]
        Score(problem_id="a", level=None, sample=0, prompt_tokens=1, tokens=2, truncated=False, verdict=Verdict.RIGHT),
    ],
)
def test_nested_and_missing_fields_come_back(row: Record):
    assert list(records_of(table_of([row]), type(row))) == [row]


def test_every_record_of_a_step_has_a_schema():
    kinds = [kind for kind in vars(every).values() if isinstance(kind, type) and issubclass(kind, Record)]
    without = {kind.__name__ for kind in kinds if not _has_schema(kind)}
    assert without == {"StageCount"}  # it stands in manifests, not in rows


def _has_schema(kind: type[Record]) -> bool:
    try:
        return schema_of(kind) is not None
    except (KeyError, TypeError, ValueError):
        return False


@pytest.mark.parametrize("count", [0, 1, ROWS_PER_GROUP, 2 * ROWS_PER_GROUP + 1])
def test_a_file_is_written_and_read_group_by_group(count: int):
    rows = [_optimised(number) for number in range(count)]
    with RowFile() as file:
        file.extend(rows)
        assert (len(file), list(file.read(OptimisedTrace))) == (count, rows)
        groups = pq.ParquetFile(file.path).metadata.num_row_groups
        assert groups == max(1, -(-count // ROWS_PER_GROUP))
    assert not file.path.exists()


def _optimised(number: int) -> OptimisedTrace:
    premature = TokenIds((number,)) if number % 2 else None
    return OptimisedTrace(problem_id="p", sample=number, token_ids=TokenIds((1, 2, number)), premature_ids=premature)


@given(st.permutations(range(30)), st.integers(0, 30))
@settings(deadline=None, max_examples=20)
def test_rows_come_in_another_order(order: list[int], count: int):
    places = sorted(range(count), key=lambda row: order[row])
    places = [places.index(row) for row in range(count)]
    with RowFile() as file:
        file.extend(
            Score(
                problem_id=str(n),
                level=None,
                sample=0,
                prompt_tokens=1,
                tokens=n,
                truncated=False,
                verdict=Verdict.RIGHT,
            )
            for n in range(count)
        )
        found = [row.tokens for row in file.reordered(places, Score)]
    assert [places[row] for row in found] == list(range(count))


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path):
    row = _optimised(1)
    pq.write_table(pa.Table.from_pylist([row.model_dump(mode="json")]), tmp_path / "old.parquet")
    assert list(read_rows(tmp_path / "old.parquet", OptimisedTrace)) == [row]
