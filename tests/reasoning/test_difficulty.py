"""Difficulty by effort, and the query to a rater model."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.difficulty import Level, difficulty_query, effort, levels
from reasoning.records import Problem, TextPart


def test_effort_is_tokens_divided_by_success_rate():
    assert effort(right=4, samples=4, needed=50) == pytest.approx(50 * 6 / 5)
    assert effort(right=0, samples=4, needed=50) == pytest.approx(50 * 6)
    assert effort(4, 4, 50) < effort(3, 4, 50) < effort(3, 4, 51)


def test_levels_are_deciles():
    assert levels({str(n): float(n) for n in range(20)}) == {str(n): 1 + n // 2 for n in range(20)}
    assert levels({"only": 3.0}) == {"only": 1}


@given(st.dictionaries(st.text(max_size=3), st.floats(0.1, 1e6), min_size=1, max_size=40))
def test_more_effort_never_gives_a_lower_level(efforts: dict[str, float]):
    found = levels(efforts)
    assert found.keys() == efforts.keys()
    assert all(1 <= level <= 10 for level in found.values())
    assert all(found[a] <= found[b] for a in efforts for b in efforts if efforts[a] <= efforts[b])


def test_query_does_not_reveal_answer_or_level():
    text, answer = "How many apples?", "123456"
    query = difficulty_query(Problem(id="p", prompt=(TextPart(text=text),), answer=answer, level=7))
    same = difficulty_query(Problem(id="q", prompt=(TextPart(text=text),), answer="5", level=2))
    assert query == same
    assert text in query.material
    assert answer not in query.material + query.task


@pytest.mark.parametrize("level", [0, 11, "7.5", None])
def test_invalid_level_is_rejected(level: object):
    with pytest.raises(ValueError, match="level"):
        Level.model_validate_json(json.dumps({"level": level}))
