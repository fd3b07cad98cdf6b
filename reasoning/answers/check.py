r"""Decides whether an answer is correct by this project's own parser: options, texts, formulas.

Sound: anything not fully understood gives None, never "correct".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from reasoning.answers.equality import equal
from reasoning.answers.forms import readings
from reasoning.answers.formulas import TooLarge
from reasoning.answers.options import chosen
from reasoning.answers.text import as_text, stated, stripped

_OPTION = re.compile(r"\(([a-z])\)")
_DECIMAL_COMMA = re.compile(r"([+-]?)(\d{1,3}(?:[. ]\d{3})+|\d+),(\d+)")


def same(answer: str, gold: str, choices: Sequence[str] | None = None) -> bool | None:
    """Whether `answer` equals the correct answer `gold`; None if undecided. Never raises."""
    if choices is not None:
        return _same_option(answer, gold, choices)
    answer = stated(answer)
    text, right = as_text(answer), as_text(gold)
    if text == right:
        return True
    if (option := _OPTION.fullmatch(right)) and re.fullmatch(rf"\({option[1]}\)\s?\w\w[^()]*", text):
        return True
    if _with_decimal_comma(answer, gold) or _with_decimal_comma(gold, answer):
        return True
    return _same_form(answer, gold)


def _same_option(answer: str, gold: str, choices: Sequence[str]) -> bool:
    right = _options(gold, choices, several=True)
    return bool(right) and _options(answer, choices, several=len(right) > 1) == right


def _options(answer: str, choices: Sequence[str], several: bool) -> frozenset[str]:
    return chosen(answer, choices, lambda text, choice: same(text, choice) is True, several)


def _same_form(answer: str, gold: str) -> bool | None:
    given, right = readings(answer), readings(gold)
    if not given or not right:
        return None
    try:
        return any(equal(one, other) for one in given for other in right)
    except (TooLarge, RecursionError):
        return None


def _with_decimal_comma(one: str, other: str) -> bool:
    """Whether `one` is `other` with a decimal comma, such as 1000,99 for 1000.99. Requires decimals on the other side,
    because 1,5 may be a list and 1,500 is 1500."""
    match = _DECIMAL_COMMA.fullmatch(stripped(one).replace("{,}", ","))
    if not match or not re.fullmatch(r"[+-]?\d+\.\d+", stripped(other)):
        return False
    if len(match[3]) == 3 and match[2][0] != "0" and len(match[2]) <= 3:
        return False
    whole = re.sub(r"[. ]", "", match[2])
    return Fraction(f"{match[1]}{whole}.{match[3]}") == Fraction(stripped(other))


def is_readable(gold: str, choices: Sequence[str] | None = None) -> bool:
    """Whether a correct answer can be distinguished from wrong ones: a formula, a text without leftover LaTeX, or an
    option."""
    if choices is not None:
        return bool(_options(gold, choices, several=True))
    return bool(readings(gold)) or bool(re.fullmatch(r"[^\\{}$^_]*\w[^\\{}$^_]*", as_text(gold)))
