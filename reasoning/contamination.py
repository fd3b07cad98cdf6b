"""Problems that another set holds, too, however they are spelled: the gate before any token is spent.

Knows: problems' words, n-grams, how instructions read. Must not know: where problems come from, who is trained on them.

Two problems are the same where one says the other, perhaps in another spelling, inside an instruction or with small
edits. Problems that differ in a number, a sign, an operator or a variable are different ones, however long they are.
So are short ones that differ in a word. What is compared in full are few pairs: texts that hold one another whole, and
those that share runs of words which few others have. So time grows with the texts, not with their pairs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain, islice

from reasoning.records import Match, Problem
from reasoning.wording import Words, is_prose, sentences, words

METHOD_VERSION = "1"
COMMON = 100
"""Runs of words that so many problems share are a template's or an instruction's, and find nothing."""
WORDS_PER_EDIT = 20
"""A copy may differ in one prose word of so many."""
_CONTEXT = 3
"""Words that must stand together in both texts to be the same place."""
_ALIKE = 0.8
"""Share of letters by which a word is another one, misspelled."""
_NAME = re.compile(r"\b[A-Z]{2,}\b")
_SUBSTANCE = 3
"""Words of formulas by which a short problem is known for itself."""
_IDLE = frozenset(
    "find determine compute calculate evaluate solve what which is are the a an of value please give given that then following"
    " for question problem exercise answer".split()
)
"""Words that ask for the same thing in other words, or that hold a sentence together."""
_ABOUT_ANSWERS = frozenset(
    "answer answers step steps think thinking reason reasoning explain solution solutions final box format response respond"
    " reply instruction instructions simplest 答 步 推".split()
)
"""Words by which a sentence is told to be about answering, not about the problem."""
_ADDRESSING = frozenset(
    "you your please question problem exercise example task following assistant helpful hint carefully lets concise correct"
    " correctly efficiently clearly show work express simplify solve 请 题 解 问".split()
)
"""Words that a problem may hold, too, but hardly one without numbers and formulas."""
_DECIDING = frozenset(
    "plus minus sum difference product quotient remainder ratio even odd prime composite positive negative increasing decreasing"
    " largest smallest greatest least maximum minimum more less fewer not without half twice double triple third"
    " integer integers real complex rational irrational natural first last left right inside outside"
    " 大 小 奇 偶 正 负 和 差 积 商 不 非".split()
)
"""Prose that decides a problem as a number or an operator does."""


class _Text:
    """What a problem says."""

    def __init__(self, problem: Problem, length: int, group: str = ""):
        """`length`: words of the runs by which a text is found."""
        self.problem, self.group, self.length = problem, group, length
        self.sentences = sentences(problem.text)
        self.words: Words = tuple(word for sentence in self.sentences for word in sentence)
        self.asked = _asked(self.words)

    def parts(self) -> dict[Words, tuple[int, int]]:
        """What is asked by whole sentences that follow one another with fewer than `length` words, and by the whole
        text, however long; from which sentence to which."""
        found = {self.asked: (0, len(self.sentences))}
        for first in range(len(self.sentences)):
            run: Words = ()
            for last in range(first, len(self.sentences)):
                run += self.sentences[last]
                if len(run) >= self.length:
                    break
                found.setdefault(_asked(run), (first, last + 1))
        return found

    def says_alone(self, asked: Words, first: int, last: int) -> bool:
        """Whether the sentences around some only say how to answer them.

        A problem that is known for itself may also stand among prose without formulas.
        """
        is_substantial = sum(map(_decides, asked)) >= _SUBSTANCE
        around = chain(islice(self.sentences, first), islice(self.sentences, last, None))
        return all(_instructs(sentence, is_substantial) for sentence in around)


class _Known:
    """Problems by what they say, in whole, in part and in runs of words."""

    def __init__(self, texts: Sequence[_Text]):
        self._texts = texts
        self._wholes: dict[Words, _Text] = {}
        self._parts: dict[Words, list[tuple[_Text, int, int]]] = {}
        self._runs: dict[Words, list[int]] = {}
        for index, text in enumerate(texts):
            self._wholes.setdefault(text.asked, text)
            for asked, (first, last) in text.parts().items():
                self._parts.setdefault(asked, []).append((text, first, last))
            for run in ngrams(text.words, text.length):
                self._runs.setdefault(run, []).append(index)
        self._rare = [sum(len(self._runs[run]) <= COMMON for run in ngrams(text.words, text.length)) for text in texts]

    def holder(self, text: _Text) -> _Text | None:
        """A problem that says all of `text`, or all of which `text` says, but for instructions."""
        for held, first, last in self._parts.get(text.asked, ()):
            if held.says_alone(text.asked, first, last):
                return held
        for asked, (first, last) in text.parts().items():
            if asked in self._wholes and text.says_alone(asked, first, last):
                return self._wholes[asked]
        return None

    def closest(self, text: _Text, share: float) -> tuple[_Text, float] | None:
        """The problem that shares most of the runs of the shorter of both texts, more than `share`, and is the same."""
        rare = [indices for run in ngrams(text.words, text.length) if len(indices := self._runs.get(run, [])) <= COMMON]
        common = Counter(index for indices in rare for index in indices)
        shares = {index: count / min(len(rare), self._rare[index]) for index, count in common.items()}
        for index in sorted(shares, key=lambda index: -shares[index]):
            if shares[index] <= share:
                return None
            if _says_same(text, self._texts[index]):
                return self._texts[index], shares[index]
        return None


def ngrams(said: Words, length: int) -> set[Words]:
    """All runs of `length` words; the whole text where it is shorter."""
    return {said[start : start + length] for start in range(max(1, len(said) - length + 1))}


def matches(
    problems: Iterable[Problem], others: Mapping[str, Sequence[Problem]], length: int, share: float
) -> list[Match]:
    """For each problem that some of `others` (sets of problems by name) hold, too, its closest match there.

    Two problems match when one says the other but for an instruction, or when more than `share` of the `length`-grams
    of the shorter one are in the other and they differ in nothing that decides a problem.
    """
    known = _Known([_Text(other, length, name) for name, group in others.items() for other in group])
    found = []
    for problem in problems:
        text = _Text(problem, length)
        holder = known.holder(text)
        closest = (holder, 1.0) if holder else known.closest(text, share)
        if closest:
            other, common = closest
            found.append(Match(
                problem_id=problem.id, text=problem.text, benchmark=other.group, benchmark_id=other.problem.id,
                benchmark_text=other.problem.text, share=common,
            ))  # fmt: skip
    return found


def without_doubles(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem that says something new."""
    first: dict[Words, Problem] = {}
    for problem in problems:
        first.setdefault(words(problem.text), problem)
    return list(first.values())


def _asked(said: Words) -> Words:
    """Without words that ask for the same thing in other words."""
    return tuple(word for word in said if word not in _IDLE) or said


def _decides(word: str) -> bool:
    return not is_prose(word) or word in _DECIDING


def _instructs(sentence: Words, is_prose_enough: bool) -> bool:
    """Whether a sentence says how to answer; `is_prose_enough`: or says anything without numbers and formulas."""
    if len(sentence) == 1 or not _ABOUT_ANSWERS.isdisjoint(sentence):
        return True
    return not any(map(_decides, sentence)) and (is_prose_enough or not _ADDRESSING.isdisjoint(sentence))


@dataclass(frozen=True)
class _Rest:
    """What one text says and another does not."""

    edits: set[str]
    """In sentences that both have for the most part."""
    others: set[str]
    """In sentences that the other text does not have, instructions left out."""

    @classmethod
    def of(cls, text: _Text, other: _Text) -> _Rest:
        shared = ngrams(other.words, _CONTEXT)
        is_met = [False] * len(text.words)
        for start in range(len(text.words) - _CONTEXT + 1):
            if text.words[start : start + _CONTEXT] in shared:
                is_met[start : start + _CONTEXT] = [True] * _CONTEXT
        rest, start = cls(set(), set()), 0
        for sentence in text.sentences:
            met = is_met[start : start + len(sentence)]
            start += len(sentence)
            if 2 * sum(met) >= len(sentence):
                rest.edits.update(word for word, known in zip(sentence, met, strict=True) if not known)
            elif _ABOUT_ANSWERS.isdisjoint(sentence):
                rest.others.update(sentence)
        return rest


def _says_same(one: _Text, other: _Text) -> bool:
    """Whether two texts that share runs of words differ in nothing that decides a problem."""
    rests = _Rest.of(one, other), _Rest.of(other, one)
    if any(_decides(word) for rest in rests for word in rest.edits):
        return False
    if all(any(map(_decides, rest.others)) for rest in rests):
        return False
    mine, theirs = (rest.edits - _IDLE for rest in rests)
    names = set(_NAME.findall(f"{one.problem.text} {other.problem.text}"))
    edits = max(len(_unlike(mine, theirs, names)), len(_unlike(theirs, mine, names)))
    return edits <= min(len(one.words), len(other.words)) // WORDS_PER_EDIT


def _unlike(mine: set[str], theirs: set[str], names: set[str]) -> set[str]:
    """Those of `mine` that are no misspelling of one of `theirs`: ELLIPSE is none of ECLIPSE."""
    return {
        word
        for word in mine
        if word.upper() in names or not any(SequenceMatcher(None, word, other).ratio() >= _ALIKE for other in theirs)
    }
