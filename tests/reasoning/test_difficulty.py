"""Ratings by effort, and what a rater model is asked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.difficulty import Level, difficulty_query, effort, levels
from reasoning.records import Problem, TextPart


def test_effort_is_thought_over_the_chance_to_succeed():
    assert effort(right=4, samples=4, needed=50) == pytest.approx(50 * 6 / 5)
    assert effort(right=0, samples=4, needed=50) == pytest.approx(50 * 6)
    assert effort(4, 4, 50) < effort(3, 4, 50) < effort(3, 4, 51)


def test_levels_are_tenths():
    assert levels({str(n): float(n) for n in range(20)}) == {str(n): 1 + n // 2 for n in range(20)}
    assert levels({"only": 3.0}) == {"only": 1}


@given(st.dictionaries(st.text(max_size=3), st.floats(0.1, 1e6), min_size=1, max_size=40))
def test_more_effort_is_never_an_easier_level(efforts: dict[str, float]):
    found = levels(efforts)
    assert found.keys() == efforts.keys()
    assert all(1 <= level <= 10 for level in found.values())
    assert all(found[a] <= found[b] for a in efforts for b in efforts if efforts[a] <= efforts[b])


def test_the_rater_does_not_hear_the_true_level():
    text, answer = "How many apples?", "123456"
    asked = difficulty_query(Problem(id="p", prompt=(TextPart(text=text),), answer=answer, level=7))
    same = difficulty_query(Problem(id="q", prompt=(TextPart(text=text),), answer="5", level=2))
    assert asked == same
    assert text in asked.material
    assert answer not in asked.material + asked.task


@pytest.mark.parametrize("level", [0, 11, "7.5", None])
def test_a_level_is_one_of_ten(level: object):
    with pytest.raises(ValueError, match="level"):
        Level.model_validate_json(json.dumps({"level": level}))
