r"""Compares the forms of two answers.

Conventions, each with a test: lists without brackets have no order, tuples do; a unit may be omitted, a different unit
is wrong; `x = 3` matches `3`, `y = 3` does not match `x = 3`; `x > 3` is `(3, \infty)`; `\pm 2` is the list 2, -2.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

from reasoning.answers import formulas, regions
from reasoning.answers.forms import (
    FLIPPED,
    Assignment,
    Form,
    Items,
    Quantity,
    Region,
    Relation,
    Symbol,
    region_of,
    value_of,
)
from reasoning.answers.formulas import Expression, Undefined
from reasoning.answers.latex import Unreadable


def equal(answer: Form, gold: Form) -> bool:
    """Whether `answer` equals `gold`. Raises TooLarge if the comparison would take long."""
    try:
        return _same(_expanded(answer), _expanded(gold))
    except (Undefined, Unreadable):
        return False


def _expanded(form: Form) -> Form:
    """`form` with ± replaced by the list of both values."""
    if isinstance(form, Quantity) and form.value.has_sign:
        return Items("list", tuple(replace(form, value=formulas.with_sign(form.value, sign)) for sign in (1, -1)))
    if isinstance(form, Assignment):
        return replace(form, values=tuple(map(_expanded, form.values)))
    if isinstance(form, Items):
        items: list[Form] = []
        for item in map(_expanded, form.items):
            flat = isinstance(item, Items) and item.kind == "list" and form.kind in ("list", "{}")
            items += item.items if flat and isinstance(item, Items) else [item]
        return replace(form, items=tuple(items))
    return form


def _same(answer: Form, gold: Form) -> bool:
    if isinstance(answer, Assignment) or isinstance(gold, Assignment):
        return _same_assigned(answer, gold)
    if isinstance(answer, Quantity) and isinstance(gold, Quantity):
        return _same_quantity(answer, gold)
    if isinstance(answer, Region) or isinstance(gold, Region):
        return _same_region(answer, gold)
    if isinstance(answer, Relation) and isinstance(gold, Relation):
        return _same_relation(answer, gold)
    if isinstance(answer, Items) and isinstance(gold, Items):
        return _same_items(answer, gold)
    if isinstance(answer, Symbol) and isinstance(gold, Symbol):
        return answer == gold
    return _same_single(answer, gold)


def _same_single(answer: Form, gold: Form) -> bool:
    """Compares a set with one element to the element, and a ratio of two numbers to their quotient."""
    for one, other in ((answer, gold), (gold, answer)):
        if isinstance(one, Items) and one.kind == "{}" and len(one.items) == 1:
            return _same(one.items[0], other)
        if (
            isinstance(one, Items)
            and one.kind in ("ratio", "time")
            and len(one.items) == 2
            and isinstance(other, Quantity)
        ):
            return bool(not other.unit and formulas.same_value(_quotient(one), value_of(other.value)))
    return False


def _quotient(ratio: Items) -> Any:
    above, below = (value_of(item.value) for item in ratio.items if isinstance(item, Quantity))
    return formulas.divide(above, below)


def _same_assigned(answer: Form, gold: Form) -> bool:
    if not (_is_consistent(answer) and _is_consistent(gold)):
        return False
    if isinstance(answer, Assignment) and isinstance(gold, Assignment):
        named = answer.name and gold.name and answer.name != gold.name
        if named and not (_is_function(answer) and _is_function(gold)):
            return False
        return any(_same(one, other) for one in _answers(answer) for other in _answers(gold))
    if isinstance(answer, Assignment):
        return _answers_for(answer, gold)
    return isinstance(gold, Assignment) and _answers_for(gold, answer)


def _is_consistent(form: Form) -> bool:
    """Whether all parts of a chain of equations are equal: true for x = 1/2 = 0.5, false for 3 = 4."""
    if not isinstance(form, Assignment):
        return True
    return all(_same(one, other) for one, other in pairwise(form.values)) and all(
        _is_near(about, form.values[-1]) for about in form.near
    )


def _is_near(about: Form, value: Form) -> bool:
    """Whether two values differ by at most 5 %, more than any rounding changes."""
    if not (isinstance(about, Quantity) and isinstance(value, Quantity)):
        return about == value
    a, b = (formulas.inexact(value_of(form.value)) for form in (about, value))
    return bool(abs(a - b) <= max(abs(a), abs(b)) / 20)


def _answers_for(assignment: Assignment, other: Form) -> bool:
    """Whether an assignment equals an equation, or a value without a name."""
    if isinstance(other, Relation):
        return assignment.equation is not None and _same_relation(assignment.equation, other)
    return any(_same(one, other) for one in _answers(assignment))


def _answers(form: Assignment) -> tuple[Form, ...]:
    """The value and its approximations."""
    return (form.values[-1], *form.near)


def _is_function(form: Assignment) -> bool:
    """Whether the assignment defines a function. f(x) and y are equivalent names."""
    value = form.values[-1]
    if not isinstance(value, Quantity) or not value.value.letters:
        return False
    of_letter = re.fullmatch(r"\w+ \( (\w) \)", form.name)
    return form.name == "y" or (of_letter is not None and of_letter[1] in value.value.letters)


def _same_quantity(answer: Quantity, gold: Quantity) -> bool:
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return False
    if _same_expression(answer.value, gold.value):
        return answer.unit != "percent" or bool(gold.unit) or not _below_one(gold.value)
    if answer.unit != gold.unit and "percent" in (answer.unit, gold.unit):
        share, whole = (answer, gold) if answer.unit == "percent" else (gold, answer)
        return _same_expression(_scaled(share.value, Fraction(1, 100)), whole.value)
    if answer.unit != gold.unit and "deg" in (answer.unit, gold.unit):
        degrees, other = (answer, gold) if answer.unit == "deg" else (gold, answer)
        return not other.unit and _same_expression(_scaled(degrees.value, formulas.mp.pi / 180), other.value)
    return False


def _below_one(found: Expression) -> bool:
    value = None if found.letters else value_of(found)
    return value is not None and abs(formulas.inexact(value)) < 1


def _scaled(found: Expression, factor: Any) -> Expression:
    return Expression(lambda p: formulas.multiply(found.at(p), factor), found.letters)


def _same_expression(answer: Expression, gold: Expression) -> bool:
    if formulas.equal(answer, gold):
        return True
    if answer.letters or gold.letters or (answer.decimals is None) == (gold.decimals is None):
        return False
    exact, decimal = (gold, answer) if answer.decimals else (answer, gold)
    return formulas.rounds_to(value_of(exact), value_of(decimal), decimal.decimals or 0)


def _same_region(answer: Form, gold: Form) -> bool:
    for one, other in ((answer, gold), (gold, answer)):
        if isinstance(one, Relation) and isinstance(other, Region):
            return other.relation is not None and _same_relation(one, other.relation)
    try:
        a, b = region_of(answer), region_of(gold)
    except Unreadable:
        return False
    if a.letter and b.letter and a.letter != b.letter:
        return False
    return regions.same(a.intervals, b.intervals)


def _same_relation(answer: Relation, gold: Relation) -> bool:
    if len(answer.signs) != len(gold.signs):
        return False
    turned = Relation(gold.sides[::-1], tuple(FLIPPED.get(sign, sign) for sign in gold.signs[::-1]))
    return _same_in_order(answer, gold) or _same_in_order(answer, turned)


def _same_in_order(answer: Relation, gold: Relation) -> bool:
    links = zip(answer.signs, gold.signs, pairwise(answer.sides), pairwise(gold.sides), strict=True)
    return all(_same_link(*link) for link in links)


def _same_link(sign: str, other: str, a: tuple[Expression, Expression], b: tuple[Expression, Expression]) -> bool:
    """Whether a₁ `sign` a₂ and b₁ `other` b₂ are equivalent: their differences are proportional."""
    ratio = formulas.proportion(formulas.difference(*a), formulas.difference(*b))
    if sign in ("=", "ne", "approx"):
        return sign == other and ratio != 0
    return ratio != 0 and other == (sign if ratio > 0 else FLIPPED[sign])


def _same_items(answer: Items, gold: Items) -> bool:
    if {answer.kind, gold.kind} <= {"ratio", "time"} and "ratio" in (answer.kind, gold.kind):
        return len(answer.items) == len(gold.items) and _proportional(answer, gold)
    if {answer.kind, gold.kind} == {"matrix", "()"}:
        answer, gold = _as_vector(answer), _as_vector(gold)
    unordered = {answer.kind, gold.kind} <= {"list", "{}"}
    if len(answer.items) != len(gold.items):
        return answer.kind == gold.kind == "{}" and _same_region(answer, gold)
    if unordered and not _names_decide(answer, gold):
        return _paired_one_to_one(list(answer.items), list(gold.items))
    alike = answer.kind == gold.kind or ("list" in (answer.kind, gold.kind) and "{}" not in (answer.kind, gold.kind))
    return alike and all(_same(a, b) for a, b in zip(answer.items, gold.items, strict=True))


def _proportional(answer: Items, gold: Items) -> bool:
    pairs = [
        (value_of(a.value), value_of(b.value))
        for a, b in zip(answer.items, gold.items, strict=True)
        if isinstance(a, Quantity) and isinstance(b, Quantity)
    ]
    return all(value != 0 for pair in pairs for value in pair) and all(
        formulas.same_value(formulas.multiply(a, d), formulas.multiply(c, b)) for (a, b), (c, d) in pairwise(pairs)
    )


def _as_vector(form: Items) -> Items:
    """A one-column matrix as a tuple."""
    if form.kind == "matrix" and all(isinstance(row, Items) and len(row.items) == 1 for row in form.items):
        return Items("()", tuple(row.items[0] for row in form.items if isinstance(row, Items)))
    return form


def _names_decide(answer: Items, gold: Items) -> bool:
    """Whether one side names its items and the other does not; then the order matters."""
    counts = [len({item.name for item in form.items if isinstance(item, Assignment)}) for form in (answer, gold)]
    return max(counts) > 1 and min(counts) == 0


def _paired_one_to_one(answer: list[Form], gold: list[Form]) -> bool:
    """Whether the items of `answer` and `gold` can be paired one to one."""
    left = list(gold)
    for one in answer:
        partner = next((other for other in left if _same(one, other)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True
