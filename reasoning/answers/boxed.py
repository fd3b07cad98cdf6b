"""Finding the answer in a completion, and deciding plain numbers without a parser.

Knows: `\\boxed{…}`, plain numbers. Must not know: math-verify, processes, time limits.

`settle` is sound, not complete: it speaks only where no convention is in doubt, and leaves everything else (None)
to `reasoning.answers.check`.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST_NUMBER = 1000
"""Characters; Python refuses to read far longer integers."""
_BRACE = re.compile(r"\\\\(?!(?:boxed|fbox)\b)|\\[{}]|(?P<open>(?P<box>\\(?:boxed|fbox)\s*)?\{)|(?P<close>\})")
"""Braces, those of boxes among them. What is none is consumed: `\\{`, and a line break `\\\\` before a brace."""
_BOX_ALONE = re.compile(r"\\(?:boxed|fbox)\s*\Z")
_NUMBER = re.compile(r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?")


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}` that is not empty if one is not; None where the last stays open."""
    last, found = -1, None
    opened: list[tuple[int, bool]] = []
    for match in _BRACE.finditer(text):
        if match["open"]:
            opened.append((match.end(), match["box"] is not None))
        elif match["close"] and opened:
            start, is_box = opened.pop()
            content = text[start : match.start()]
            if is_box and start > last and (content.strip() or found is None):
                last, found = start, content
    stays_open = any(is_box and start > last for start, is_box in opened) or _BOX_ALONE.search(text)
    return None if stays_open else found


def until_closing_brace(text: str) -> str | None:
    """`text` up to the first closing brace that was not opened in it; None when it stays open."""
    depth = 0
    for match in _BRACE.finditer(text):
        depth += (match["open"] is not None) - (match["close"] is not None)
        if depth < 0:
            return text[: match.start()]
    return None


def plain_number(text: str) -> Fraction | None:
    """The value of an undecorated number (sign, digits, thousands commas, decimals); None for anything else."""
    bare = text.strip().removeprefix("\\$")
    if bare.startswith("$") and bare.endswith("$") and len(bare) > 1:
        bare = bare[1:-1].strip()
    if len(bare) > LONGEST_NUMBER or not bare.isascii() or not _NUMBER.fullmatch(bare):
        return None
    return Fraction(bare.replace(",", ""))


def settle(answer: str, gold: str) -> bool | None:
    """Whether `answer` equals `gold`, where that can be said without parsing mathematics; else None."""
    if answer.strip() == gold.strip():
        return True
    given, right = plain_number(answer), plain_number(gold)
    if given is None or right is None:
        return None
    return given == right
