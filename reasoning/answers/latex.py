r"""Tokenizes answers in any notation: Unicode or LaTeX, with or without typesetting.

`½`, `\dfrac12` and `\frac{1}{2}` give the same tokens; so do `x²` and `x^{2}`, `≤` and `\leqslant`, `33,\!800` and
`33800`. Nothing that carries a value is dropped: an unknown command makes the text unreadable.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from reasoning.answers.boxed import until_closing_brace

MAX_CHARS = 2000
"""Maximum characters of an answer that is parsed; longer ones are only compared as text."""
_words = str.split
GREEK = _words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega"
)
NAMES = {f"\\{name}": name for name in (*GREEK, "ell", "hbar", "angle", "triangle", "measuredangle")} | {
    "\\pi": "pi",
    "\\infty": "inf",
    "\\emptyset": "empty",
    "\\varnothing": "empty",
}
FUNCTIONS = frozenset(
    _words("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh exp ln lg log sqrt cbrt max min gcd lcm")
)
SYNONYMS = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "leq": "le",
    "geq": "ge",
    "leqslant": "le",
    "geqslant": "ge",
    "leqq": "le",
    "geqq": "ge",
    "lt": "<",
    "gt": ">",
    "neq": "ne",
    "cdot": "*",
    "times": "*",
    "ast": "*",
    "div": "/",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "lbrace": "{{",
    "rbrace": "}}",
    "lbrack": "[",
    "rbrack": "]",
    "colon": ":",
    "degree": "deg",
    "land": "and",
    "lor": "or",
    "wedge": "and",
    "vee": "or",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "tg": "tan",
    "ctg": "cot",
    "infin": "inf",
    "backslash": "setminus",
    "arctg": "arctan",
    "simeq": "approx",
    "sim": "approx",
}
OPERATORS = frozenset(
    _words(
        "frac binom le ge ne < > * / | pm mp cup cap in and or deg lfloor rfloor lceil rceil {{ }} [ ] : approx "
        "overline bar vec hat widehat overrightarrow"
    )
)
SIGNS = {
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "∜": r"\sqrt[4]",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≦": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≧": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "×": "*",
    "✕": "*",
    "⋅": "*",
    "·": "*",
    "∙": "*",
    "∗": "*",
    "÷": "/",
    "⁄": "/",
    "∕": "/",
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "±": r"\pm ",
    "∓": r"\mp ",
    "°": r"\deg ",
    "º": r"\deg ",
    "˚": r"\deg ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "∈": r"\in ",
    "∣": "|",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∶": ":",
    "、": ",",
    "，": ",",
    "；": ";",
    "。": ".",
    "٫": ".",
    "٬": ",",
    "′": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "∖": r"\setminus ",
}
TYPESETTING = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![a-zA-Z])\s*\.?"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|rm|bf|it|nonumber)(?![a-zA-Z])|\\[hv]?phantom\s*(?:\{[^{}]*\}|.)"
    r"|\\!|\\(?:color|textcolor)\s*\{[^{}]*\}"
)
"""Typesetting commands without meaning."""
SPACE = re.compile(
    r"\\(?:[,;: ]|q?quad(?![a-zA-Z])|hspace\*?\{[^{}]*\}|enspace(?![a-zA-Z])|newline(?![a-zA-Z])|\n)|~|\s"
)
GROUPS = r"(?:{c}\d{{3}})+(?![\d])"
_EXPONENT = r"(?:[eE][+-]?\d+(?![a-zA-Z\d]))?"
_NUMBER = rf"(?:[1-9]\d{{{{0,2}}}}(?:{{separators}})|\d+)(?:\.\d+)?{_EXPONENT}|\.\d+{_EXPONENT}"
_ALWAYS = [GROUPS.format(c=c) for c in (r"\{,\}", r",\x00", "\x01", " ")]
_COMMA = GROUPS.format(c=",")
REPEATING = r"\d*\.\d*(?:\\(?:overline|bar|dot)\s*\{\d+\}|\(\d+\))"
TEXT = r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|m?box|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?)\s*"


NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        _words("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen")
    )
}


def _pattern(separators: list[str]) -> re.Pattern[str]:
    """Token pattern. `separators`: separators between groups of three digits."""
    number = _NUMBER.format(separators="|".join(separators))
    return re.compile(
        rf"(?P<blank>(?:{SPACE.pattern})+)|(?P<text>{TEXT})(?=\{{)"
        r"|(?P<env>\\(?:begin|end)\s*\{[a-zA-Z*]+\}(?:\{[clr|]*\})?)"
        rf"|(?P<rep>{REPEATING})|(?P<num>{number})"
        r"|(?P<bb>\\math(?:bb|cal|frak|scr)\s*\{?\s*[A-Za-z]\s*\}?)|(?P<row>\\\\(?:\[[^\]]*\])?)|(?P<brace>\\[{}])"
        r"|(?P<money>\\\$|[$€£¥])"
        r"|(?P<percent>\\?%)|(?P<cmd>\\[a-zA-Z]+)|(?P<run>[a-zA-Z]+)|(?P<op><=|>=|!=|\*\*|[-+*/^_=<>()\[\]{}|!,;:&'.])"
    )


_GROUPING, _PARTING = _pattern([*_ALWAYS, _COMMA]), _pattern(_ALWAYS)


class Token(NamedTuple):
    """One token of an answer."""

    kind: str
    """num, name (a letter or a named symbol), word, func, op, env."""
    text: str
    spaced: bool = False
    """Whether blanks precede it."""
    is_set_as_text: bool = False
    """Whether it is inside \\text{…} or similar."""


class Unreadable(Exception):
    """The text is not a formula that this parser supports."""


def plain(text: str) -> str:
    """`text` with LaTeX in position of Unicode mathematics, and ASCII digits."""
    return "".join(_run(kind, "".join(chars)) for kind, chars in groupby(text, _script))


def _script(char: str) -> str:
    if char.isascii() or char in SIGNS:
        return "sign"
    found = unicodedata.decomposition(char)
    return found.split()[0] if found.startswith(("<super>", "<sub>")) else "other"


def _run(script: str, chars: str) -> str:
    if script == "<super>":
        return f"^{{{unicodedata.normalize('NFKC', chars).replace('−', '-')}}}"
    if script == "<sub>":
        return f"_{{{unicodedata.normalize('NFKC', chars)}}}"
    return "".join(SIGNS.get(char) or (char if char.isascii() else _spelled(char)) for char in chars)


def _spelled(char: str) -> str:
    known = unicodedata.normalize("NFKC", char)
    if unicodedata.decomposition(char).startswith("<fraction>"):
        over, _, under = known.partition("⁄")
        return rf"\frac{{{over}}}{{{under}}}"
    if unicodedata.category(char) == "Nd":
        return str(unicodedata.digit(char))
    name = unicodedata.name(known, "") if len(known) == 1 else ""
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name)
    if greek:
        spelled = greek[2].lower().replace("lamda", "lambda")
        spelled = spelled if greek[1] == "SMALL" else spelled.capitalize()
        return rf"\{spelled} " if spelled in (*GREEK, "pi") else known
    return "".join(SIGNS.get(part, part) for part in known)


def tokens(text: str, commas_group: bool) -> list[Token]:
    """Tokens of `text` (as returned by `plain`). `commas_group`: 1,234 is one number, not two.

    Raises Unreadable.
    """
    if len(text) > MAX_CHARS:
        raise Unreadable("too long")
    marked = re.sub(r",\s*\\!\s*", ",\x00", text)
    marked = re.sub(r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-zA-Z]))", "'", marked)
    marked = re.sub(r"(?<=\d)\\!(?=\d)|(?<=\d)\\[,:;](?=\d)|(?<=\d)~(?=\d)", "\x01", marked)
    marked = re.sub(
        r"\^\s*(?:\{\s*\\(?:circ|deg(?:ree)?)(?![a-zA-Z])\s*\}|\\(?:circ|deg(?:ree)?)(?![a-zA-Z]))", r"\\deg ", marked
    )
    marked = re.sub(r"\b([AaPp])\.\s?([Mm])\b\.?", r"\1\2", TYPESETTING.sub("", marked))
    return list(_scan(marked, commas_group))


def _scan(text: str, commas_group: bool) -> Iterator[Token]:
    pattern = _GROUPING if commas_group else _PARTING
    position, spaced = 0, False
    while position < len(text):
        match = pattern.match(text, position)
        if match is None:
            raise Unreadable(f"unknown sign {text[position]!r}")
        position, kind, found = match.end(), match.lastgroup, match[0]
        if kind == "blank":
            spaced = True
            continue
        if kind == "text":
            content, position = _braced(text, position)
            yield from _set_as_text(content, spaced, commas_group, match[0])
        else:
            yield from _token(kind or "", found, spaced)
        spaced = False


def _braced(text: str, position: int) -> tuple[str, int]:
    """Content of the group that opens at `position`, and the position after it."""
    content = until_closing_brace(text[position + 1 :])
    if content is None:
        raise Unreadable("an open brace")
    return content, position + len(content) + 2


def _token(kind: str, found: str, spaced: bool) -> Iterator[Token]:
    if kind in ("num", "rep"):
        yield Token("num", re.sub(r"[,{}\x00\x01 ]", "", found) if kind == "num" else found, spaced)
    elif kind == "env":
        yield Token("env", re.sub(r"\s", "", found), spaced)
    elif kind == "row":
        yield Token("op", "\\\\", spaced)
    elif kind == "brace":
        yield Token("op", "{{" if found == "\\{" else "}}", spaced)
    elif kind == "money":
        yield Token("word", {"€": "euro", "£": "pound", "¥": "yen"}.get(found, "dollar"), spaced)
    elif kind == "percent":
        yield Token("op", "%", spaced)
    elif kind == "bb":
        yield Token("name", re.sub(r"[\s{}]", "", found), spaced)
    elif kind == "cmd":
        yield _command(found, spaced)
    elif kind == "run":
        yield from _letters(found, spaced)
    else:
        yield Token("op", {"<=": "le", ">=": "ge", "!=": "ne", "**": "^"}.get(found, found), spaced)


def _command(found: str, spaced: bool) -> Token:
    if found in NAMES:
        return Token("name", NAMES[found], spaced)
    name = SYNONYMS.get(found[1:], found[1:])
    if name in FUNCTIONS:
        return Token("func", name, spaced)
    if name in OPERATORS:
        return Token("op", name, spaced)
    raise Unreadable(f"unknown command {found}")


def _letters(run: str, spaced: bool) -> Iterator[Token]:
    """Tokens of a run of letters: a function, a named symbol, a product of letters, or a word."""
    low = SYNONYMS.get(run.lower(), run.lower())
    if low in FUNCTIONS:
        yield Token("func", low, spaced)
    elif low in ("and", "or"):
        yield Token("op", low, spaced)
    elif low in ("inf", "infinity"):
        yield Token("name", "inf", spaced)
    elif low in ("pi", "theta", "alpha", "beta"):
        yield Token("name", low, spaced)
    elif low in UNITS_OF_TWO or (len(run) > 2 and low not in ALPHABET):
        yield Token("word", run, spaced)
    else:
        yield from (Token("name", char, spaced and index == 0) for index, char in enumerate(run))


UNITS_OF_TWO = frozenset(_words("cm km kg mm ft oz lb yd mi hr mg ml hz"))
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
"""Runs of neighbouring letters, such as xyz, are products; other long runs are words."""


def _set_as_text(content: str, spaced: bool, commas_group: bool, command: str) -> Iterator[Token]:
    bare = content.strip()
    if re.fullmatch(r"[A-Za-z]", bare) and "text" not in command and "box" not in command:
        yield Token("name", bare, spaced, is_set_as_text=True)
    elif re.fullmatch(r"[A-Za-z]+", bare) and bare.lower() not in ("and", "or") and bare.lower() not in FUNCTIONS:
        yield Token("word", bare, spaced, is_set_as_text=True)
    else:
        spaced = spaced or content[:1].isspace()
        for token in _scan(SPACE.sub(" ", content), commas_group):
            kind = "word" if token.kind == "name" and "text" in command else token.kind
            yield token._replace(kind=kind, spaced=token.spaced or spaced, is_set_as_text=True)
            spaced = False
