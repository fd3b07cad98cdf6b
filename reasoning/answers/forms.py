r"""Parses an answer into a form: a number with unit, list, set, interval, matrix, equation, …

A form is parsed whole or not at all, so an answer never counts as correct because a part of it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from reasoning.answers import formulas, regions, units
from reasoning.answers.formulas import Expression, TooLarge, Undefined
from reasoning.answers.latex import NUMBER_WORDS, Token, Unreadable, tokens
from reasoning.answers.regions import EVERYWHERE, Interval, Intervals
from reasoning.answers.text import stripped

RELATIONS = ("=", "<", ">", "le", "ge", "ne", "approx")
OPENING, CLOSING = ("(", "[", "{", "{{", "lfloor", "lceil"), (")", "]", "}", "}}", "rfloor", "rceil")
LETTER_UNITS = frozenset(["m", "s", "g", "h", "l"])
MAX_ITEMS = 200


@dataclass(frozen=True)
class Quantity:
    """A value with its unit; an empty string if it has none."""

    value: Expression
    unit: str = ""


@dataclass(frozen=True)
class Items:
    """Several forms. `kind`: list (no brackets), set, tuple (its brackets), matrix, row, ratio."""

    kind: str
    items: tuple[Form, ...]


@dataclass(frozen=True)
class Assignment:
    """A name and everything it equals, with the equation. Without a name: numbers that are stated to be equal."""

    name: str
    values: tuple[Form, ...]
    equation: Relation | None = None
    near: tuple[Form, ...] = ()
    """Approximate values."""


@dataclass(frozen=True)
class Relation:
    """Expressions with a relation sign between neighbours."""

    sides: tuple[Expression, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """Real numbers that a letter may take, as ascending intervals. Without a letter: a plain set of numbers."""

    letter: str
    intervals: Intervals
    relation: Relation | None = None
    """The inequality that defines the region."""


@dataclass(frozen=True)
class Symbol:
    """A name that stands for itself, such as the empty set."""

    name: str


Form = Quantity | Items | Assignment | Relation | Region | Symbol


def readings(text: str) -> list[Form]:
    """Possible forms of `text`: with commas as thousands separators, and with commas as list separators. Empty if
    nothing can be parsed."""
    bare, found = stripped(text), []
    is_ambiguous = re.search(r"\d,\d{3}(?!\d)", bare) and not re.search(r"\d,0\d\d(?!\d)", bare)
    ways = (True, False) if is_ambiguous else (True,)
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
    """`given` with its last letter read as a unit, as in `5 m`; empty if that is not possible."""
    before, last = given[:-1], given[-1]
    if not before or last.kind != "name" or last.text not in LETTER_UNITS or not last.spaced:
        return []
    if any(token.kind in ("name", "func", "word") for token in before):
        return []
    return [*before, last._replace(kind="word")]


def read(given: Sequence[Token]) -> Form:
    """Form of a sequence of tokens. Raises Unreadable, TooLarge."""
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
    """Inequalities about one letter as a region; everything else as a list."""
    if len(forms) > MAX_ITEMS:
        raise Unreadable("too many items")
    parts = [form for form in forms if isinstance(form, Region)]
    if len(parts) == len(forms) and len({part.letter for part in parts}) == 1:
        return _intersection(*parts) if marks[-1] == "and" and len(parts) == 2 else _union(parts)
    return Items("list", tuple(forms))


def _split(given: Sequence[Token], marks: Sequence[str]) -> tuple[list[list[Token]], list[str]]:
    """Parts of `given` between separators outside brackets, and the separators."""
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
    if not given:
        raise Unreadable("nothing")
    if given[0].kind == "env":
        return _matrix(given)
    if given[0].text == "empty":
        return _only(given, Symbol("empty"))
    if len(given) == 1 and given[0].text == "\\mathbbR":
        return Region("", (EVERYWHERE,))
    if len(given) == 1 and given[0].text.lower() in NUMBER_WORDS:
        given = [Token("num", NUMBER_WORDS[given[0].text.lower()])]
    unions, _ = _split(given, ("cup",))
    if len(unions) > 1:
        return _union([region_of(_item(part)) for part in unions])
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
    region = region_of(form) if isinstance(form, Items) and form.kind in ("()", "(]", "[)", "[]") else form
    return replace(region, letter=name) if isinstance(region, Region) else form


def _bracketed(given: list[Token]) -> Form | None:
    """A set, tuple or interval; None if brackets do not enclose the whole sequence."""
    first, last = given[0], given[-1]
    if first.kind != "op" or first.text not in ("(", "[", "{", "{{") or last.text not in CLOSING or len(given) < 2:
        return None
    if any(depth <= 0 for depth in _bracket_depths(given)[:-1]):
        return None
    inside = given[1:-1]
    if first.text == "{{":
        return _set(inside)
    if first.text == "{":
        return read(inside)
    parts, marks = _split(inside, (",", ";"))
    if not marks:
        return _matrix(inside) if inside and inside[0].kind == "env" else None
    return Items(first.text + last.text, tuple(map(_item, parts)))


def _bracket_depths(given: Sequence[Token]) -> list[int]:
    depth, found = 0, []
    for token in given:
        depth += _opens(token)
        found.append(depth)
    return found


def _set(inside: list[Token]) -> Form:
    if not inside:
        return Symbol("empty")
    such_that, _ = _split(inside, ("|", ":"))
    if len(such_that) == 2 and (name := _name([t for t in such_that[0] if t.text not in ("in", "\\mathbbR")])):
        condition = read(such_that[1])
        if isinstance(condition, Region) and condition.letter == name:
            return condition
        raise Unreadable("a condition of another kind")
    parts, _ = _split(inside, (",", ";", "and"))
    return Items("{}", tuple(map(_item, parts)))


def _matrix(given: list[Token]) -> Form:
    name = re.fullmatch(r"\\begin\{([pbBv]?matrix|smallmatrix|array)\}(?:\{[clr|]*\})?", given[0].text)
    if not name or name[1] == "vmatrix" or not given[-1].text.startswith("\\end") or 0 in _bracket_depths(given)[:-1]:
        raise Unreadable("an environment that is no matrix")
    rows, _ = _split(given[1:-1], ("\\\\",))
    rows = [row for row in rows if row]
    cells = [_split(row, ("&",))[0] for row in rows]
    return Items("matrix", tuple(Items("row", tuple(_quantity(cell) for cell in row)) for row in cells))


def _quantity(given: Sequence[Token]) -> Quantity:
    """An expression, with a unit after it or a currency before it."""
    given = list(given)
    sign = given[:1] if len(given) > 1 and given[0].text == "-" and given[1].kind == "word" else []
    start = 2 if sign else int(bool(given) and _is_currency(given[0]))
    prefix = [token.text for token in given[:start] if token.kind == "word"]
    end = _unit_start(given, start)
    if end == start:
        raise Unreadable("no formula")
    value = formulas.expression([*sign, *given[start:end]])
    spelled = [*prefix, *_unit_words(given[end:])]
    return _with_mark(Quantity(value, units.canonical(spelled)), given[start:end])


def _is_currency(token: Token) -> bool:
    return token.kind == "word" and units.canonical([token.text]) in units.CURRENCIES


def _with_mark(found: Quantity, given: Sequence[Token]) -> Quantity:
    """Reads a trailing degree or percent sign as a unit."""
    if given[-1].text == "deg" and found.unit in ("f", "c", "celsius", "fahrenheit"):
        return Quantity(formulas.expression(list(given[:-1])), found.unit[0])
    is_marked = given[-1].kind == "op" and given[-1].text in ("deg", "%") and not found.unit
    if is_marked and len(given) > 1 and not any(token.kind == "func" for token in given):
        return Quantity(formulas.expression(list(given[:-1])), {"deg": "deg", "%": "percent"}[given[-1].text])
    return found


def _unit_start(given: Sequence[Token], start: int) -> int:
    """Index at which the words of a unit start."""
    depths = _bracket_depths(given)
    for position in range(start, len(given)):
        token = given[position]
        if depths[position] > 0:
            continue
        if token.kind == "word" or (token.is_set_as_text and token.kind == "name"):
            return position - (given[position - 1].text == "/" and position - 1 > start)
    return len(given)


def _unit_words(given: Sequence[Token]) -> list[str]:
    """Words of a unit with powers. Raises Unreadable for anything else, such as another number."""
    words: list[str] = []
    given = [token for token in given if token.text not in ("{", "}", ".")]
    position = 0
    while position < len(given):
        token = given[position]
        if token.text == "^" and position + 1 < len(given) and given[position + 1].text in ("2", "3") and words:
            words.append({"2": "squared", "3": "cubed"}[given[position + 1].text])
            position += 1
        elif token.text == "/" and token.kind == "op":
            words.append("per")
        elif token.kind == "word" or token.is_set_as_text or token.text == "in":
            words.append(token.text)
        elif token.text not in ("(", ")", "*"):
            raise Unreadable("no unit")
        position += 1
    return words


def _name(given: Sequence[Token]) -> str:
    """The name that `given` spells, such as x, f(x), AB, S_{1} or the area; empty if it is not a name."""
    kinds = {token.kind for token in given}
    if not given or not kinds <= {"name", "word", "op", "num", "func"} or given[0].kind not in ("name", "word", "op"):
        return ""
    # Between names of segments or areas, / and : belong to the name.
    of_segments = all(token.text.isupper() for token in given if token.kind == "name")
    accents = ("overline", "bar", "vec", *(("/", ":", "frac", "{") if of_segments else ()))
    depth, spelled = 0, []
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
            spelled.append(token.text)
    return " ".join(spelled) if any(token.kind in ("name", "word") for token in given) else ""


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
    """A side of an inequality. f(x) counts as a letter."""
    name = _name(given)
    if name and any(token.text == "(" for token in given):
        return Expression(lambda p: p.letters[name], frozenset({name}))
    return _quantity(given).value


def _equation(sides: list[list[Token]], signs: list[str]) -> Form:
    exact = next((index + 1 for index, sign in enumerate(signs) if sign == "approx"), len(sides))
    sides, near = sides[:exact], tuple(map(read, sides[exact:]))
    if len(sides) == 2 and not _name(sides[0]) and _name(sides[1]):
        sides = sides[::-1]
    if name := _name(sides[0]):
        if exact == 1:
            return Assignment(name, near[:1], near=near[1:])
        return Assignment(name, tuple(map(read, sides[1:])), _as_equation(sides), near)
    forms = [_quantity(side) for side in sides]
    if near or not any(form.value.letters for form in forms):
        return Assignment("", tuple(forms), near=near)
    return Relation(tuple(form.value for form in forms), ("=",) * (len(forms) - 1))


def _as_equation(sides: list[list[Token]]) -> Relation | None:
    try:
        return Relation(tuple(formulas.expression(side) for side in sides), ("=",) * (len(sides) - 1))
    except (Unreadable, TooLarge):
        return None


def value_of(found: Expression) -> Any:
    try:
        return formulas.value_of(found)
    except Undefined:
        raise Unreadable("no value") from None


def _as_region(relation: Relation) -> Region | None:
    """An inequality between one letter and numbers as a region; None for other relations."""
    letters = {letter for side in relation.sides for letter in side.letters}
    if len(letters) != 1 or len(relation.sides) > 3 or not set(relation.signs) <= {"<", ">", "le", "ge", "ne"}:
        return None
    (letter,) = letters
    bounds = [side for side in relation.sides if not side.letters]
    middle = [index for index, side in enumerate(relation.sides) if side.letters]
    if len(middle) != 1 or len(bounds) != len(relation.sides) - 1 or not _is_letter(relation.sides[middle[0]], letter):
        return None
    found = [EVERYWHERE]
    for index, sign in enumerate(relation.signs):
        is_left = index < middle[0]
        bound = value_of(relation.sides[index if is_left else index + 1])
        allowed = _allowed(sign if not is_left else FLIPPED.get(sign, sign), bound)
        if not all(map(regions.is_real, allowed)):
            return None
        found = [both for one in found for other in allowed if (both := regions.intersection(one, other))]
    return Region(letter, tuple(found))


def _allowed(sign: str, bound: Any) -> list[Interval]:
    """Numbers in the relation `sign` to `bound`."""
    below, above = EVERYWHERE._replace(high=bound), EVERYWHERE._replace(low=bound)
    return {
        "<": [below],
        "le": [below._replace(has_high=True)],
        ">": [above],
        "ge": [above._replace(has_low=True)],
        "ne": [below, above],
    }[sign]


FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
"""Relation signs with both sides swapped."""


def _is_letter(side: Expression, letter: str) -> bool:
    return formulas.equal(side, Expression(lambda p: p.letters[letter], frozenset({letter})))


def region_of(form: Form) -> Region:
    """An interval or a set of numbers as a region. Raises Unreadable."""
    if isinstance(form, Region):
        return form
    if isinstance(form, Items) and form.kind in ("()", "(]", "[)", "[]") and len(form.items) == 2:
        ends = [item.value for item in form.items if isinstance(item, Quantity) and not item.value.letters]
        if len(ends) == 2:
            low, high = map(value_of, ends)
            return Region("", (Interval(low, form.kind[0] == "[", high, form.kind[1] == "]"),))
    if isinstance(form, Items) and form.kind == "{}":
        values = [value_of(item.value) for item in form.items if isinstance(item, Quantity) and not item.value.letters]
        if len(values) == len(form.items):
            return Region("", tuple(Interval(value, True, value, True) for value in values))
    raise Unreadable("no interval")


def _union(parts: Sequence[Region]) -> Region:
    intervals = [interval for part in parts for interval in part.intervals]
    letters = {part.letter for part in parts} - {""}
    if len(letters) > 1 or not all(map(regions.is_real, intervals)):
        raise Unreadable("intervals that do not go together")
    return Region(next(iter(letters), ""), regions.union(intervals))


def _intersection(a: Region, b: Region) -> Region:
    """Intersection; the union if the intersection is empty."""
    both = [met for x in a.intervals for y in b.intervals if (met := regions.intersection(x, y))]
    return Region(a.letter, regions.union(both)) if both else _union([a, b])
