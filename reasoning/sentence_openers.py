"""How a model's sentences really begin: the report from which markers for a new model are chosen.

Knows: thinking texts, the segmenter's sentence starts. Must not know: models, or which markers are good.

A marker is a good one where the model, by its own habit, turns: it opens sentences in many traces, of many problems,
and rather late than early. Openings that are about the problem ("Ann has 12") occur in few traces each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean

from reasoning.cues import UNSPACED
from reasoning.records import SentenceOpener
from reasoning.segment import marker_starts, sentence_starts

"""Part of the report's cache key."""
WORDS, CHARACTERS = 3, 6
"""An opening ends at the first punctuation mark, or after so many words; in an unspaced script, so many characters."""
_WORDS = re.compile(rf"{UNSPACED}{{1,{CHARACTERS}}}|[^\W\d_][\w'’-]*(?: [\w'’-]+){{0,{WORDS - 1}}}")


def sentence_openers(thinking: Sequence[str], markers: Sequence[str]) -> list[SentenceOpener]:
    """One row per opening found in `thinking` texts, the one in most of them first; markers never met come last.

    What begins with a marker counts as that marker alone, in whatever case and behind whatever interjection.
    """
    places: dict[str, list[tuple[int, float]]] = {marker: [] for marker in markers}
    for index, text in enumerate(thinking):
        for start, said in _said(text, markers).items():
            places.setdefault(said, []).append((index, start / len(text)))
    rows = [
        SentenceOpener(
            text=text,
            is_marker=text in markers,
            count=len(met),
            traces=len({index for index, _ in met}),
            position=mean(place for _, place in met) if met else None,
        )
        for text, met in places.items()
    ]
    return sorted(rows, key=lambda row: (-row.traces, row.text))


def _said(text: str, markers: Sequence[str]) -> dict[int, str]:
    """By the place of its first word, how each sentence opens."""
    found = {start: match[0] for _, start in sentence_starts(text) if (match := _WORDS.match(text, start))}
    return found | {start: marker for _, start, marker in marker_starts(text, markers)}
