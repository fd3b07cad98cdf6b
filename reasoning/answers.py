"""Finding the answer in a completion, and deciding plain numbers without a parser.

Knows: `\\boxed{…}`, plain numbers. Must not know: math-verify, processes, time limits.

`settle` is sound, not complete: it speaks only where no convention is in doubt, and leaves everything else (None)
to `reasoning.answer_check`.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST_NUMBER = 1000
"""Characters; Python refuses to read far longer integers."""
_NUMBER = re.compile(r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?")


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}` with balanced braces; None when there is none."""
    found, opened = (-1, -1), []
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{|[{}]", text):
        if match[0] != "}":
            opened.append(match.end() if match[0] != "{" else -1)
        elif opened:
            found = max(found, (opened.pop(), match.start()))
    return text[found[0] : found[1]] if found[0] >= 0 else None


def until_closing_brace(text: str) -> str | None:
    """`text` up to the first closing brace that was not opened in it; None when it stays open."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return text[:index]
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
