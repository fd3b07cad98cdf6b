"""Extracts boxed answers from completions, and compares plain numbers without a parser.

`settle` is sound but not complete: it decides only unambiguous cases and returns None for the rest, which
`reasoning.answers.check` decides.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_NUMBER_CHARS = 1000
"""Maximum characters of a number. Python does not parse much longer integers."""
_BRACE = re.compile(r"\\\\(?!(?:boxed|fbox)\b)|\\[{}]|(?P<open>(?P<box>\\(?:boxed|fbox)\s*)?\{)|(?P<close>\})")
"""Braces, with those of boxes. Escaped braces `\\{`, and a line break `\\\\` before a brace, are consumed."""
_BOX_ALONE = re.compile(r"\\(?:boxed|fbox)\s*\Z")
_NUMBER = re.compile(r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?")


def boxed(text: str) -> str | None:
    """Content of the last `\\boxed{…}`; a non-empty one is preferred. None if the last one is not closed."""
    span = boxed_span(text)
    return None if span is None else text[slice(*span)]


def boxed_span(text: str) -> tuple[int, int] | None:
    """Where the content that `boxed` returns begins and ends."""
    last, found = -1, None
    opened: list[tuple[int, bool]] = []
    for match in _BRACE.finditer(text):
        if match["open"]:
            opened.append((match.end(), match["box"] is not None))
        elif match["close"] and opened:
            start, is_box = opened.pop()
            content = text[start : match.start()]
            if is_box and start > last and (content.strip() or found is None):
                last, found = start, (start, match.start())
    stays_open = any(is_box and start > last for start, is_box in opened) or _BOX_ALONE.search(text)
    return None if stays_open else found


def until_closing_brace(text: str) -> str | None:
    """`text` up to the first unmatched closing brace; None if there is none."""
    depth = 0
    for match in _BRACE.finditer(text):
        depth += (match["open"] is not None) - (match["close"] is not None)
        if depth < 0:
            return text[: match.start()]
    return None


def plain_number(text: str) -> Fraction | None:
    """Value of a plain number (sign, digits, thousands separators, decimals); None for anything else."""
    bare = text.strip().removeprefix("\\$")
    if bare.startswith("$") and bare.endswith("$") and len(bare) > 1:
        bare = bare[1:-1].strip()
    if len(bare) > MAX_NUMBER_CHARS or not bare.isascii() or not _NUMBER.fullmatch(bare):
        return None
    return Fraction(bare.replace(",", ""))


def settle(answer: str, gold: str) -> bool | None:
    """Whether `answer` equals `gold`; None if that needs a parser."""
    if answer.strip() == gold.strip():
        return True
    given, right = plain_number(answer), plain_number(gold)
    if given is None or right is None:
        return None
    return given == right
