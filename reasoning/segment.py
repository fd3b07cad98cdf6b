"""Thinking text cut into thinking patterns at linguistic cues (papers, section B.1).

Knows: markers, sentence and line starts, token lengths. Must not know: what a segment is worth, or any model.

The law: the segments joined are the text, and the token spans joined are the tokens. A segment begins at a marker
that starts a sentence or a line; spaces before the marker go with it, line breaks stay with the segment before,
because tokenizers glue a space to the word after it and a line break to the stop before it. A segment that is too
long is split where it reads best: at paragraphs, else lines, sentences, words.

Time is linear in the text: quantifiers are possessive (`*+`), so that no text makes a pattern go back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from reasoning.cues import FILLER, FOLLOWED, LEAD, UNSPACED

METHOD_VERSION = "2"
"""Part of the cache key of everything that cuts: raise it when a cut may fall elsewhere."""
_BLANK = r"[ \t\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]"
_BREAK = r"[\n\r\v\f\x85\u2028\u2029]"
_CLOSED = r"""(?:\\[)\]]|["'”’»)\]}*_$`])*+"""
"""Formulas, quotes and Markdown that end behind a stop."""
_OPENED = r"""[*_`"'“‘„«「『（(\[【]*+"""
"""Quotes and Markdown that begin before a word."""
_LISTED = rf"(?:(?:[-+*•‣◦▪·–—>#]++|[(（]?(?:\d{{1,3}}|[A-Za-z])[.)）、．]){_BLANK}*+)*+"
"""Marks of lists, headings and quoted lines."""
_START = re.compile(
    rf"(?P<line>{_BREAK}){_BLANK}*+{_LISTED}{_OPENED}"
    rf"|(?P<unspaced>[。！？．][”’」』）】]*+){_BLANK}*+{_OPENED}"
    rf"|(?P<stop>[.!?…]{_CLOSED}){_BLANK}*+{_OPENED}"
    rf"|(?P<formula>\$|\\[)\]]|\}}){_BLANK}++{_OPENED}"
)
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|approx|resp|z\. ?B|d\. ?h|bzw|usw|ca)\.\Z")
_BOUNDS = tuple(
    re.compile(bound)
    for bound in (rf"{_BREAK}{_BLANK}*+{_BREAK}++", _BREAK, rf"[.!?…]{_CLOSED}(?={_BLANK})|[。！？]", rf"(?={_BLANK})")
)
"""Where a long segment is split: the ends of paragraphs, lines, sentences and words."""


class Start(NamedTuple):
    """Where a sentence or a line begins, or may begin."""

    cut: int
    """Where a segment would begin: behind line breaks, before blanks, quotes, Markdown, marks of lists."""
    word: int
    """Where its first word begins."""
    is_sure: bool
    """False behind a formula without a stop, an abbreviation, or a stop without a space."""
    is_spaced: bool


def segment_text(text: str, markers: Sequence[str], min_chars: int, max_chars: int) -> list[str]:
    """`text` as consecutive segments. Lossless: "".join gives `text`.

    Each but the first begins with a marker, or goes on where a segment of more than `max_chars` characters was split.
    A segment shorter than `min_chars` characters is joined to the next one.
    """
    kept = [0]
    for cut in _marker_cuts(text, tuple(markers)):
        if cut - kept[-1] >= min_chars:
            kept.append(cut)
    cuts = [cut for start, end in pairwise([*kept, len(text)]) for cut in (start, *_splits(text, start, end, max_chars))]
    return [text[start:end] for start, end in pairwise([*cuts, len(text)]) if end > start]


def _marker_cuts(text: str, markers: tuple[str, ...]) -> Iterator[int]:
    """Where segments may begin."""
    for start in sentence_starts(text):
        if marker_at(text, start, markers):
            yield start.cut


def _splits(text: str, start: int, end: int, longest: int) -> Iterator[int]:
    """Where to split a segment so that no part is longer than `longest`, nor shorter than a quarter of it.

    Only a word that is longer stays whole.
    """
    while end - start > longest:
        last = min(start + longest, end - longest // 4)
        start = _split(text, start + longest // 4, last, end)
        if start < end:
            yield start


def _split(text: str, first: int, last: int, end: int) -> int:
    """The last bound of the best kind between `first` and `last`; where there is none, the next one after."""
    for bound in _BOUNDS:
        found = [match.end() for match in bound.finditer(text, first, last)]
        if found:
            return found[-1]
    beyond = re.compile(rf"(?={_BLANK})|{_BREAK}").search(text, last, end)
    return beyond.end() if beyond else end


def sentence_starts(text: str) -> Iterator[Start]:
    """Each place behind the text's beginning where a sentence or a line may begin."""
    for match in _START.finditer(text):
        kind = str(match.lastgroup)
        cut = match.end(kind)
        is_spaced = kind in ("line", "unspaced") or bool(re.match(_BLANK, text[cut : cut + 1]))
        is_sure = kind != "formula" and is_spaced and not _ABBREVIATED.search(text, max(0, cut - 8), cut)
        yield Start(cut, match.end(), is_sure, is_spaced)


def marker_at(text: str, start: Start, markers: tuple[str, ...]) -> str | None:
    """Which of `markers`, the longest that fits, begins the sentence at `start`."""
    found = _pattern(markers).match(text, start.word)
    if not found or not _begins(start, found[0][0]):
        return None
    return _by_length(markers)[int(found.lastindex or 0) - 1]


def _begins(start: Start, first: str) -> bool:
    """Whether a marker that begins with the character `first` begins a sentence at `start`."""
    if re.match(UNSPACED, first):
        return start.is_sure or not start.is_spaced
    return start.is_spaced and (start.is_sure or not first.islower())


@cache
def _pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of `markers`, whatever its case, perhaps behind an interjection."""
    firsts = "".join(re.escape(letter) for letter in sorted({marker[0] for marker in markers}))
    choices = "|".join(f"({_whole(marker)})" for marker in _by_length(markers))
    return re.compile(rf"(?:{LEAD}\W?{_BLANK}++)?(?=[{firsts}])(?:{choices})", re.IGNORECASE)


@cache
def _by_length(markers: tuple[str, ...]) -> list[str]:
    return sorted(markers, key=len, reverse=True)


def _whole(marker: str) -> str:
    """A marker as whole words. Between them may stand a comma or a word without weight; hyphens are as good as none."""
    words = [re.escape(word).replace(r"\-", f"(?:-|{_BLANK}?)").replace("'", "['’]") for word in marker.split()]
    between = rf"(?:,?{_BLANK}++|-)(?:{FILLER}{_BLANK}++)?"
    end = "" if re.match(UNSPACED, marker[-1]) else r"(?!\w|-\w)"
    return between.join(words) + end + FOLLOWED.get(marker.lower(), "")
