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
from difflib import SequenceMatcher
from functools import cached_property
from itertools import chain, islice

from reasoning.records import Match, Problem
from reasoning.text_normalization import Words, is_prose, listed, sentences, words

COMMON = 100
"""Runs of words that so many problems share are a template's or an instruction's, and find nothing."""
WORDS_PER_EDIT = 20
"""A copy may differ in one prose word of so many."""
CLAUSE = 4
"""So many more prose words in one of two texts are a clause that was added, not another problem."""
LONGEST = 2000
"""Words up to which two texts are laid side by side; longer ones match where they hold one another."""
_CONTEXT = 3
"""Words that must stand together in both texts to be the same place."""
_ALIKE = 0.8
"""Share of letters by which a word is another one, misspelled."""
_NAME = re.compile(r"\b[A-Z]{2,}\b")
_SUBSTANCE = 3
"""Words of formulas by which a short problem is known for itself."""
_IDLE = listed(
    "find determine compute calculate evaluate solve what which is are the a an of value please give given "
    "that then following for question problem exercise answer"
)
"""Words that ask for the same thing in other words, or that hold a sentence together."""
_ABOUT_ANSWERS = listed(
    "answer answers step steps think thinking reason reasoning explain solution solutions final box format "
    "response respond reply instruction instructions simplest 答 步 推"
)
"""Words by which a sentence is told to be about answering, not about the problem."""
_ADDRESSING = listed(
    "user system human input output you your please question problem exercise example task following "
    "assistant helpful hint carefully lets concise correct correctly efficiently clearly show work express "
    "simplify solve 请 题 解 问"
)
"""Words that a problem may hold, too, but hardly one without numbers and formulas."""
_ALSO_PROSE = listed("a i")
"""Variables that are words, too: where one stands for another variable, that one tells."""
_NUMBERED = listed("question problem exercise example task")
_DECIDING = listed(
    "plus minus sum difference product quotient remainder ratio even odd prime composite positive negative "
    "increasing decreasing largest smallest greatest least maximum minimum more less fewer not without half "
    "twice double triple third integer integers real complex rational irrational natural first last left "
    "right inside outside 大 小 奇 偶 正 负 和 差 积 商 不 非"
)
"""Prose that decides a problem as a number or an operator does."""
_SYNONYMS = {
    "smallest": "least",
    "minimum": "least",
    "greatest": "largest",
    "maximum": "largest",
    "integers": "integer",
}


class _Text:
    """What a problem says."""

    def __init__(self, problem: Problem, length: int, group: str = ""):
        """`length`: words of the runs by which a text is found."""
        self.problem, self.group, self.length = problem, group, length
        self.sentences = sentences(problem.text)
        self.words: Words = tuple(word for sentence in self.sentences for word in sentence)
        self.asked = _asked(self.words)
        self.decisive = _decisive(self.words)

    def runs(self) -> set[Words]:
        return ngrams(self.words, self.length)

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
        return all(
            len(sentence) == 1
            or _instructs(sentence)
            or not _ABOUT_ANSWERS.isdisjoint(sentence)
            or (is_substantial and not any(map(_decides, sentence)))
            for sentence in around
        )

    @cached_property
    def drawn(self) -> Words:
        """All words but instructions."""
        return _problem_alone(self.sentences)

    @cached_property
    def told(self) -> Words:
        """The same without the code of drawings: copies draw the same figure in other ways."""
        return _problem_alone(sentences(_without_drawings(self.problem.text)))


class Overlap:
    """Sets of problems by what they say, in whole, in part and in runs of words."""

    def __init__(self, others: Mapping[str, Sequence[Problem]], length: int, share: float):
        """`others`: by name; `length`: words of a run; `share`: of the runs, how much two problems have in common at
        least, where neither says all of the other."""
        self._length, self._share = length, share
        self._texts = [_Text(other, length, name) for name, group in others.items() for other in group]
        self._wholes: dict[Words, _Text] = {}
        self._parts: dict[Words, list[tuple[_Text, int, int]]] = {}
        self._alike: dict[Words, list[_Text]] = {}
        self._runs: dict[Words, list[int]] = {}
        for index, text in enumerate(self._texts):
            self._add(index, text)
        self._rare = [sum(len(self._runs[run]) <= COMMON for run in text.runs()) for text in self._texts]

    def _add(self, index: int, text: _Text) -> None:
        self._wholes.setdefault(text.asked, text)
        self._alike.setdefault(text.decisive, []).append(text)
        for asked, (first, last) in text.parts().items():
            self._parts.setdefault(asked, []).append((text, first, last))
        for run in text.runs():
            self._runs.setdefault(run, []).append(index)

    def match(self, problem: Problem) -> Match | None:
        """The problem of the others that is the same, the closest one; None where there is none."""
        text = _Text(problem, self._length)
        whole = self._holder(text) or self._misspelled(text)
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

    def _holder(self, text: _Text) -> _Text | None:
        """A problem that says all of `text`, or all of which `text` says, but for instructions."""
        for held, first, last in self._parts.get(text.asked, ()):
            if held.says_alone(text.asked, first, last):
                return held
        for asked, (first, last) in text.parts().items():
            if asked in self._wholes and text.says_alone(asked, first, last):
                return self._wholes[asked]
        return None

    def _misspelled(self, text: _Text) -> _Text | None:
        """A problem with the same numbers, operators and variables, and nearly the same prose."""
        alike = self._alike.get(text.decisive, ()) if len(text.decisive) >= _SUBSTANCE else ()
        said = set(text.words)
        return next((other for other in alike[:COMMON] if _reads_same(text, said, other, set(other.words))), None)

    def _closest(self, text: _Text) -> tuple[_Text, float] | None:
        """The problem that shares most of the runs of the shorter of both texts, and is the same."""
        rare = [indices for run in text.runs() if len(indices := self._runs.get(run, [])) <= COMMON]
        common = Counter(index for indices in rare for index in indices)
        shares = {index: count / min(len(rare), self._rare[index]) for index, count in common.items()}
        for index in sorted(shares, key=lambda index: -shares[index]):
            if shares[index] <= self._share:
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
    overlap = Overlap(others, length, share)
    return [match for problem in problems if (match := overlap.match(problem))]


def deduplicate(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem that says something new."""
    first: dict[Words, Problem] = {}
    for problem in problems:
        first.setdefault(words(problem.text), problem)
    return list(first.values())


def _without_drawings(text: str) -> str:
    """Without `[asy]…[/asy]`: copies draw the same figure with other code."""
    before, *drawn = text.split("[asy]")
    return before + "".join(after if end else code for code, end, after in (part.partition("[/asy]") for part in drawn))


def _asked(said: Words) -> Words:
    """Without words that ask for the same thing in other words."""
    return tuple(word for word in said if word not in _IDLE) or said


def _decisive(said: Words) -> Words:
    return tuple(_SYNONYMS.get(word, word) for word in said if _decides(word))


def _decides(word: str) -> bool:
    return not (is_prose(word) or word in _ALSO_PROSE) or word in _DECIDING


def _problem_alone(said: Sequence[Words]) -> Words:
    return tuple(word for sentence in said if not _instructs(sentence) for word in sentence)


def _instructs(sentence: Words) -> bool:
    """Whether a sentence only says how to answer, or numbers the problem."""
    if len(sentence) == 2 and sentence[0] in _NUMBERED:
        return True
    return not any(map(_decides, sentence)) and not (_ABOUT_ANSWERS | _ADDRESSING).isdisjoint(sentence)


def _says_same(one: _Text, other: _Text) -> bool:
    """Whether two texts that share runs of words differ in nothing that decides a problem."""
    is_told = min(len(one.told), len(other.told)) >= WORDS_PER_EDIT
    said = (one.told, other.told) if is_told else (one.drawn, other.drawn)
    if _each_decides_more(*said):
        return False
    regions = _differences(*said)
    if regions is None or not all(_decides_the_same(*region) for region in regions):
        return False
    edited = [region for region in regions if abs(_prose(region[0]) - _prose(region[1])) < CLAUSE]
    mine, theirs = ({word for region in edited for word in region[side]} for side in (0, 1))
    return _reads_same(one, mine, other, theirs)


def _each_decides_more(one: Words, other: Words) -> bool:
    """Whether each of two texts has a number, operator or variable that the other has not."""
    ones, others = Counter(_decisive(one)), Counter(_decisive(other))
    return bool(ones - others and others - ones)


def _differences(one: Words, other: Words) -> list[tuple[Words, Words]] | None:
    """Where two texts differ: the words of each. A few equal words between two places do not part them; prose around
    one of the texts is no difference. None where the texts are too long to tell."""
    if max(len(one), len(other)) > LONGEST:
        return None
    regions: list[tuple[Words, Words]] = []
    start_one = start_other = 0
    for match in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        if 0 < match.size < _CONTEXT and match.a and match.b and match.a + match.size < len(one):
            continue
        region = one[start_one : match.a], other[start_other : match.b]
        is_edge = (start_one, start_other) == (0, 0) or (match.a, match.b) == (len(one), len(other))
        is_around = is_edge and () in region and not any(map(_decides, region[0] + region[1]))
        if not is_around:
            regions.append(region)
        start_one, start_other = match.a + match.size, match.b + match.size
    return regions


def _decides_the_same(one: Words, other: Words) -> bool:
    """Whether a place where two texts differ has the same numbers, operators and variables in both, or more of them in
    one because a clause is added there: "Given that the sum is m/n, find m + n"."""
    few, many = sorted((_decisive(one), _decisive(other)), key=len)
    if few == many:
        return True
    added = Counter(many) - Counter(few)
    is_added = added.total() == len(many) - len(few)
    prose = abs(_prose(one) - _prose(other))
    return is_added and (prose >= CLAUSE or (prose > 0 and all(word.isalpha() or word == "=" for word in added)))


def _prose(said: Words) -> int:
    return len(said) - len(_decisive(said))


def _reads_same(one: _Text, mine: set[str], other: _Text, theirs: set[str]) -> bool:
    """Whether the prose of two texts differs in few words, given words of each where they may differ."""
    names = set(_NAME.findall(f"{one.problem.text} {other.problem.text}"))
    edits = max(_unlike(mine - theirs, theirs - mine, names), _unlike(theirs - mine, mine - theirs, names))
    return edits <= min(len(one.words), len(other.words)) // WORDS_PER_EDIT


def _unlike(mine: set[str], theirs: set[str], names: set[str]) -> int:
    """How many of `mine` are no misspelling of one of `theirs`: ELLIPSE is none of ECLIPSE."""
    return sum(
        word.upper() in names or not any(SequenceMatcher(None, word, other).ratio() >= _ALIKE for other in theirs)
        for word in mine - _IDLE
    )
