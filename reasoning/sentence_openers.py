"""Counts how a model's sentences begin, to choose segment markers for a new model.

A good marker signals a change of direction: it opens sentences in many traces and rather late in them. Openers that
refer to the problem ("Ann has 12") occur in few traces each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean

from reasoning.cues import UNSPACED
from reasoning.records import SentenceOpener
from reasoning.segment import marker_starts, sentence_starts

WORDS, CHARACTERS = 3, 6
"""Maximum length of an opener in words, or in characters for scripts without spaces. Punctuation also ends it."""
_WORDS = re.compile(rf"{UNSPACED}{{1,{CHARACTERS}}}|[^\W\d_][\w'’-]*(?: [\w'’-]+){{0,{WORDS - 1}}}")


def sentence_openers(thinking: Sequence[str], markers: Sequence[str]) -> list[SentenceOpener]:
    """One row per opener in `thinking`, sorted by the number of traces. Markers that never occur come last.

    An opener that starts with a marker counts as that marker, regardless of case and interjections.
    """
    occurrences: dict[str, list[tuple[int, float]]] = {marker: [] for marker in markers}
    for index, text in enumerate(thinking):
        for start, opener in _openers_by_position(text, markers).items():
            occurrences.setdefault(opener, []).append((index, start / len(text)))
    rows = [
        SentenceOpener(
            text=text,
            is_marker=text in markers,
            count=len(found),
            traces=len({index for index, _ in found}),
            position=mean(position for _, position in found) if found else None,
        )
        for text, found in occurrences.items()
    ]
    return sorted(rows, key=lambda row: (-row.traces, row.text))


def _openers_by_position(text: str, markers: Sequence[str]) -> dict[int, str]:
    """By the position of its first word, how each sentence opens."""
    found = {start: match[0] for _, start in sentence_starts(text) if (match := _WORDS.match(text, start))}
    return found | {start: marker for _, start, marker in marker_starts(text, markers)}
