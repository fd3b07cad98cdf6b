r"""Multiple choice: which option an answer names, by letter in any spelling or by the option's own text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from reasoning.answers.text import as_text

_LEAD = r"(?:(?:the\s+)?(?:final\s+|correct\s+)*(?:answer|option|choice|answers|options)(?:\s+(?:is|are))?\s*:?\s*)*"
_LETTER = r"[(\[]?\s*([a-z])\s*[)\]]?"
_ONE = re.compile(rf"{_LEAD}(?:[(\[]\s*([a-z])\s*[)\]]|([a-z])(?![a-z0-9'^_/*+=<>!-]))\s*[).:,]?\s*(.*)", re.DOTALL)
_SEVERAL = re.compile(rf"{_LEAD}{_LETTER}(?:\s*(?:,|;|and|&|\+)+\s*{_LETTER})+")
_TOGETHER = re.compile(rf"{_LEAD}([a-z]{{2,}})")


def letters(count: int) -> str:
    """The first `count` option letters."""
    return "abcdefghijklmnopqrstuvwxyz"[:count]


def chosen(answer: str, choices: Sequence[str], same: Callable[[str, str], bool], several: bool) -> frozenset[str]:
    """Letters that `answer` names; empty if it names none or contradicts itself.

    `same`: whether two texts are equal. `several`: whether letters may be joined, as in AC.
    """
    normalized, known = as_text(answer), letters(len(choices))
    if _SEVERAL.fullmatch(normalized):
        named = re.findall(r"(?<![a-z])[a-z](?![a-z])", normalized)
        return frozenset(named) if set(named) <= set(known) else frozenset()
    if (together := _TOGETHER.fullmatch(normalized)) and several and set(together[1]) <= set(known):
        return frozenset(together[1])
    one = _ONE.fullmatch(normalized)
    letter = one and (one[1] or one[2])
    if not one or not letter or letter not in known:
        return _own_text(answer, choices, same)
    rest = one[3]
    if not rest:
        return frozenset(letter)
    if re.match(r"(?:or|and|nor|but)\b|[,;/&]", rest):
        return frozenset()
    if same(rest, choices[known.index(letter)]):
        return frozenset(letter)
    if _own_text(rest, choices, same):
        return frozenset()
    is_set_apart = one[1] or re.match(rf"{_LEAD}{letter}\s*[).:,]", normalized)
    return frozenset(letter) if is_set_apart else _own_text(answer, choices, same)


def _own_text(answer: str, choices: Sequence[str], same: Callable[[str, str], bool]) -> frozenset[str]:
    """Letter of the only option whose text equals `answer`."""
    found = [letter for letter, choice in zip(letters(len(choices)), choices, strict=False) if same(answer, choice)]
    return frozenset(found) if len(found) == 1 else frozenset()
