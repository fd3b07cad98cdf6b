"""Normalises a problem's text to words, independent of notation (LaTeX, Unicode, plain text).

Words are prose words, numbers, variables, operators, signs and brackets. Case, spacing, punctuation and typesetting
commands are ignored. Operators and signs are kept: `5 + 3` is not `5 - 3`, `(-2)^3` is not `2^3`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby

Words = tuple[str, ...]
END = "\n"
"""Marks the end of a sentence or a line among the words."""


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MINUS = dict.fromkeys(map(ord, "−–‐‑‒﹣⁻"), "-")
_QUOTES = dict.fromkeys(map(ord, "‘’´"), "'")
_SIGNS = {
    "≤": "≤⩽≦⪕",
    "≥": "≥⩾≧⪖",
    "×": "×⨯✕✖",
    "·": "·⋅∙•",
    "/": "÷⁄∕",
    "→": "→⟶↦",
    "⇒": "⇒⟹",
    "∪": "∪⋃",
    "∩": "∩⋂",
    "∅": "∅⌀",
    "⊥": "⊥⟂",
    "∥": "∥‖",
    "|": "|∣",
    **{sign: sign for sign in "≠±∓√∞⊆⊂∈∉≈≡≅∼∘°′⌊⌋⌈⌉"},
}
_NAMED = {
    "∠": "angle",
    "△": "triangle",
    "∑": "sum",
    "∏": "prod",
    "∫": "int",
    "∂": "partial",
    "□": "square",
    "∛": r"\sqrt[3]",
}
_PLAIN: dict[int, str] = {
    **{ord(char): f" {sign} " for sign, spellings in _SIGNS.items() for char in spellings},
    **{ord(char): f" {name} " for char, name in _NAMED.items()},
    **_MINUS,
    **_QUOTES,
    ord("—"): " ",
    ord("~"): " ",
    ord("∶"): ":",
}
_COMMANDS = {
    "≤": "le leq leqslant leqq",
    "≥": "ge geq geqslant geqq",
    "≠": "ne neq",
    "<": "lt",
    ">": "gt",
    "×": "times",
    "·": "cdot bullet",
    "/": "div",
    "±": "pm",
    "∓": "mp",
    "√": "sqrt",
    "∞": "infty infinity",
    "⇒": "implies",
    "→": "to rightarrow longrightarrow mapsto",
    "∪": "cup bigcup",
    "∩": "cap bigcap",
    "⊆": "subseteq",
    "⊂": "subset",
    "∈": "in",
    "∉": "notin",
    "∅": "emptyset varnothing",
    "⊥": "perp bot",
    "∥": "parallel",
    "≈": "approx",
    "≡": "equiv",
    "≅": "cong",
    "∼": "sim",
    "∘": "circ",
    "°": "degree",
    "′": "prime",
    "⌊": "lfloor",
    "⌋": "rfloor",
    "⌈": "lceil",
    "⌉": "rceil",
    "|": "vert lvert rvert mid",
    "⦃": "lbrace",
    "⦄": "rbrace",
    "angle": "measuredangle",
    "epsilon": "varepsilon",
    "phi": "varphi",
    "theta": "vartheta",
    "rho": "varrho",
    "triangle": "bigtriangleup",
    "": "left right middle big bigl bigr bigm bigg biggl biggr biggm displaystyle textstyle scriptstyle limits nolimits"
    " text textbf textit textrm textsf texttt textsl textnormal emph mathbf mathit mathrm mathbb mathcal mathsf mathop"
    " mathfrak boldsymbol bm mbox hbox operatorname quad qquad ldots dots cdots vdots dotsc dotsb boxed fbox hspace"
    " vspace smallskip medskip bigskip noindent hfill item underline ensuremath displaylines nonumber hline par newline"
    " centering rm bf it em tt sf sc cal",
}
_MEANING = {name: sign for sign, names in _COMMANDS.items() for name in names.split()}
"""Meaning of a LaTeX command; empty for typesetting commands. Other commands stand for their name."""
_SYNONYMS = {
    "degree": "°",
    "degrees": "°",
    "percent": "%",
    "sqrt": "√",
    "infinity": "∞",
    "zero": "0",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "eleven": "11",
    "twelve": "12",
}
FUNCTIONS = word_set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim max min sup inf gcd lcm mod "
    "bmod pmod det deg dim ker arg int sum prod choose alpha beta gamma delta epsilon zeta eta theta iota "
    "kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega partial nabla forall exists neg "
    "wedge vee overline overrightarrow vec hat bar"
)
"""Names that belong to formulas."""
_FUNCTION = rf"(?:{'|'.join(sorted(FUNCTIONS))})(?![a-z])"
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_SUBSCRIPT = re.compile(r"[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₙᵢⱼₖ]+")
_FORMULA_END = re.compile(r"((?<!\\)\$\$|\\[\[\]]|(?:\$|\\\)|[}\]])(?=\s+[A-Z][a-z]))")
"""End of a formula that may also end a sentence without a stop."""
_DEGREES = dict.fromkeys(map(ord, "º˚"), "°")
"""Degree signs that Unicode normalisation would turn into letters."""
_GREEK = re.compile(r"[\u0370-\u03ff]")
_VULGAR = re.compile(r"(?=[¼-¾⅐-⅞])")
_GROUPED = re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\[,!]|[,'\u00a0\u2009\u202f ])(?=\d{3}(?![\d.]?\d))")
"""Separator between groups of digits, as in 1,000."""
_SPELLINGS = [
    (re.compile(pattern), spelled)
    for pattern, spelled in (
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\[dtc]?frac\s*(\d)(?!\d)", r"\\frac{\1}"),
        (r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-z]))", " ° "),
        (r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-z]))", "′"),
        (r"(?<=[a-z\d)}\]])([_^])([a-z])(?=[a-z])", r"\1{\2} "),
        (r"\\(?:text[a-z]*|mathrm|mbox|operatorname\*?|boxed)\s*\{([^{}]*)\}", r" \1 "),
        (r"[\^_]\s*\{\s*\}", ""),
        (r"(?:\\cdot\s*){3}", " "),
        (r"(?<=[=$,(:\s])\{([^{}]*,[^{}]*)\}", r"\\{\1\\}"),
        (r"\\not\s*=", "≠"),
        (r"\\[,;:!>~ ]|\\(?=\n)", " "),
        (r"\\begin\s*\{([a-z]*)matrix\*?\}", r" \1matrix "),
        (r"\\(?:begin|end)\s*\{\w+\*?\}(?:\{[lcr|]*\})?", " "),
        (r"(?<![a-z'])([a-z])'(?!(?:s|t|ll|re|ve|d|m)(?![a-z]))", r"\1′"),
        (r"(?<=[a-z])'(?=[a-z])", ""),
        (r"(?<=[\w)\]}])(\s*)\*\*\1(?=[\w(\\{-])", " ^ "),
        (r"(?<=[\w)\]}])(\s*)\*\1(?=[\w(\\{])", " × "),
        (r"<=", "≤"),
        (r">=", "≥"),
        (r"==", "="),
        (r"-{3,}", " "),
        (r"--", "-"),
        (r"->", "→"),
        (r"=>", "⇒"),
        (rf"-\s*(?=(?!{_FUNCTION})[a-z]{{3}})", " "),
        (r"(?<=[a-z]{3})-(?=\w)", " "),
        (r"(?m)^[ \t]*[-+·][ \t]+", ""),
        (r"(?<![\\a-z_^])[a-z](?:\s+[a-z])+(?![a-z])", lambda match: re.sub(r"\s", "", match[0])),
    )
]
"""Rewrites applied before splitting into words: fractions, degrees, hyphens, multi-letter names, …"""
_WORD = re.compile(
    r"\\[a-z]+|\\.|\d+(?:\.\d+)?|\.\d+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+"
    r"|(?P<ratio>(?<=\d):(?=\d))|(?P<factorial>(?:(?<=[\d)])|(?<![^\W_]{2})(?<=\w))!)|(?P<end>[.?!;:。\n])"
    r"|[-+/^=<>|%()\[\]{}≤≥≠×·±∓√∞→⇒∪∩⊆⊂∈∉∅⊥∥≈≡≅∼∘°′⌊⌋⌈⌉]",
    re.DOTALL,
)
_ESCAPED = {r"\{": "⦃", r"\}": "⦄", r"\|": "∥", r"\%": "%"}
_INFIX = {
    r"\frac": "/",
    r"\dfrac": "/",
    r"\tfrac": "/",
    r"\cfrac": "/",
    r"\binom": "choose",
    r"\dbinom": "choose",
    r"\tbinom": "choose",
}
"""LaTeX commands with two arguments, and the infix operator that plain text uses."""
_SHORT = word_set("of is in to be it an at by if on or as we he so no do up my me us go am")


def words(text: str) -> Words:
    """Words of a text, independent of notation."""
    return tuple(word for word in _words_with_ends(text) if word != END)


def sentences(text: str) -> list[Words]:
    """Words of each sentence or line that has any."""
    return [
        tuple(group) for is_end, group in groupby(_words_with_ends(text), key=lambda word: word == END) if not is_end
    ]


def is_prose(word: str) -> bool:
    """Whether a word belongs to a language rather than to a formula."""
    if len(word) < 3:
        return word in _SHORT or "\u3040" <= word <= "\u9fff"
    return word.isalpha() and word not in FUNCTIONS


def _words_with_ends(text: str) -> list[str]:
    """Words, with END at the end of each sentence."""
    found = (_to_word(match) for match in _WORD.finditer(_normalize_notation(text)))
    sequence = list(_normalize_brackets([word for word in found if word]))
    return [
        "×" if word == "·" and _is_between_numbers(sequence, position) else word
        for position, word in enumerate(sequence)
    ]


def _is_between_numbers(sequence: Sequence[str], position: int) -> bool:
    """Whether a factor of the product at `position` is a number. For vectors, · and × differ."""
    return any(word[0].isdigit() for word in sequence[max(0, position - 1) : position + 2])


def _normalize_notation(text: str) -> str:
    """Lower-case text in one notation."""
    raised = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0]}}}", _VULGAR.sub(" ", text.translate(_DEGREES)))
    lowered = _SUBSCRIPT.sub(lambda match: f"_{{{match[0]}}}", raised)
    separated = _FORMULA_END.sub(r"\1. ", lowered)
    plain = _greek(unicodedata.normalize("NFKC", separated)).translate(_PLAIN).lower()
    plain = _GROUPED.sub("", plain)
    for pattern, spelled in _SPELLINGS:
        plain = pattern.sub(spelled, plain)
    return plain


def _greek(text: str) -> str:
    """Greek letters replaced by their names: α becomes ` alpha `."""
    return _GREEK.sub(lambda match: f" {unicodedata.name(match[0], 'letter ').rsplit(' ', 1)[-1].lower()} ", text)


def _to_word(match: re.Match[str]) -> str:
    """Word for a match; empty for typesetting."""
    read = match[0]
    if match["end"]:
        return END
    if read.startswith("\\"):
        name = read[1:]
        return read if read in _INFIX else _ESCAPED.get(read, _MEANING.get(name, name if name.isalpha() else ""))
    return f"0{read}" if read.startswith(".") else _SYNONYMS.get(read, read)


def _normalize_brackets(found: Sequence[str]) -> Iterator[str]:
    """`found` without brackets around a single word or prose, with LaTeX groups as brackets and fractions as infix."""
    ends = _bracket_ends(found)
    rewritten = _bracket_replacements(found, ends)
    after: dict[int, list[str]] = {}
    for position, word in enumerate(found):
        if word in _INFIX:
            after.setdefault(ends.get(position + 1, position + 1), []).append(_INFIX[word])
        elif word in "{}" or position in rewritten:
            yield from rewritten.get(position, "")
        else:
            yield word
        yield from after.get(position, ())


def _bracket_ends(found: Sequence[str]) -> dict[int, int]:
    """Position of the closing bracket of each group and round bracket. Half-open intervals leave some unclosed."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for position, word in enumerate(found):
        if word in "{(":
            opened.append(position)
        while word == "}" and opened and found[opened[-1]] == "(":
            opened.pop()
        if word in "})" and opened and found[opened[-1]] == {"}": "{", ")": "("}[word]:
            ends[opened.pop()] = position
    return ends


def _bracket_replacements(found: Sequence[str], ends: Mapping[int, int]) -> dict[int, str]:
    """Replacement of each bracket, by position."""
    word_counts = [0, *accumulate(word not in "{}()" and word != END for word in found)]
    prose = [0, *accumulate(len(word) > 1 and is_prose(word) for word in found)]
    chosen = [0, *accumulate(word == "choose" for word in found)]
    rewritten: dict[int, str] = {}
    for start, end in ends.items():
        first, last = start + 1, end - 1
        is_redundant = (
            word_counts[end] - word_counts[first] <= 1
            or prose[end] > prose[first]
            or (found[start] == "{" and chosen[end] > chosen[first])
            or (ends.get(first) == last and rewritten[first] == "(")
            or (found[first + 1 : first + 2] == ["choose"] and word_counts[end] - word_counts[first] == 3)
            or (found[first] == "√" and word_counts[end] - word_counts[first] == 2)
            or (found[start - 1 : end] == ["^", found[start], "-", found[last]] and last == first + 1)
        )
        rewritten[start], rewritten[end] = ("", "") if is_redundant else ("(", ")")
    return rewritten
