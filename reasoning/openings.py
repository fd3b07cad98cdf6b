"""How a model's sentences really begin: the report from which markers for a new model are chosen.

Knows: thinking texts, the segmenter's sentence ends. Must not know: models, or which markers are good.

A marker is a good one where the model, by its own habit, turns: it opens sentences in many traces, of many problems,
and rather late than early. Openings that are about the problem ("Ann has 12") occur in few traces each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean

from reasoning.records import Opening
from reasoning.segment import SENTENCE_END, UNSPACED, marker_pattern

METHOD_VERSION = "1"
"""Part of the report's cache key."""
WORDS, CHARACTERS = 3, 6
"""An opening ends at the first punctuation mark, or after so many words; in an unspaced script, so many characters."""
_MARKS = r"[*_(\[\"'“„‘「『（]*"
_OTHER = rf"{_MARKS}(?:{UNSPACED}{{1,{CHARACTERS}}}|[^\W\d_][\w'’-]*(?: [\w'’-]+){{0,{WORDS - 1}}})"


def openings(thinking: Sequence[str], markers: Sequence[str]) -> list[Opening]:
    """One row per opening found in `thinking` texts, the one in most of them first; markers never met come last.

    What begins with a marker counts as that marker alone. Quotes, brackets and Markdown before the first word belong to
    the opening: a segment is not cut there.
    """
    pattern = re.compile(rf"{marker_pattern(markers)}|{_OTHER}")
    places: dict[str, list[tuple[int, float]]] = {marker: [] for marker in markers}
    for index, text in enumerate(thinking):
        for start in sorted({0, *(match.end() for match in re.finditer(SENTENCE_END, text))}):
            if match := pattern.match(text, start):
                places.setdefault(match[0], []).append((index, start / len(text)))
    rows = [
        Opening(
            text=text, is_marker=text in markers, count=len(met), traces=len({index for index, _ in met}),
            place=mean(place for _, place in met) if met else None,
        )
        for text, met in places.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row.traces, row.text))
