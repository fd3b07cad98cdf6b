"""Finds training problems that a benchmark also contains, in any notation.

Two problems match if one contains the other, possibly in another notation, inside an instruction, or with small edits.
Problems that differ in a number, sign, operator or variable do not match, however long they are; neither do short ones
that differ in a word. Only candidate pairs are compared in full: texts of which one contains the other, and texts that
share rare n-grams. So the running time grows with the texts, not with the number of pairs.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from itertools import chain, islice

from reasoning.records import Match, Problem
from reasoning.text_normalization import Words, is_prose, sentences, word_set, words

MAX_PROBLEMS_PER_NGRAM = 100
"""N-grams that more problems than this share belong to a template or an instruction and are ignored."""
WORDS_PER_EDIT = 20
"""A copy may differ in one prose word per this many words."""
MIN_CLAUSE_WORDS = 4
"""A difference of at least this many prose words is an added clause."""
MAX_ALIGNED_WORDS = 2000
"""Maximum number of words for aligning two texts. Longer ones match only if one contains the other."""
_MIN_EQUAL_WORDS = 3
"""Minimum number of equal consecutive words that end a difference."""
_MIN_WORD_SIMILARITY = 0.8
"""Minimum similarity ratio of a word and its misspelling."""
_NAME = re.compile(r"\b[A-Z]{2,}\b")
_MIN_FORMULA_WORDS = 3
"""Minimum number of formula words that identify a short problem."""
_FILLER_WORDS = word_set(
    "find determine compute calculate evaluate solve what which is are the a an of value please give given "
    "that then following for question problem exercise answer"
)
"""Words that phrase a request or connect a sentence."""
_ANSWERING_WORDS = word_set(
    "answer answers step steps think thinking reason reasoning explain solution solutions final box format "
    "response respond reply instruction instructions simplest 答 步 推"
)
"""A sentence with one of these words, and no formula, is about answering rather than the problem."""
_INSTRUCTION_WORDS = word_set(
    "user system human input output you your please question problem exercise example task following "
    "assistant helpful hint carefully lets concise correct correctly efficiently clearly show work express "
    "simplify solve 请 题 解 问"
)
"""Words of instructions that may also occur in a problem, but rarely in one without numbers and formulas."""
_WORD_VARIABLES = word_set("a i")
"""Variables that are also words. They count if the other text has a different variable."""
_NUMBERED = word_set("question problem exercise example task")
_DECISIVE_WORDS = word_set(
    "plus minus sum difference product quotient remainder ratio even odd prime composite positive negative "
    "increasing decreasing largest smallest greatest least maximum minimum more less fewer not without half "
    "twice double triple third integer integers real complex rational irrational natural first last left "
    "right inside outside 大 小 奇 偶 正 负 和 差 积 商 不 非"
)
"""Prose that changes a problem as a number or an operator does."""
_SYNONYMS = {
    "smallest": "least",
    "minimum": "least",
    "greatest": "largest",
    "maximum": "largest",
    "integers": "integer",
}


class _Text:
    """A problem's text, analysed for comparison."""

    def __init__(self, problem: Problem, length: int, group: str = ""):
        """`length`: n-gram size. `group`: name of the benchmark."""
        self.problem, self.group, self.length = problem, group, length
        self.sentences = sentences(problem.text)
        self.words: Words = tuple(word for sentence in self.sentences for word in sentence)
        self.content = _content_words(self.words)
        self.decisive = _decisive(self.words)

    def ngrams(self) -> set[Words]:
        return ngrams(self.words, self.length)

    def parts(self) -> dict[Words, tuple[int, int]]:
        """Content words of sequences of sentences with fewer than `length` words and of the whole text, with the range
        of sentences."""
        found = {self.content: (0, len(self.sentences))}
        for first in range(len(self.sentences)):
            run: Words = ()
            for last in range(first, len(self.sentences)):
                run += self.sentences[last]
                if len(run) >= self.length:
                    break
                found.setdefault(_content_words(run), (first, last + 1))
        return found

    def is_surrounded_by_instructions(self, content: Words, first: int, last: int) -> bool:
        """Whether the sentences outside first … last only give instructions.

        Around a part with enough formula words, sentences without formulas are allowed too.
        """
        is_substantial = sum(map(_is_decisive, content)) >= _MIN_FORMULA_WORDS
        around = chain(islice(self.sentences, first), islice(self.sentences, last, None))
        return all(
            len(sentence) == 1
            or _is_instruction(sentence)
            or not _ANSWERING_WORDS.isdisjoint(sentence)
            or (is_substantial and not any(map(_is_decisive, sentence)))
            for sentence in around
        )

    @cached_property
    def with_drawings(self) -> Words:
        """All words except instructions."""
        return _without_instructions(self.sentences)

    @cached_property
    def without_drawings(self) -> Words:
        """The same without the code of drawings: copies draw the same figure with other code."""
        return _without_instructions(sentences(_without_drawings(self.problem.text)))


class Overlap:
    """Index of problem sets by whole text, by part and by n-gram."""

    def __init__(self, others: Mapping[str, Sequence[Problem]], length: int, share: float):
        """`others`: problem sets by name. `length`: n-gram size. `share`: minimum fraction of shared n-grams, unless
        one problem contains the other."""
        self._length, self._share = length, share
        self._texts = [_Text(other, length, name) for name, group in others.items() for other in group]
        self._wholes: dict[Words, _Text] = {}
        self._parts: dict[Words, list[tuple[_Text, int, int]]] = {}
        self._by_decisive_words: dict[Words, list[_Text]] = {}
        self._by_ngram: dict[Words, list[int]] = {}
        for index, text in enumerate(self._texts):
            self._add(index, text)
        self._rare = [
            sum(len(self._by_ngram[run]) <= MAX_PROBLEMS_PER_NGRAM for run in text.ngrams()) for text in self._texts
        ]

    def _add(self, index: int, text: _Text) -> None:
        self._wholes.setdefault(text.content, text)
        self._by_decisive_words.setdefault(text.decisive, []).append(text)
        for content, (first, last) in text.parts().items():
            self._parts.setdefault(content, []).append((text, first, last))
        for run in text.ngrams():
            self._by_ngram.setdefault(run, []).append(index)

    def match(self, problem: Problem) -> Match | None:
        """The closest matching problem of the index, or None."""
        text = _Text(problem, self._length)
        whole = self._containing(text) or self._with_small_edits(text)
        closest = (whole, 1.0) if whole else self._closest(text)
        if closest is None:
            return None
        other, share = closest
        return Match(
            problem_id=problem.id,
            text=problem.text,
            benchmark=other.group,
            benchmark_id=other.problem.id,
            benchmark_text=other.problem.text,
            share=share,
        )

    def _containing(self, text: _Text) -> _Text | None:
        """A problem that contains `text` or is contained in it, except for instructions."""
        for candidate, first, last in self._parts.get(text.content, ()):
            if candidate.is_surrounded_by_instructions(text.content, first, last):
                return candidate
        for content, (first, last) in text.parts().items():
            if content in self._wholes and text.is_surrounded_by_instructions(content, first, last):
                return self._wholes[content]
        return None

    def _with_small_edits(self, text: _Text) -> _Text | None:
        """A problem with the same numbers, operators and variables and nearly the same prose."""
        candidates = self._by_decisive_words.get(text.decisive, ()) if len(text.decisive) >= _MIN_FORMULA_WORDS else ()
        own_words = set(text.words)
        return next(
            (
                other
                for other in candidates[:MAX_PROBLEMS_PER_NGRAM]
                if _same_prose(text, own_words, other, set(other.words))
            ),
            None,
        )

    def _closest(self, text: _Text) -> tuple[_Text, float] | None:
        """The matching problem that shares the largest fraction of the shorter text's n-grams."""
        rare = [
            indices for run in text.ngrams() if len(indices := self._by_ngram.get(run, [])) <= MAX_PROBLEMS_PER_NGRAM
        ]
        common = Counter(index for indices in rare for index in indices)
        shares = {index: count / min(len(rare), self._rare[index]) for index, count in common.items()}
        for index in sorted(shares, key=lambda index: -shares[index]):
            if shares[index] <= self._share:
                return None
            if _same_content(text, self._texts[index]):
                return self._texts[index], shares[index]
        return None


def ngrams(sequence: Words, length: int) -> set[Words]:
    """All n-grams with `length` words; the whole text if it is shorter."""
    return {sequence[start : start + length] for start in range(max(1, len(sequence) - length + 1))}


def matches(
    problems: Iterable[Problem], others: Mapping[str, Sequence[Problem]], length: int, share: float
) -> list[Match]:
    """Closest match of each problem that occurs in one of `others` (problem sets by name).

    Two problems match if they have the same images, and one text contains the other except for instructions, or they
    share more than `share` of the shorter one's n-grams of `length` words and differ in nothing that changes the
    problem.
    """
    by_images: dict[tuple[str, ...], dict[str, list[Problem]]] = defaultdict(lambda: defaultdict(list))
    for name, group in others.items():
        for other in group:
            by_images[other.content[1:]][name].append(other)
    overlaps = {images: Overlap(alike, length, share) for images, alike in by_images.items()}
    asked = ((overlaps.get(problem.content[1:]), problem) for problem in problems)
    return [match for overlap, problem in asked if overlap and (match := overlap.match(problem))]


def deduplicate(problems: Iterable[Problem]) -> list[Problem]:
    """Problems without duplicates; the first of each is kept."""
    first: dict[tuple[Words, tuple[str, ...]], Problem] = {}
    for problem in problems:
        text, *images = problem.content
        first.setdefault((words(text), tuple(images)), problem)
    return list(first.values())


def _without_drawings(text: str) -> str:
    """`text` without `[asy]…[/asy]`: copies draw the same figure with other code."""
    before, *drawn = text.split("[asy]")
    return before + "".join(after if end else code for code, end, after in (part.partition("[/asy]") for part in drawn))


def _content_words(sequence: Words) -> Words:
    """`sequence` without words that only phrase the request."""
    return tuple(word for word in sequence if word not in _FILLER_WORDS) or sequence


def _decisive(sequence: Words) -> Words:
    return tuple(_SYNONYMS.get(word, word) for word in sequence if _is_decisive(word))


def _is_decisive(word: str) -> bool:
    return not (is_prose(word) or word in _WORD_VARIABLES) or word in _DECISIVE_WORDS


def _without_instructions(sequence: Sequence[Words]) -> Words:
    return tuple(word for sentence in sequence if not _is_instruction(sentence) for word in sentence)


def _is_instruction(sentence: Words) -> bool:
    """Whether a sentence only says how to answer, or numbers the problem."""
    if len(sentence) == 2 and sentence[0] in _NUMBERED:
        return True
    return not any(map(_is_decisive, sentence)) and not (_ANSWERING_WORDS | _INSTRUCTION_WORDS).isdisjoint(sentence)


def _same_content(one: _Text, other: _Text) -> bool:
    """Whether two texts that share n-grams differ in nothing that changes the problem."""
    enough_words = min(len(one.without_drawings), len(other.without_drawings)) >= WORDS_PER_EDIT
    both = (one.without_drawings, other.without_drawings) if enough_words else (one.with_drawings, other.with_drawings)
    if _both_have_more(*both):
        return False
    regions = _differences(*both)
    if regions is None or not all(_same_decisive_words(*region) for region in regions):
        return False
    edited = [region for region in regions if abs(_count_prose(region[0]) - _count_prose(region[1])) < MIN_CLAUSE_WORDS]
    mine, theirs = ({word for region in edited for word in region[side]} for side in (0, 1))
    return _same_prose(one, mine, other, theirs)


def _both_have_more(one: Words, other: Words) -> bool:
    """Whether each text has a number, operator or variable that the other lacks."""
    ones, others = Counter(_decisive(one)), Counter(_decisive(other))
    return bool(ones - others and others - ones)


def _differences(one: Words, other: Words) -> list[tuple[Words, Words]] | None:
    """Regions in which two texts differ, as the words of each. Short matches between two regions do not separate them;
    prose at the edge of one text is ignored. None if the texts are too long to align."""
    if max(len(one), len(other)) > MAX_ALIGNED_WORDS:
        return None
    regions: list[tuple[Words, Words]] = []
    start_one = start_other = 0
    for match in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        if 0 < match.size < _MIN_EQUAL_WORDS and match.a and match.b and match.a + match.size < len(one):
            continue
        region = one[start_one : match.a], other[start_other : match.b]
        is_edge = (start_one, start_other) == (0, 0) or (match.a, match.b) == (len(one), len(other))
        is_around = is_edge and () in region and not any(map(_is_decisive, region[0] + region[1]))
        if not is_around:
            regions.append(region)
        start_one, start_other = match.a + match.size, match.b + match.size
    return regions


def _same_decisive_words(one: Words, other: Words) -> bool:
    """Whether a region has the same numbers, operators and variables in both texts, or more in one because of an added
    clause: "Given that the sum is m/n, find m + n"."""
    few, many = sorted((_decisive(one), _decisive(other)), key=len)
    if few == many:
        return True
    added = Counter(many) - Counter(few)
    is_added = added.total() == len(many) - len(few)
    prose = abs(_count_prose(one) - _count_prose(other))
    return is_added and (
        prose >= MIN_CLAUSE_WORDS or (prose > 0 and all(word.isalpha() or word == "=" for word in added))
    )


def _count_prose(sequence: Words) -> int:
    return len(sequence) - len(_decisive(sequence))


def _same_prose(one: _Text, mine: set[str], other: _Text, theirs: set[str]) -> bool:
    """Whether the prose of two texts differs in few words. `mine`, `theirs`: words in the regions that may differ."""
    names = set(_NAME.findall(f"{one.problem.text} {other.problem.text}"))
    edits = max(_count_edits(mine - theirs, theirs - mine, names), _count_edits(theirs - mine, mine - theirs, names))
    return edits <= min(len(one.words), len(other.words)) // WORDS_PER_EDIT


def _count_edits(mine: set[str], theirs: set[str], names: set[str]) -> int:
    """Number of words in `mine` that are not misspellings of a word in `theirs`. Capitalised names like ELLIPSE and
    ECLIPSE count as different."""
    return sum(
        word.upper() in names
        or not any(SequenceMatcher(None, word, other).ratio() >= _MIN_WORD_SIMILARITY for other in theirs)
        for word in mine - _FILLER_WORDS
    )
