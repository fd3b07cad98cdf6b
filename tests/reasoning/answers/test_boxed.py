from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.answers.boxed import boxed, plain_number, settle, until_closing_brace
from reasoning.thinking import final_answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{38}.", "38"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} and an open \boxed{4", None),
        (r"\boxed{3} and then \boxed", None),
        (r"\boxed{3}, which I put into \boxed{}", "3"),
        (r"\boxed{3, or rather \boxed{4}", "4"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed {4}", "4"),
        (r"$\boxed{4}$", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x=1 \right.}", r"\left\{ x=1 \right."),
        (r"\boxed{\{1, 2\}", None),
        (r"x = 4 \\ \boxed{4}", "4"),
        (r"\\boxed{\\frac{1}{2}}", r"\\frac{1}{2}"),
        (r"x \\\boxed{4}", "4"),
        (r"\boxed{\begin{array}{c} a \\{b} \end{array}}", r"\begin{array}{c} a \\{b} \end{array}"),
        (r"}} \boxed{5}", "5"),
        (r"\fbox{7}", "7"),
        ("no box", None),
        (r"\boxed{}", ""),
    ],
)
def test_last_closed_box_is_used(text: str, content: str | None):
    assert boxed(text) == content


def test_text_up_to_the_unmatched_closing_brace():
    assert until_closing_brace(r"\frac{1}{2}} and {more}") == r"\frac{1}{2}"
    assert until_closing_brace("12") is None


def test_box_inside_thinking_is_no_answer():
    assert final_answer(r"I get \boxed{4}") is None
    assert final_answer(r"I get \boxed{4}</think> Done.") is None
    assert final_answer(r"\boxed{4}</think>It is \boxed{5}.") == "5"


@given(st.integers(), st.integers())
def test_plain_integers_are_compared_by_value(a: int, b: int):
    assert settle(str(a), str(b)) is (a == b)
    assert settle(f"{a:,}", f" {b} ") is (a == b)


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("1000.0", "1,000", True),
        ("2", "2.0001", False),
        ("$38$", "38", True),
        (r"\$10", "10", True),
        ("007", "7", True),
        ("0,111", "0.111", None),  # a decimal comma or nothing sensible: not for the fast path
        ("1,22", "1.22", None),
        ("50%", "50", None),
        ("x+1", "x+1", True),
        ("x+1", "1+x", None),
        ("٣", "3", None),  # digits of other scripts are left to the parser
    ],
)
def test_only_unambiguous_cases_are_settled(answer: str, gold: str, verdict: bool | None):
    assert settle(answer, gold) is verdict


def test_many_nested_boxes_take_linear_time():
    assert boxed(r"\boxed{" * 20_000) is None
    assert boxed(r"\boxed{" * 20_000 + "4}") == "4"


def test_plain_numbers_are_exact():
    assert plain_number("9" * 5000) is None  # longer than Python reads
    assert plain_number("-1,234.50") == Fraction(-2469, 2)
    assert plain_number("1e5") is None
