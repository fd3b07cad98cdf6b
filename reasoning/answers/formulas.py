r"""Parses formulas and compares them by value: exactly if both are rational, else to 35 digits; at several points if
they contain letters.

Sound rather than complete: a formula that is not fully understood raises Unreadable, and one that would take long
raises TooLarge, so no equality rests on part of a formula. Letters stand for real numbers; `i` and `e` are constants.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath

from reasoning.answers.latex import NUMBER_WORDS, Token, Unreadable

Value = Any
"""A Fraction, or a real or complex number of `mp`."""
DIGITS = 60
"""Working precision in decimal digits."""
NEAR = mpmath.mpf(10) ** -35
"""Relative tolerance of inexact values; relative to 1e-10 for smaller ones."""
MAX_BITS = 1 << 18
"""Maximum bits of an exact integer."""
POINTS, MIN_DEFINED = 9, 3
"""Number of points at which letters are evaluated, and how many must have a value."""
mp = mpmath.MPContext()
mp.dps = DIGITS


class TooLarge(Exception):
    """A value that would take too long to compute."""


class Undefined(Exception):
    """A formula has no value at this point."""


class Point(NamedTuple):
    """Values at which a formula is evaluated."""

    letters: dict[str, Fraction]
    sign: int = 1
    """Sign of ±; ∓ has the opposite one."""
    log_is_common: bool = False
    """Whether `\\log` has base 10 instead of e."""


Formula = Callable[[Point], Value]


@dataclass
class Expression:
    """A formula and the properties needed to compare it."""

    at: Formula
    letters: frozenset[str] = frozenset()
    has_sign: bool = False
    """Whether it contains ± or ∓."""
    decimals: int | None = None
    """Digits after the decimal point if it is a plain decimal number."""


def number(text: str) -> Value:
    """Value of a number token, such as 1.5, 2e-3 or 0.\\overline{3}."""
    if "overline" in text or "(" in text or "\\" in text:
        head, _, repeated = text.replace("{", "(").replace("}", "").rpartition("(")
        head = head.partition("\\")[0].rstrip()
        whole, _, fixed = head.partition(".")
        nines = 10 ** len(repeated) - 1
        return Fraction(int(f"{whole or 0}{fixed}") * nines + int(repeated), nines * 10 ** len(fixed))
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) + abs(int(exponent or 0)) > 20_000:
        raise TooLarge(text[:40])
    return Fraction(text)


def inexact(value: Value) -> Value:
    return mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _both(
    exact: Callable[[Fraction, Fraction], Fraction], near: Callable[[Any, Any], Any]
) -> Callable[[Value, Value], Value]:
    def work(a: Value, b: Value) -> Value:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return _bounded(exact(a, b))
        return near(inexact(a), inexact(b))

    return work


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLarge("an integer of too many digits")
    return value


add = _both(lambda a, b: a + b, lambda a, b: a + b)
subtract = _both(lambda a, b: a - b, lambda a, b: a - b)
multiply = _both(lambda a, b: a * b, lambda a, b: a * b)


def divide(a: Value, b: Value) -> Value:
    if b == 0:
        raise Undefined("division by zero")
    return a / b if isinstance(a, Fraction) and isinstance(b, Fraction) else inexact(a) / inexact(b)


def power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if base == 0 and exponent < 0:
            raise Undefined("division by zero")
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) <= MAX_BITS or abs(base) in (0, 1):
            return base ** (exponent.numerator % 2 + 2 if abs(base) == 1 else exponent.numerator)
    if abs(inexact(exponent)) > 10**7 or abs(inexact(base)) > mp.mpf(10) ** 10**6:
        raise TooLarge("a power of too many digits")
    return mp.power(inexact(base), inexact(exponent))


def factorial(value: Value) -> Value:
    """n!, and Γ(n + 1) for other numbers, so that formulas with letters can be compared."""
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise Undefined("factorial of a negative number")
        if value > 20_000:
            raise TooLarge("a factorial of too many digits")
        return _bounded(Fraction(math.factorial(value.numerator)))
    if abs(inexact(value)) > 1000:
        raise TooLarge("a factorial of too many digits")
    return mp.gamma(inexact(value) + 1)


def _real(function: Callable[[Any], Any]) -> Formula:
    return lambda value: function(inexact(value))


def _rounded(exact: Callable[[Any], int]) -> Callable[[Value], Value]:
    def work(value: Value) -> Value:
        if not isinstance(value, Fraction) and (mp.im(value) != 0 or not mp.isfinite(value)):
            raise Undefined("rounding what is not real")
        return Fraction(exact(value) if isinstance(value, Fraction) else int(exact(mp.re(value))))

    return work


floor = _rounded(lambda value: math.floor(value) if isinstance(value, Fraction) else mp.floor(value))
ceiling = _rounded(lambda value: math.ceil(value) if isinstance(value, Fraction) else mp.ceil(value))


def binomial(top: Value, bottom: Value) -> Value:
    return divide(factorial(top), multiply(factorial(bottom), factorial(subtract(top, bottom))))


def root(value: Value, degree: Value) -> Value:
    if degree == 2:
        return mp.sqrt(inexact(value))
    if isinstance(degree, Fraction) and degree.denominator == 1 and degree.numerator % 2 and mp.im(inexact(value)) == 0:
        positive = mp.root(abs(inexact(value)), degree.numerator) if 0 < degree <= 1000 else None
        if positive is None:
            raise Undefined("a root of a strange degree")
        return positive if value >= 0 else -positive
    return power(value, divide(Fraction(1), degree))


def _integers(values: Iterable[Value]) -> list[int]:
    found = list(values)
    if not all(isinstance(value, Fraction) and value.denominator == 1 for value in found):
        raise Undefined("gcd of what is no integer")
    return [value.numerator for value in found]


_ELEMENTARY: dict[str, Formula] = {
    **{
        name: _real(getattr(mp, name))
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp")
    },
    **{f"arc{name}": _real(getattr(mp, f"a{name}")) for name in ("sin", "cos", "tan")},
    "ln": _real(mp.log),
    "lg": _real(mp.log10),
    "sqrt": lambda v: root(v, Fraction(2)),
    "cbrt": lambda v: root(v, Fraction(3)),
}
_SEVERAL: dict[str, Callable[[list[Value]], Value]] = {
    "max": max,
    "min": min,
    "gcd": lambda v: Fraction(math.gcd(*_integers(v))),
    "lcm": lambda v: Fraction(math.lcm(*_integers(v))),
}
_OPENING = {"(": ")", "[": "]", "{": "}", "|": "|", "lfloor": "rfloor", "lceil": "rceil"}
_ACCENTS = ("overline", "bar", "vec", "hat", "widehat", "overrightarrow")


@dataclass
class Parser:
    """Recursive-descent parser for one expression. Raises Unreadable."""

    tokens: list[Token]
    position: int = 0
    letters: set[str] = field(default_factory=set)
    has_sign: bool = False
    depth: int = 0

    def whole(self) -> Expression:
        """The expression that consists of all tokens."""
        found = self.expression()
        if self.position < len(self.tokens):
            raise Unreadable(f"{self.tokens[self.position].text!r} out of place")
        return found

    def expression(self) -> Expression:
        literal = self.tokens[:-1] in ([], [Token("op", "-")]) and self.tokens and self.tokens[-1].kind == "num"
        decimals = (
            len(self.tokens[-1].text.partition(".")[2])
            if literal and self.tokens[-1].text.replace(".", "").isdigit()
            else 0
        )
        formula = self._sum()
        return Expression(formula, frozenset(self.letters), self.has_sign, decimals or None)

    def _peek(self, ahead: int = 0) -> Token:
        position = self.position + ahead
        return self.tokens[position] if position < len(self.tokens) else Token("end", "")

    def _is(self, *texts: str) -> bool:
        token = self._peek()
        return token.kind == "op" and token.text in texts

    def _next(self) -> Token:
        token = self._peek()
        self.position += 1
        return token

    def _expect(self, text: str) -> None:
        if not self._is(text):
            raise Unreadable(f"{text!r} is missing")
        self.position += 1

    def _sum(self) -> Formula:
        self.depth += 1
        if self.depth > 60:
            raise Unreadable("too deep")
        total = self._product()
        while self._is("+", "-", "pm", "mp"):
            total = self._joined(self._next().text, total, self._product())
        self.depth -= 1
        return total

    def _joined(self, sign: str, left: Formula, right: Formula) -> Formula:
        if sign in ("pm", "mp"):
            self.has_sign = True
            turn = 1 if sign == "pm" else -1
            return lambda p: add(left(p), multiply(Fraction(turn * p.sign), right(p)))
        work = add if sign == "+" else subtract
        return lambda p: work(left(p), right(p))

    def _product(self) -> Formula:
        total = self._signed()
        while True:
            if self._is("*"):
                self.position += 1
                total = _applied(multiply, total, self._signed())
            elif self._is("/"):
                self.position += 1
                total = _applied(divide, total, self._signed())
            elif self._begins_factor():
                total = _applied(multiply, total, self._power())
            else:
                return total

    def _begins_factor(self) -> bool:
        token = self._peek()
        if token.kind == "num":
            return self.tokens[self.position - 1].kind != "num"
        opens = token.text in ("(", "[", "{", "lfloor", "lceil", "frac", "binom", *_ACCENTS)
        return token.kind in ("name", "func") or (token.kind == "op" and opens)

    def _signed(self) -> Formula:
        if self._is("+", "-", "pm", "mp"):
            self.depth += 1
            if self.depth > 60:
                raise Unreadable("too deep")
            sign, inner = self._next().text, self._signed()
            self.depth -= 1
            return self._joined(sign, lambda p: Fraction(0), inner)
        return self._power()

    def _power(self) -> Formula:
        base = self._postfixed()
        if not self._is("^"):
            return base
        self.position += 1
        return _applied(power, base, self._exponent())

    def _exponent(self) -> Formula:
        if self._is("-", "+"):
            return self._signed()
        exponent = self._group() if self._is("{") else self._postfixed()
        if self._is("^"):
            self.position += 1
            return _applied(power, exponent, self._exponent())
        return exponent

    def _postfixed(self) -> Formula:
        value = self._atom()
        while self._is("!", "deg", "%"):
            mark, inner = self._next().text, value
            if mark == "!" and self._is("!"):
                raise Unreadable("a double factorial")
            value = {
                "!": lambda p, inner=inner: factorial(inner(p)),
                "deg": lambda p, inner=inner: multiply(inner(p), mp.pi / 180),
                "%": lambda p, inner=inner: divide(inner(p), Fraction(100)),
            }[mark]
        return value

    def _atom(self) -> Formula:
        token = self._next()
        if token.kind == "num":
            return self._number(token)
        if token.kind == "name":
            return self._name(token)
        if token.kind == "func":
            return self._function(token.text)
        if token.kind == "op" and token.text in _OPENING:
            number_in_base = [self._peek(ahead).text for ahead in (1, 2)] == [")", "_"]
            if token.text == "(" and number_in_base and self._peek().kind == "num":
                digits, self.position = self._next(), self.position + 1
                return self._number(digits)
            self.position -= 1
            return self._bracket()
        if token.kind == "op" and token.text in ("frac", "binom"):
            top, bottom = self._argument(), self._argument()
            return _applied(divide if token.text == "frac" else binomial, top, bottom)
        if token.kind == "op" and token.text in _ACCENTS:
            return self._letter(f"{token.text} {self._verbatim()}")
        raise Unreadable(f"{token.text!r} out of place")

    def _number(self, token: Token) -> Formula:
        value = number(token.text)
        if self._is("_"):  # a number in another base is a symbol: digits and base must be equal
            self.position += 1
            base = self._verbatim()
            return self._letter(f"{token.text} in base {NUMBER_WORDS.get(base, base)}")
        if (part := self._fraction_after(token)) is not None:
            value += part
        return lambda p: value

    def _fraction_after(self, token: Token) -> Fraction | None:
        """Fraction of a mixed number, such as 1 1/2 or 2\\frac{1}{3}; None if there is none."""
        if not token.text.isdigit():
            return None
        parts = [self._peek(ahead) for ahead in range(7)]
        texts = [part.text for part in parts]
        if parts[0].kind == "num" and parts[0].spaced and texts[1] == "/" and parts[2].kind == "num":
            over, under, length = texts[0], texts[2], 3
        elif texts[0] == "frac" and texts[1] == texts[4] == "{" and texts[3] == texts[6] == "}":
            over, under, length = texts[2], texts[5], 7
        elif texts[0] == "frac" and parts[1].kind == "num" and len(texts[1]) == 2:
            over, under, length = *texts[1], 2
        else:
            return None
        if not (over.isdigit() and under.isdigit() and 0 < int(over) < int(under)):
            return None
        self.position += length
        return Fraction(int(over), int(under))

    def _name(self, token: Token) -> Formula:
        if self._is("_"):
            self.position += 1
            return self._letter(f"{token.text}_{self._verbatim()}")
        if token.text == "i":
            return lambda p: mp.mpc(0, 1)
        if token.text in ("e", "pi", "inf"):
            value = {"e": mp.e, "pi": mp.pi, "inf": mp.inf}[token.text] * 1
            return lambda p: value
        if token.text == "empty":
            raise Unreadable("a set, not a number")
        return self._letter(token.text)

    def _letter(self, name: str) -> Formula:
        while self._is("'"):
            self.position += 1
            name += "'"
        self.letters.add(name)
        return lambda p: p.letters[name]

    def _verbatim(self) -> str:
        """The next group or token as written."""
        if not self._is("{"):
            return self._next().text
        depth, texts = 0, []
        while True:
            token = self._next()
            if token.kind == "end":
                raise Unreadable("an open brace")
            depth += (token.text == "{") - (token.text == "}")
            if depth == 0:
                return " ".join(texts[1:]).lower()
            texts.append(token.text)

    def _function(self, name: str) -> Formula:
        if name == "sqrt":
            return self._root()
        if name == "log":
            return self._log()
        exponent = None
        if self._is("^"):
            self.position += 1
            inverse = [self._peek(ahead).text for ahead in range(4)] == ["{", "-", "1", "}"]
            if inverse and f"arc{name}" in _ELEMENTARY:
                self.position, name = self.position + 4, f"arc{name}"
            else:
                exponent = self._exponent()
        if name in _SEVERAL:
            return self._several(name)
        work, inner = _ELEMENTARY[name], self._operand()
        if exponent is None:
            return lambda p: work(inner(p))
        return lambda p: power(work(inner(p)), exponent(p))

    def _root(self) -> Formula:
        if not self._is("["):
            inner = self._argument(one_digit=False)
            return lambda p: root(inner(p), Fraction(2))
        self.position += 1
        degree = self._sum()
        self._expect("]")
        return _applied(root, self._argument(one_digit=False), degree)

    def _log(self) -> Formula:
        base = None
        if self._is("_"):
            self.position += 1
            base = self._argument()
        inner = self._operand()

        def log(p: Point) -> Value:
            above = mp.log(inexact(inner(p)))
            if base is not None:
                return divide(above, mp.log(inexact(base(p))))
            return above / mp.log(10) if p.log_is_common else above

        return log

    def _several(self, name: str) -> Formula:
        if not self._is("(", "{"):
            raise Unreadable(f"{name} of what?")
        closing = _OPENING[self._next().text]
        parts = [self._sum()]
        while self._is(","):
            self.position += 1
            parts.append(self._sum())
        self._expect(closing)
        return lambda p: _SEVERAL[name]([part(p) for part in parts])

    def _operand(self) -> Formula:
        """Argument of a function without brackets: adjacent factors, up to a sign or a function."""
        if self._is("(", "[", "{"):
            return self._bracket()
        if self._is("-"):
            return self._signed()
        operand = self._power()
        while self._peek().kind in ("num", "name") and self.tokens[self.position - 1].kind in ("num", "name"):
            operand = _applied(multiply, operand, self._power())
        return operand

    def _bracket(self) -> Formula:
        opening = self._next().text
        inner = self._sum()
        self._expect(_OPENING[opening])
        work = {"|": abs, "lfloor": floor, "lceil": ceiling}.get(opening)
        return (lambda p: work(inner(p))) if work else inner

    def _group(self) -> Formula:
        self._expect("{")
        inner = self._sum()
        self._expect("}")
        return inner

    def _argument(self, one_digit: bool = True) -> Formula:
        """Argument of a command: a group or the next token; of a number its first digit, as in \\frac12."""
        if self._is("{", "("):
            return self._bracket()
        token = self._peek()
        if token.kind == "num" and one_digit and len(token.text) > 1:
            self.tokens[self.position] = Token("num", token.text[1:])
            digit = number(token.text[0])
            return lambda p: digit
        if token.kind not in ("num", "name", "func"):
            raise Unreadable("a command without its argument")
        return self._atom()


def _applied(work: Callable[[Value, Value], Value], left: Formula, right: Formula) -> Formula:
    return lambda p: work(left(p), right(p))


def expression(tokens: list[Token]) -> Expression:
    """The expression that `tokens` spell. Raises Unreadable."""
    try:
        return Parser(list(tokens)).whole()
    except RecursionError:
        raise Unreadable("too deep") from None


def value_of(found: Expression, point: Point | None = None) -> Value:
    """Value of `found` at `point`. Raises Undefined, TooLarge."""
    try:
        value = found.at(point or Point({}))
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, KeyError) as error:
        raise Undefined(str(error)) from None
    except (MemoryError, RecursionError):
        raise TooLarge("a formula too deep") from None
    if not isinstance(value, Fraction) and mp.isnan(value):
        raise Undefined("no number")
    return value


def same_value(a: Value, b: Value) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = inexact(a), inexact(b)
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    return bool(abs(a - b) <= NEAR * max(abs(a), abs(b), mp.mpf(10) ** -10))


def points(letters: Iterable[str], log_is_common: bool = False, sign: int = 1) -> list[Point]:
    """Points at which formulas with these letters are compared; deterministic. The last third is negative."""
    names, rng = sorted(letters), random.Random(7)
    if not names:
        return [Point({}, sign, log_is_common)]
    signs = [1] * (POINTS - POINTS // 3) + [-1] * (POINTS // 3)
    return [
        Point({name: turn * Fraction(rng.randint(211, 4999), 1009) for name in names}, sign, log_is_common)
        for turn in signs
    ]


def equal(a: Expression, b: Expression) -> bool:
    """Whether both have the same value wherever both are defined. Does not expand ±. Raises TooLarge."""
    return any(_agree(a, b, points(a.letters | b.letters, log_is_common)) for log_is_common in (False, True))


def _agree(a: Expression, b: Expression, where: list[Point]) -> bool:
    compared = 0
    for point in where:
        try:
            first, second = value_of(a, point), value_of(b, point)
        except Undefined:
            continue
        compared += 1
        if not same_value(first, second):
            negative = any(value < 0 for value in point.letters.values())
            if negative and not (_is_real(first) and _is_real(second)):
                continue  # roots of negative letters have several branches
            return False
    return compared >= min(len(where), MIN_DEFINED)


def _is_real(value: Value) -> bool:
    return isinstance(value, Fraction) or mp.im(value) == 0


def proportion(a: Expression, b: Expression) -> int:
    """Sign of the constant c ≠ 0 with a = c·b wherever both are defined; 0 if there is none. Raises TooLarge."""
    ratios: list[Value] = []
    for point in points(a.letters | b.letters):
        try:
            first, second = value_of(a, point), value_of(b, point)
        except Undefined:
            continue
        if first == 0 or second == 0:
            return 0
        ratios.append(divide(first, second))
    known = [ratio for ratio in ratios if _is_real(ratio)]
    if len(known) < min(MIN_DEFINED, POINTS if a.letters | b.letters else 1) or len(known) < len(ratios) - POINTS // 3:
        return 0
    if not all(same_value(ratio, known[0]) for ratio in known):
        return 0
    return 1 if mp.re(inexact(known[0])) > 0 else -1


def difference(a: Expression, b: Expression) -> Expression:
    return Expression(lambda p: subtract(a.at(p), b.at(p)), a.letters | b.letters, a.has_sign or b.has_sign)


def with_sign(found: Expression, sign: int) -> Expression:
    """`found` with ± read as +1 or −1."""
    return Expression(lambda p: found.at(p._replace(sign=sign)), found.letters)


def rounds_to(exact: Value, decimal: Value, decimals: int) -> bool:
    """Whether `decimal` is `exact` rounded, with at least six decimals and six significant digits."""
    if decimals < 6 or not isinstance(decimal, Fraction) or not _is_real(exact) or abs(decimal) * 10**decimals < 10**5:
        return False
    return bool(abs(inexact(exact) - inexact(decimal)) <= mp.mpf(10) ** -decimals / 2 * (1 + NEAR))
