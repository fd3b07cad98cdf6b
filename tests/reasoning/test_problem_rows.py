import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.settings import Columns
from reasoning.problem_rows import problem_of
from reasoning.records import BadRow, Problem

ROW = {"id": "a", "problem": "1+1?", "answer": "2"}


def made(row: Any, **columns: str) -> Problem | BadRow:
    return problem_of(row, "file:3", "row-7", Columns.model_validate(columns))


def test_a_row_becomes_a_problem():
    problem = made(ROW | {"level": "Level 5"}, level="level")
    assert isinstance(problem, Problem)
    assert (problem.id, problem.text, problem.answer, problem.level) == ("a", "1+1?", "2", 5)


def test_a_row_without_an_id_is_named_by_its_position():
    problem = made({"q": "1+1?", "answer": 2.0}, id="", problem="q")
    assert isinstance(problem, Problem)
    assert (problem.id, problem.answer) == ("row-7", "2")


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("boxed", r"So \boxed{1} or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("hashes", "16 - 3 = 13\n#### 1,300", "1300"),
        ("hashes", "a #### 5 b #### (1,2)\n\nGood luck", "(1,2)"),
        ("plain", " 7 ", "7"),
    ],
)
def test_where_the_right_answer_stands(kind: str, text: str, answer: str):
    problem = made(ROW | {"answer": text}, answer_is=kind)
    assert isinstance(problem, Problem)
    assert problem.answer == answer


@pytest.mark.parametrize(
    ("given", "level"),
    [(2.0, 2), (3, 3), ("Level 5", 5), ("none", None), ("1" * 5000, None), (None, None), (True, None)],
)
def test_a_level_is_a_small_whole_number_or_none(given: Any, level: int | None):
    problem = made(ROW | {"level": given}, level="level")
    assert isinstance(problem, Problem)
    assert problem.level == level


def test_options_are_shown_with_their_letters():
    problem = made(ROW | {"choices": ["cat", "dog"], "answer": "B"}, choices="choices")
    assert isinstance(problem, Problem)
    assert problem.text == "1+1?\n(A) cat\n(B) dog"
    assert problem.choices == ("cat", "dog")


@pytest.mark.parametrize(
    ("row", "columns", "reason", "words"),
    [
        (["x"], {}, "not-an-object", "JSON object"),
        ({"question": "1+1?", "answer": "2"}, {}, "missing-field", "no field 'problem'; its fields: 'question'"),
        (ROW | {"answer": " "}, {}, "missing-field", "field 'answer' is empty"),
        (ROW | {"answer": None}, {}, "missing-field", "field 'answer' is empty"),
        (ROW | {"answer": math.nan}, {}, "missing-field", "field 'answer' is empty"),
        (ROW | {"answer": "no box"}, {"answer_is": "boxed"}, "no-answer", "columns.answer_is = 'boxed'"),
        (ROW, {"choices": "choices"}, "missing-field", "no list of options"),
        (ROW | {"choices": ["cat", None]}, {"choices": "choices"}, "missing-field", "no list of options"),
        (ROW | {"problem": "\ud800"}, {}, "missing-field", "field 'problem' is empty"),
    ],
)  # fmt: skip
def test_a_bad_row_says_what_is_wrong_and_what_to_do(row: Any, columns: dict[str, str], reason: str, words: str):
    bad = made(row, **columns)
    assert isinstance(bad, BadRow)
    assert (bad.place, bad.reason) == ("file:3", reason)
    assert words in bad.detail


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON | st.fixed_dictionaries({"id": JSON, "problem": JSON, "answer": JSON, "choices": JSON}))
def test_whatever_a_row_holds_it_is_a_problem_or_a_bad_row(row: Any):
    for columns in ({}, {"choices": "choices", "level": "id"}, {"answer_is": "hashes"}):
        assert isinstance(made(row, **columns), Problem | BadRow)
