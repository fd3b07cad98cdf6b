r"""What an answer is (a number with its unit, a list, a set, an interval, a matrix, an equation, …), and when two are equal.

Knows: forms of answers, how they are written. Must not know: where answers come from, math-verify, options.

A form is read whole or not at all, so that no answer is right because a part of it is. The conventions, each a test:
lists without brackets have no order, tuples have one; a unit may be left out, another unit is wrong; `x = 3` answers for
`3`, and `y = 3` does not answer for `x = 3`; `x > 3` is `(3, \infty)`; `\pm 2` is the list 2, -2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

from reasoning import formulas, units
from reasoning.formulas import Expression, TooLarge, Undefined
from reasoning.answer_text import stripped
from reasoning.latex import Token, Unreadable, tokens

RELATIONS = ("=", "<", ">", "le", "ge", "ne", "approx")
OPENING, CLOSING = ("(", "[", "{", "{{", "lfloor", "lceil"), (")", "]", "}", "}}", "rfloor", "rceil")
LETTER_UNITS = frozenset(["m", "s", "g", "h", "l"])
MOST_ITEMS = 200


@dataclass(frozen=True)
class Quantity:
    """A value with its unit; empty: none."""

    value: Expression
    unit: str = ""


@dataclass(frozen=True)
class Items:
    """Several forms: a list (no brackets), a set, a tuple (its brackets are the kind), a matrix, its rows, a ratio."""

    kind: str
    items: tuple[Form, ...]


@dataclass(frozen=True)
class Assignment:
    """A name with what it equals, and the equation that this is."""

    name: str
    value: Form
    equation: Relation | None


@dataclass(frozen=True)
class Relation:
    """Expressions with a relation between each two neighbours."""

    sides: tuple[Expression, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """The real numbers that a letter may be: intervals as (from, closed, to, closed), ascending. No letter: any."""

    letter: str
    intervals: tuple[tuple[Any, bool, Any, bool], ...]
    relation: Relation | None = None
    """The inequality that says so."""


@dataclass(frozen=True)
class Symbol:
    """A name that stands for itself, such as the empty set."""

    name: str


Form = Quantity | Items | Assignment | Relation | Region | Symbol


def readings(text: str) -> list[Form]:
    """What `text` may be: with commas that part thousands, and with commas that part items. Empty: nothing known."""
    bare, found = stripped(text), []
    ways = (True, False) if re.search(r"\d,\d{3}", bare) else (True,)
    for commas_group, letter_is_unit in product(ways, (False, True)):
        try:
            given = tokens(bare, commas_group)
            if letter_is_unit and given:
                given = _with_letter_unit(given)
            if given:
                found.append(read(given))
        except (Unreadable, TooLarge, RecursionError):
            continue
    return found


def _with_letter_unit(given: list[Token]) -> list[Token]:
    """`given` with its last letter as the unit that it may be, as in `5 m`; nothing where it may be none."""
    before, last = given[:-1], given[-1]
    if not before or last.kind != "name" or last.text not in LETTER_UNITS or not last.spaced:
        return []
    if any(token.kind in ("name", "func", "word") for token in before):
        return []
    return [*before, last._replace(kind="word")]


def read(given: Sequence[Token]) -> Form:
    """The form that `given` spells. Raises Unreadable, TooLarge."""
    given = _trimmed(list(given))
    if not given:
        raise Unreadable("nothing")
    parts, marks = _split(given, (",", ";", "and", "or"))
    if len(parts) == 1:
        return _item(parts[0])
    forms = [read(part) for part in parts if part]
    if len(forms) == 1:
        return forms[0]
    return _joined(forms, marks)


def _trimmed(given: list[Token]) -> list[Token]:
    while given and given[-1].kind == "op" and given[-1].text in (".", ",", ";"):
        given.pop()
    return given


def _joined(forms: list[Form], marks: list[str]) -> Form:
    """Relations about one letter as the numbers that fulfil them; all else as a list."""
    if len(forms) > MOST_ITEMS:
        raise Unreadable("too many items")
    regions = [form for form in forms if isinstance(form, Region)]
    if len(regions) == len(forms) and len({region.letter for region in regions}) == 1:
        meet = marks[-1] == "and" and len(regions) == 2
        return _intersection(*regions) if meet else _union(regions)
    return Items("list", tuple(forms))


def _split(given: Sequence[Token], marks: Sequence[str]) -> tuple[list[list[Token]], list[str]]:
    """`given` parted at each of `marks` outside of brackets, and the marks."""
    parts: list[list[Token]] = [[]]
    found, depth = [], 0
    for token in given:
        if token.kind == "op" and depth == 0 and token.text in marks:
            parts.append([])
            found.append(token.text)
            continue
        depth += _opens(token)
        if depth < 0:
            raise Unreadable("a bracket that nothing opens")
        parts[-1].append(token)
    if depth:
        raise Unreadable("a bracket that nothing closes")
    return parts, found


def _opens(token: Token) -> int:
    if token.kind == "env":
        return 1 if token.text.startswith("\\begin") else -1
    return (token.text in OPENING) - (token.text in CLOSING) if token.kind == "op" else 0


def _item(given: list[Token]) -> Form:
    if given[0].kind == "env":
        return _matrix(given)
    if given[0] == Token("name", "empty", given[0].spaced):
        return _only(given, Symbol("empty"))
    unions, _ = _split(given, ("cup",))
    if len(unions) > 1:
        return _union([_region(_item(part)) for part in unions])
    sides, signs = _split(given, RELATIONS)
    if signs:
        return _relation(sides, signs)
    belongs, _ = _split(given, ("in",))
    if len(belongs) == 2 and _name(belongs[0]):
        return _named_region(_name(belongs[0]), read(belongs[1]))
    ratio, _ = _split(given, (":",))
    if len(ratio) > 1:
        is_time = len(ratio) == 2 and len(ratio[1]) > 0 and re.fullmatch(r"\d\d", ratio[1][0].text)
        return Items("time" if is_time else "ratio", tuple(_quantity(part) for part in ratio))
    return _bracketed(given) or _quantity(given)


def _only(given: Sequence[Token], form: Form) -> Form:
    if len(given) > 1:
        raise Unreadable("more than a symbol")
    return form


def _named_region(name: str, form: Form) -> Form:
    region = _region(form) if isinstance(form, Items) and form.kind in ("()", "(]", "[)", "[]") else form
    return replace(region, letter=name) if isinstance(region, Region) else form


def _bracketed(given: list[Token]) -> Form | None:
    """A set, a tuple or an interval; None where brackets do not stand around the whole."""
    first, last = given[0], given[-1]
    if first.kind != "op" or first.text not in ("(", "[", "{", "{{") or last.text not in CLOSING or len(given) < 2:
        return None
    if any(depth <= 0 for depth in _depths(given)[:-1]):
        return None
    inside = given[1:-1]
    if first.text == "{{":
        return _set(inside)
    if first.text == "{":
        return read(inside)
    parts, marks = _split(inside, (",", ";"))
    if not marks:
        return _matrix(inside) if inside and inside[0].kind == "env" else None
    return Items(first.text + last.text, tuple(_item(part) if part else _nothing() for part in parts))


def _nothing() -> Form:
    raise Unreadable("an empty place in a list")


def _depths(given: Sequence[Token]) -> list[int]:
    depth, found = 0, []
    for token in given:
        depth += _opens(token)
        found.append(depth)
    return found


def _set(inside: list[Token]) -> Form:
    if not inside:
        return Symbol("empty")
    such_that, _ = _split(inside, ("|", ":"))
    if len(such_that) == 2 and (
        name := _name([t for t in such_that[0] if t.text != "in" and not t.text.startswith("\\mathbb")])
    ):
        condition = read(such_that[1])
        if isinstance(condition, Region | Assignment):
            return condition if not isinstance(condition, Region) else replace(condition, letter=name)
        raise Unreadable("a condition of another kind")
    parts, _ = _split(inside, (",", ";", "and"))
    return Items("{}", tuple(_item(part) if part else _nothing() for part in parts))


def _matrix(given: list[Token]) -> Form:
    name = re.fullmatch(r"\\begin\{([pbBv]?matrix|smallmatrix|array)\}(?:\{[clr|]*\})?", given[0].text)
    if not name or name[1] == "vmatrix" or not given[-1].text.startswith("\\end") or 0 in _depths(given)[:-1]:
        raise Unreadable("an environment that is no matrix")
    rows, _ = _split(given[1:-1], ("\\\\",))
    rows = [row for row in rows if row]
    cells = [_split(row, ("&",))[0] for row in rows]
    return Items("matrix", tuple(Items("row", tuple(_quantity(cell) for cell in row)) for row in cells))


def _quantity(given: Sequence[Token]) -> Quantity:
    """An expression, with words of a unit behind it or a currency before it."""
    given = list(given)
    start = (
        1
        if given
        and given[0].kind == "word"
        and units.canonical([given[0].text]) in ("dollar", "euro", "pound", "yen", "rupee")
        else 0
    )
    minus = given[:1] if given[:1] and given[0].text == "-" and len(given) > 1 and given[1].kind == "word" else []
    if minus:
        start = 2
    prefix = [token.text for token in given[:start] if token.kind == "word"]
    end = _unit_start(given, start)
    if end == start:
        raise Unreadable("no formula")
    value = formulas.expression([*minus, *given[start:end]])
    said = [*prefix, *_unit_words(given[end:])]
    return _with_mark(Quantity(value, units.canonical(said)), given[start:end])


def _with_mark(found: Quantity, given: Sequence[Token]) -> Quantity:
    """A degree or percent sign at the very end is a unit."""
    is_marked = given[-1].kind == "op" and given[-1].text in ("deg", "%") and not found.unit
    if is_marked and len(given) > 1 and not any(token.kind == "func" for token in given):
        return Quantity(formulas.expression(list(given[:-1])), {"deg": "deg", "%": "percent"}[given[-1].text])
    return found


def _unit_start(given: Sequence[Token], start: int) -> int:
    """Where the words of a unit begin."""
    for place in range(start, len(given)):
        token = given[place]
        if token.kind == "word" or (token.is_set_as_text and token.kind == "name"):
            return place - (given[place - 1].text == "/" and place - 1 > start)
    return len(given)


def _unit_words(given: Sequence[Token]) -> list[str]:
    """The words of a unit with their powers. Raises Unreadable for anything else, such as a further number."""
    words: list[str] = []
    given = [token for token in given if token.text not in ("{", "}", ".")]
    place = 0
    while place < len(given):
        token = given[place]
        if token.text == "^" and place + 1 < len(given) and given[place + 1].text in ("2", "3") and words:
            words.append({"2": "squared", "3": "cubed"}[given[place + 1].text])
            place += 1
        elif token.text == "/" and token.kind == "op":
            words.append("per")
        elif token.kind == "word" or token.is_set_as_text or token.text == "in":
            words.append(token.text)
        elif token.text not in ("(", ")", "*"):
            raise Unreadable("no unit")
        place += 1
    return words


def _name(given: Sequence[Token]) -> str:
    """The name that `given` are, such as x, f(x), AB, S_{1} or the area; empty where they are none."""
    kinds = {token.kind for token in given}
    if not given or not kinds <= {"name", "word", "op", "num", "func"} or given[0].kind not in ("name", "word", "op"):
        return ""
    # Between segments and areas, / and : are part of the name of what is asked.
    of_segments = all(token.text.isupper() for token in given if token.kind == "name")
    accents = ("overline", "bar", "vec", *(("/", ":", "frac", "{") if of_segments else ()))
    depth, said = 0, []
    for index, token in enumerate(given):
        depth += _opens(token)
        follows_subscript = index > 0 and given[index - 1].text == "_"
        allowed = (
            depth > 0 or follows_subscript or token.kind in ("name", "word") or token.text in (")", "}", "_", "'", "|")
        )
        if token.text in ("inf", "e", "i", "pi", "empty") and len(given) == 1:
            return ""
        if not allowed and token.text not in accents:
            return ""
        if token.text not in ("{", "}"):
            said.append(token.text)
    return " ".join(said) if any(token.kind in ("name", "word") for token in given) else ""


def _relation(sides: list[list[Token]], signs: list[str]) -> Form:
    if not all(sides):
        if signs == ["approx"] and not sides[0]:
            return _item(sides[1])
        raise Unreadable("a relation without a side")
    if all(sign in ("=", "approx") for sign in signs):
        return _equation(sides, signs)
    relation = Relation(tuple(_side(side) for side in sides), tuple(signs))
    region = _as_region(relation)
    return relation if region is None else replace(region, relation=relation)


def _side(given: list[Token]) -> Expression:
    """A side of an inequality; f(x) is a letter there."""
    name = _name(given)
    if name and any(token.text == "(" for token in given):
        return Expression(lambda p: p.letters[name], frozenset({name}))
    return _quantity(given).value


def _equation(sides: list[list[Token]], signs: list[str]) -> Form:
    if len(sides) == 2 and not _name(sides[0]) and _name(sides[1]):
        sides = sides[::-1]
    if name := _name(sides[0]):
        forms = [read(side) for side in sides[1:]]
        if not all(_same(forms[0], other) for other in forms[1:]):
            raise Unreadable("an equation that contradicts itself")
        return Assignment(name, forms[-1], _as_equation(sides))
    forms = [_quantity(side) for side in sides]
    if not any(form.value.letters for form in forms):  # 1/2 = 0.5
        if not all(_same(forms[0], other) for other in forms[1:]):
            raise Unreadable("an equation that is false")
        return forms[-1]
    return Relation(tuple(form.value for form in forms), tuple(signs))


def _as_equation(sides: list[list[Token]]) -> Relation | None:
    try:
        return Relation(tuple(formulas.expression(side) for side in sides), ("=",) * (len(sides) - 1))
    except (Unreadable, TooLarge):
        return None


def _value(found: Expression) -> Any:
    try:
        return formulas.value_of(found)
    except Undefined:
        raise Unreadable("no value") from None


def _as_region(relation: Relation) -> Region | None:
    """An inequality between one letter and numbers as the numbers that it allows."""
    letters = {letter for side in relation.sides for letter in side.letters}
    if len(letters) != 1 or len(relation.sides) > 3 or "=" in relation.signs:
        return None
    (letter,) = letters
    bounds = [side for side in relation.sides if not side.letters]
    middle = [index for index, side in enumerate(relation.sides) if side.letters]
    if len(middle) != 1 or len(bounds) != len(relation.sides) - 1 or not _is_letter(relation.sides[middle[0]], letter):
        return None
    low, high = (-formulas.mp.inf, False), (formulas.mp.inf, False)
    for index, sign in enumerate(relation.signs):
        is_left = index < middle[0]
        bound = _value(relation.sides[index if is_left else index + 1])
        if sign == "ne":
            return (
                Region(letter, ((low[0], False, bound, False), (bound, False, high[0], False)))
                if len(bounds) == 1
                else None
            )
        if (sign in ("<", "le")) == is_left:
            low = (bound, sign in ("le", "ge"))
        else:
            high = (bound, sign in ("le", "ge"))
    return Region(letter, ((*low, *high),))


def _is_letter(side: Expression, letter: str) -> bool:
    return formulas.equal(side, Expression(lambda p: p.letters[letter], frozenset({letter})))


def _region(form: Form) -> Region:
    """An interval or a set of numbers as a region. Raises Unreadable."""
    if isinstance(form, Region):
        return form
    if isinstance(form, Items) and form.kind in ("()", "(]", "[)", "[]") and len(form.items) == 2:
        ends = [item.value for item in form.items if isinstance(item, Quantity) and not item.value.letters]
        if len(ends) == 2:
            return Region("", ((_value(ends[0]), form.kind[0] == "[", _value(ends[1]), form.kind[1] == "]"),))
    if isinstance(form, Items) and form.kind == "{}":
        values = [_value(item.value) for item in form.items if isinstance(item, Quantity) and not item.value.letters]
        if len(values) == len(form.items):
            return Region("", tuple((value, True, value, True) for value in values))
    raise Unreadable("no interval")


def _union(regions: Sequence[Region]) -> Region:
    intervals = [interval for region in regions for interval in region.intervals]
    if not all(_is_real(interval[0]) and _is_real(interval[2]) for interval in intervals):
        raise Unreadable("an interval that is not real")
    letters = {region.letter for region in regions} - {""}
    if len(letters) > 1:
        raise Unreadable("intervals of different letters")
    ordered = sorted(intervals, key=lambda interval: (_float(interval[0]), not interval[1]))
    merged = [ordered[0]]
    for low, low_closed, high, high_closed in ordered[1:]:
        before = merged[-1]
        gap = _float(low) - _float(before[2])
        if gap < 0 or (formulas.same_value(low, before[2]) and (low_closed or before[3])):
            if _float(high) > _float(before[2]):
                merged[-1] = (before[0], before[1], high, high_closed)
            elif formulas.same_value(high, before[2]):
                merged[-1] = (*before[:3], before[3] or high_closed)
        else:
            merged.append((low, low_closed, high, high_closed))
    return Region(next(iter(letters), ""), tuple(merged))


def _is_real(value: Any) -> bool:
    return formulas.mp.im(formulas.inexact(value)) == 0


def _float(value: Any) -> Any:
    return formulas.mp.re(formulas.inexact(value))


def _intersection(a: Region, b: Region) -> Region:
    if len(a.intervals) > 1 or len(b.intervals) > 1:
        raise Unreadable("an intersection of unions")
    (first,), (second,) = a.intervals, b.intervals
    low = max(first[:2], second[:2], key=lambda end: (_float(end[0]), not end[1]))
    high = min(first[2:], second[2:], key=lambda end: (_float(end[0]), end[1]))
    if _float(low[0]) > _float(high[0]):
        return _union([a, b])
    return Region(a.letter, ((*low, *high),))


def equal(said: Form, gold: Form) -> bool:
    """Whether the answer `said` is the right one. Raises TooLarge where that would take long."""
    try:
        return _same(_expanded(said), _expanded(gold))
    except (Undefined, Unreadable):
        return False


def _expanded(form: Form) -> Form:
    """± as the list of both values, wherever it stands."""
    if isinstance(form, Quantity) and form.value.has_sign:
        return Items("list", tuple(replace(form, value=formulas.with_sign(form.value, sign)) for sign in (1, -1)))
    if isinstance(form, Assignment):
        return replace(form, value=_expanded(form.value))
    if isinstance(form, Items):
        items: list[Form] = []
        for item in map(_expanded, form.items):
            flat = isinstance(item, Items) and item.kind == "list" and form.kind in ("list", "{}")
            items += item.items if flat and isinstance(item, Items) else [item]
        return replace(form, items=tuple(items))
    return form


def _same(said: Form, gold: Form) -> bool:
    if isinstance(said, Assignment) or isinstance(gold, Assignment):
        return _same_assigned(said, gold)
    if isinstance(said, Quantity) and isinstance(gold, Quantity):
        return _same_quantity(said, gold)
    if isinstance(said, Region) or isinstance(gold, Region):
        return _same_region(said, gold)
    if isinstance(said, Relation) and isinstance(gold, Relation):
        return _same_relation(said, gold)
    if isinstance(said, Items) and isinstance(gold, Items):
        return _same_items(said, gold)
    if isinstance(said, Symbol) and isinstance(gold, Symbol):
        return said == gold
    return _same_single(said, gold)


def _same_single(said: Form, gold: Form) -> bool:
    """One that stands in braces, and a ratio of two as their quotient."""
    for one, other in ((said, gold), (gold, said)):
        if isinstance(one, Items) and one.kind == "{}" and len(one.items) == 1:
            return _same(one.items[0], other)
        if isinstance(one, Items) and one.kind in ("ratio", "time") and len(one.items) == 2 and isinstance(other, Quantity):
            return bool(not other.unit and formulas.same_value(_quotient(one), _value(other.value)))
    return False


def _quotient(ratio: Items) -> Any:
    above, below = (_value(item.value) for item in ratio.items if isinstance(item, Quantity))
    return formulas.divide(above, below)


def _same_assigned(said: Form, gold: Form) -> bool:
    if isinstance(said, Assignment) and isinstance(gold, Assignment):
        if said.name != gold.name and not (_is_function(said) and _is_function(gold)):
            return False
        return _same(said.value, gold.value)
    for one, other in ((said, gold), (gold, said)):
        if isinstance(one, Assignment) and not isinstance(other, Assignment):
            if isinstance(other, Relation):
                return one.equation is not None and _same_relation(one.equation, other)
            return _same(one.value, other) if one is said else _same(other, one.value)
    return False


def _is_function(form: Assignment) -> bool:
    """Whether it gives a function by its values: f(x) and y are names for the same."""
    of_letter = form.name == "y" or re.fullmatch(r"\w+ \( \w \)", form.name)
    return bool(of_letter) and isinstance(form.value, Quantity) and bool(form.value.value.letters)


def _same_quantity(said: Quantity, gold: Quantity) -> bool:
    if said.unit and gold.unit and said.unit != gold.unit:
        return False
    if _same_expression(said.value, gold.value):
        return said.unit != "percent" or bool(gold.unit) or not _below_one(gold.value)
    if said.unit != gold.unit and "percent" in (said.unit, gold.unit):
        share, whole = (said, gold) if said.unit == "percent" else (gold, said)
        return _same_expression(_hundredth(share.value), whole.value)
    if said.unit != gold.unit and "deg" in (said.unit, gold.unit):
        degrees, other = (said, gold) if said.unit == "deg" else (gold, said)
        return not other.unit and _same_expression(_radians(degrees.value), other.value)
    return False


def _below_one(found: Expression) -> bool:
    value = None if found.letters else _value(found)
    return value is not None and abs(formulas.inexact(value)) < 1


def _hundredth(found: Expression) -> Expression:
    return Expression(lambda p: formulas.divide(found.at(p), formulas.Fraction(100)), found.letters)


def _radians(found: Expression) -> Expression:
    return Expression(lambda p: formulas.multiply(found.at(p), formulas.mp.pi / 180), found.letters)


def _same_expression(said: Expression, gold: Expression) -> bool:
    if formulas.equal(said, gold):
        return True
    if said.letters or gold.letters or (said.decimals is None) == (gold.decimals is None):
        return False
    exact, decimal = (gold, said) if said.decimals else (said, gold)
    return formulas.rounds_to(_value(exact), _value(decimal), decimal.decimals or 0)


def _same_region(said: Form, gold: Form) -> bool:
    for one, other in ((said, gold), (gold, said)):
        if isinstance(one, Relation) and isinstance(other, Region):
            return other.relation is not None and _same_relation(one, other.relation)
    try:
        a, b = _region(said), _region(gold)
    except Unreadable:
        return False
    if a.letter and b.letter and a.letter != b.letter:
        return False
    a, b = _union([a]), _union([b])
    return len(a.intervals) == len(b.intervals) and all(
        x[1] == y[1] and x[3] == y[3] and formulas.same_value(x[0], y[0]) and formulas.same_value(x[2], y[2])
        for x, y in zip(a.intervals, b.intervals, strict=True)
    )


def _same_relation(said: Relation, gold: Relation) -> bool:
    if len(said.signs) != len(gold.signs):
        return False
    turned = Relation(gold.sides[::-1], tuple(_TURNED.get(sign, sign) for sign in gold.signs[::-1]))
    return _same_in_order(said, gold) or _same_in_order(said, turned)


_TURNED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}


def _same_in_order(said: Relation, gold: Relation) -> bool:
    links = zip(said.signs, gold.signs, pairwise(said.sides), pairwise(gold.sides), strict=True)
    return all(_same_link(*link) for link in links)


def _same_link(sign: str, other: str, a: tuple[Expression, Expression], b: tuple[Expression, Expression]) -> bool:
    """Whether a₁ `sign` a₂ and b₁ `other` b₂ say the same: their differences are proportional."""
    ratio = formulas.proportion(formulas.difference(*a), formulas.difference(*b))
    if sign in ("=", "ne", "approx"):
        return sign == other and ratio != 0
    return ratio != 0 and other == (sign if ratio > 0 else _TURNED[sign])


def _same_items(said: Items, gold: Items) -> bool:
    if {said.kind, gold.kind} <= {"ratio", "time"} and "ratio" in (said.kind, gold.kind):
        return len(said.items) == len(gold.items) and _proportional(said, gold)
    if {said.kind, gold.kind} == {"matrix", "()"}:
        said, gold = _as_vector(said), _as_vector(gold)
    unordered = {said.kind, gold.kind} <= {"list", "{}"}
    if len(said.items) != len(gold.items):
        return said.kind == gold.kind == "{}" and _same_region(said, gold)
    if unordered and not _names_decide(said, gold):
        return _matched(list(said.items), list(gold.items))
    alike = said.kind == gold.kind or ("list" in (said.kind, gold.kind) and "{}" not in (said.kind, gold.kind))
    return alike and all(_same(a, b) for a, b in zip(said.items, gold.items, strict=True))


def _proportional(said: Items, gold: Items) -> bool:
    pairs = [(_value(a.value), _value(b.value)) for a, b in zip(said.items, gold.items, strict=True)
             if isinstance(a, Quantity) and isinstance(b, Quantity)]  # fmt: skip
    return all(value != 0 for pair in pairs for value in pair) and all(
        formulas.same_value(formulas.multiply(a, d), formulas.multiply(c, b)) for (a, b), (c, d) in pairwise(pairs)
    )


def _as_vector(form: Items) -> Items:
    """A matrix of one column as a tuple."""
    if form.kind == "matrix" and all(isinstance(row, Items) and len(row.items) == 1 for row in form.items):
        return Items("()", tuple(row.items[0] for row in form.items if isinstance(row, Items)))
    return form


def _names_decide(said: Items, gold: Items) -> bool:
    """Whether one side names its items and the other does not: then their order tells which is which."""
    counts = [len({item.name for item in form.items if isinstance(item, Assignment)}) for form in (said, gold)]
    return max(counts) > 1 and min(counts) == 0


def _matched(said: list[Form], gold: list[Form]) -> bool:
    """Whether each of `said` has a partner of its own in `gold`."""
    left = list(gold)
    for one in said:
        partner = next((other for other in left if _same(one, other)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True
