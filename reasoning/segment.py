"""Thinking text cut into thinking patterns at linguistic cues (papers, section B.1).

Knows: markers, sentence and line starts, token lengths. Must not know: what a segment is worth, or any model.

The law: the segments joined are the text, and the token spans joined are the tokens. A segment begins at a marker
that starts a sentence or a line; spaces before the marker go with it, line breaks stay with the segment before,
because tokenizers glue a space to the word after it and a line break to the stop before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

METHOD_VERSION = "2"
"""Part of the cache key of everything that cuts: raise it when a cut may fall elsewhere."""
SPACED_END = r"""(?:(?<=[.!?…])|(?<=[.!?…]["'”’)\]*]))[ \t]+"""
UNSPACED_END = r"(?:(?<=[。！？…])|(?<=[。！？…][”’」』）]))[ \t]*"
SENTENCE_END = rf"{SPACED_END}|{UNSPACED_END}|\n[ \t]*"
"""Where a sentence or a line ends. Chinese puts no space after a full stop."""
UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff]"
"""Scripts whose words follow one another without a space."""


def segment_text(text: str, markers: Sequence[str], min_chars: int) -> list[str]:
    """`text` as consecutive segments, each (but the first) beginning with a marker. Lossless: "".join gives `text`.

    A segment shorter than `min_chars` characters is joined to the next one.
    """
    cuts = [0, *_marker_starts(text, markers), len(text)]
    kept = [0]
    for cut in cuts[1:-1]:
        if cut - kept[-1] >= min_chars:
            kept.append(cut)
    return [text[start:end] for start, end in zip(kept, [*kept[1:], len(text)], strict=True) if end > start]


def _marker_starts(text: str, markers: Sequence[str]) -> list[int]:
    """Where segments may begin: at the blanks before a marker, but after any line break."""
    pattern = rf"(?:{SENTENCE_END})(?={marker_pattern(markers)})"
    return [_after_line_break(text, match) for match in re.finditer(pattern, text)]


def marker_pattern(markers: Sequence[str]) -> str:
    """Matches any of `markers` as whole words, the longest that fits."""
    return rf"(?:{'|'.join(_whole(marker) for marker in sorted(markers, key=len, reverse=True))})"


def _whole(marker: str) -> str:
    """In an unspaced script any character may follow a word."""
    return re.escape(marker) if re.fullmatch(UNSPACED, marker[-1]) else rf"{re.escape(marker)}(?!\w)"


def _after_line_break(text: str, match: re.Match[str]) -> int:
    newline = text.rfind("\n", match.start(), match.end())
    return match.start() if newline < 0 else newline + 1


def token_ends(segments: list[str], token_texts: list[str]) -> list[int]:
    """For each segment the number of tokens from the start of the text to the segment's end.

    `token_texts` are the tokens' own texts; joined they begin with the segments' text (what follows the thinking
    is ignored). A token that straddles a cut belongs to the segment it starts in. Ends never decrease.
    """
    starts = [0, *accumulate(len(text) for text in token_texts)][:-1]
    ends: list[int] = []
    token = 0
    for char_end in accumulate(len(segment) for segment in segments):
        while token < len(starts) and starts[token] < char_end:
            token += 1
        ends.append(token)
    return ends
