"""Joins of rows about traces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.records import ProposedRemovals, left_joined, trace_name

NAMES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), unique=True, max_size=8)


def rows(names: list[tuple[str, int]], mark: int) -> list[ProposedRemovals]:
    return [ProposedRemovals(problem_id=problem, sample=sample, segments=(mark,)) for problem, sample in names]


@given(NAMES, st.data())
def test_each_row_meets_the_other_one_of_its_trace(names: list[tuple[str, int]], data: st.DataObject):
    present = [name for name in names if data.draw(st.booleans())]
    joined = list(left_joined(rows(names, 1), rows(present, 2), trace_name))
    assert [trace_name(left) for left, _ in joined] == names
    assert [trace_name(right) if right else None for _, right in joined] == [
        name if name in present else None for name in names
    ]


@pytest.mark.parametrize("right", [[("b", 0), ("a", 0)], [("c", 0)]])
def test_rows_out_of_order_or_of_no_trace_are_no_match_in_silence(right: list[tuple[str, int]]):
    with pytest.raises(ValueError, match="not in the order of the traces, or of no trace"):
        list(left_joined(rows([("a", 0), ("b", 0)], 1), rows(right, 2), trace_name))
