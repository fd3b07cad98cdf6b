"""Splits thinking text into segments at linguistic markers (DTO, arXiv 2505.21765).

Invariants: the segments joined are the text, and the token spans joined are the tokens. A segment begins at a marker
that starts a sentence or a line. Spaces before the marker belong to it and line breaks to the segment before, because
tokenizers join a space with the next word and a line break with the previous stop. A segment that is too long is split
at paragraphs, else lines, sentences or words.

Running time is linear in the text: quantifiers are possessive (`*+`), so no pattern backtracks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise

from reasoning.cues import FILLER, FOLLOWED, LEADS, UNSPACED

_BLANK = r"[ \t\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]"
_BREAK = r"[\n\r\v\f\x85\u2028\u2029]"
_CLOSING = r"""(?:\\[)\]]|["'”’»)\]}*_$`])*+"""
"""Ends of formulas, quotes and Markdown after a stop."""
_OPENING = r"""[*_`"'“‘„«「『（(\[【]*+"""
"""Quotes and Markdown before a word."""
_BULLET = rf"(?:[-+*•‣◦▪·–—>#]++{_BLANK}*+|[(（]?(?:\d{{1,3}}|[A-Za-z])(?:[)）、]{_BLANK}*+|[.．]{_BLANK}++))*+"
"""List bullets, numbering, heading and quotation marks."""
_START = re.compile(
    rf"(?P<line>\A|{_BREAK}){_BLANK}*+{_BULLET}{_OPENING}"
    rf"|(?P<unspaced>[。！？．][”’」』）】]*+){_BLANK}*+{_OPENING}"
    rf"|(?P<stop>[.!?…]{_CLOSING}){_BLANK}*+{_OPENING}"
    rf"|(?P<formula>\$|\\[)\]]|\}}){_BLANK}++{_OPENING}"
)
_WORD = re.compile(rf"{UNSPACED}|[^\W\d_]+")
_AFTER_LEAD = re.compile(rf"(?:,?{_BLANK}++|[—–-]|，)")
_ONE_BLANK = re.compile(_BLANK)
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|approx|resp|z\. ?B|d\. ?h|bzw|usw|ca)\.\Z")
_BOUNDARIES = tuple(
    re.compile(boundary)
    for boundary in (
        rf"{_BREAK}{_BLANK}*+{_BREAK}++",
        _BREAK,
        rf"[.!?…]{_CLOSING}(?={_BLANK})|[。！？]",
        rf"(?={_BLANK})",
    )
)
"""Where a long segment is split, in order of preference: ends of paragraphs, lines, sentences, words."""


def segment_text(text: str, markers: Sequence[str], min_chars: int, max_chars: int) -> list[str]:
    """`text` as consecutive segments. Lossless: "".join returns `text`.

    Each segment except the first begins with a marker, or continues a segment longer than `max_chars` characters. A
    segment shorter than `min_chars` characters is merged with the next one.
    """
    kept = [0]
    for cut, _, _ in marker_starts(text, markers):
        if cut - kept[-1] >= min_chars:
            kept.append(cut)
    cuts = [
        cut
        for start, end in pairwise([*kept, len(text)])
        for cut in (start, *_split_positions(text, start, end, max_chars))
    ]
    return [text[start:end] for start, end in pairwise([*cuts, len(text)]) if end > start]


def _split_positions(text: str, start: int, end: int, max_chars: int) -> Iterator[int]:
    """Positions that split a segment into parts of at most `max_chars` and at least a quarter of it. Only a single
    longer word stays whole."""
    while end - start > max_chars:
        last = min(start + max_chars, end - max_chars // 4)
        start = _split_position(text, start + max_chars // 4, last, end)
        if start < end:
            yield start


def _split_position(text: str, first: int, last: int, end: int) -> int:
    """The last boundary of the best kind between `first` and `last`; if there is none, the next one after."""
    for boundary in _BOUNDARIES:
        found = [match.end() for match in boundary.finditer(text, first, last)]
        if found:
            return found[-1]
    beyond = re.compile(rf"(?={_BLANK})|{_BREAK}").search(text, last, end)
    return beyond.end() if beyond else end


def sentence_starts(text: str) -> Iterator[tuple[int, int]]:
    """Starts of sentences and lines, each with the start of its first word, after Markdown and list bullets."""
    for match in _START.finditer(text):
        if match.end() < len(text) and _is_certain(match):
            yield _cut(match), match.end()


def marker_starts(text: str, markers: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Starts of sentences and lines that open with a marker, each with the start of its first word and the marker."""
    by_word = _by_first_word(tuple(markers))
    for match in _START.finditer(text):
        marker = _marker_at(text, match.end(), by_word)
        if marker and _starts_sentence(match, text[match.end()]):
            yield _cut(match), match.end(), marker


def _marker_at(text: str, position: int, by_word: Mapping[str, list[str]]) -> str | None:
    """The max_chars marker at `position`, possibly after interjections. None if there is none."""
    while True:
        word = _first_word(text, position)
        for marker in by_word.get(word, ()):
            if _pattern(marker).match(text, position):
                return marker
        lead = _AFTER_LEAD.match(text, position + len(word)) if word in LEADS else None
        if not lead:
            return None
        position = lead.end()


def _starts_sentence(start: re.Match[str], first: str) -> bool:
    """Whether a marker with first character `first` begins a sentence at `start`.

    In scripts without spaces, a space after the stop is optional. Elsewhere it is required, and without a certain stop
    the marker must be capitalised.
    """
    if re.match(UNSPACED, first):
        return start.lastgroup != "formula"
    return _is_certain(start) or (_is_followed_by_space(start) and not first.islower())


def _is_certain(start: re.Match[str]) -> bool:
    """False after a formula without a stop, after an abbreviation, and after a stop without a space."""
    cut = _cut(start)
    abbreviated = _ABBREVIATED.search(start.string, max(0, cut - 8), cut)
    return start.lastgroup != "formula" and _is_followed_by_space(start) and not abbreviated


def _is_followed_by_space(start: re.Match[str]) -> bool:
    return start.lastgroup != "stop" or bool(_ONE_BLANK.match(start.string, _cut(start)))


def _cut(start: re.Match[str]) -> int:
    """Position of the cut: before blanks, quotes, Markdown and list bullets, but after line breaks."""
    return start.end(str(start.lastgroup))


def _first_word(text: str, position: int = 0) -> str:
    """Lower-case word at `position`; in scripts without spaces its first character; empty if there is no letter."""
    found = _WORD.match(text, position)
    return found[0].lower() if found else ""


@cache
def _by_first_word(markers: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Markers by their first word, max_chars first."""
    groups: dict[str, list[str]] = {}
    for marker in sorted(markers, key=len, reverse=True):
        groups.setdefault(_first_word(marker), []).append(marker)
    return groups


@cache
def _pattern(marker: str) -> re.Pattern[str]:
    """Pattern of `marker` as whole words, case-insensitive. Between words a comma or filler words may occur; a hyphen
    may be a space or missing."""
    words = [re.escape(word).replace(r"\-", f"(?:-|{_BLANK}?)").replace("'", "['’]") for word in marker.split()]
    between = rf"(?:,?{_BLANK}++|-)(?:{FILLER}{_BLANK}++){{0,3}}"
    end = "" if re.match(UNSPACED, marker[-1]) else r"(?![^\W_]|-\w)"
    return re.compile(between.join(words) + end + FOLLOWED.get(marker.lower(), ""), re.IGNORECASE)


def token_ends(segments: list[str], token_texts: list[str]) -> list[int]:
    """End of each segment in tokens from the start of the text.

    `token_texts`: text of each token; joined they start with the segments' text (text after the thinking is ignored). A
    token that spans a cut belongs to the segment in which it starts. Ends never decrease.
    """
    starts = [0, *accumulate(len(text) for text in token_texts)][:-1]
    ends: list[int] = []
    token = 0
    for char_end in accumulate(len(segment) for segment in segments):
        while token < len(starts) and starts[token] < char_end:
            token += 1
        ends.append(token)
    return ends
