"""Rows are sorted into problems and bad rows, and as many problems as are wanted are drawn.

Knows: what a problem needs, ids, doubles, the draw. Must not know: files, the hub, where results are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from conf.problems import Hub, ProblemFile
from reasoning.answers.verifier import Verifier
from reasoning.contamination import deduplicate
from reasoning.problem_rows import problem_of
from reasoning.problem_selection import Candidate, ProblemSelection
from reasoning.records import InvalidRow, Problem
from tasks.steps.problem_files import ProblemsRefused, Row

SMALLEST_SAMPLE = 100
"""Where fewer right answers of a larger set were tried, a share of unreadable ones is chance."""


class NamedProblem(NamedTuple):
    """A row with the name that it has where it has no id of its own, and its subset."""

    name: str
    subset: str
    row: Row


class Intake:
    """Problems of a source, taken by `take_all` or `draw`, and what was wrong with other rows."""

    def __init__(self, source: ProblemFile | Hub, verifier: Verifier):
        self._source = source
        self._verifier = verifier
        self._places: dict[str, str] = {}
        self._seen: set[bytes] = set()
        self.read = 0
        """Rows."""
        self.checked = 0
        """Right answers that somebody tried to read."""
        self.good: list[Problem] = []
        self.malformed: list[InvalidRow] = []
        self.unreadable: list[InvalidRow] = []
        self.doubles = 0

    def take_all(self, rows: Iterable[NamedProblem]) -> None:
        """Every problem, in the order of the rows."""
        self.good = self._readable([problem for problem, _ in self._well_formed(rows)])

    def draw(self, rows: Iterator[NamedProblem], draw: ProblemSelection, count: int, buffer: int | None) -> None:
        """`count` problems that all say something else, from the first `buffer` rows, and only where these do not hold
        as many also from the next ones. Whether one is kept depends on those before it alone, so draws nest."""
        while len(self.good) < count:
            before = self.read
            order = iter(draw.select(self._candidates(islice(rows, buffer), draw)))
            while chunk := list(islice(order, count - len(self.good))):
                readable = [*self.good, *self._readable(chunk)]
                self.good = deduplicate(readable)
                self.doubles += len(readable) - len(self.good)
            if self.read == before:
                break

    def _candidates(self, rows: Iterable[NamedProblem], draw: ProblemSelection) -> list[Candidate]:
        """Well-formed problems, each text once in all."""
        found: list[Candidate] = []
        for problem, subset in self._well_formed(rows):
            key = draw.key(problem.text)
            if key in self._seen:
                self.doubles += 1
                continue
            self._seen.add(key)
            found.append(Candidate(key, (subset, problem.subject or "", str(problem.level)), problem))
        return found

    def _well_formed(self, rows: Iterable[NamedProblem]) -> Iterator[tuple[Problem, str]]:
        """Problems of new ids, with their subsets."""
        for name, subset, row in rows:
            self.read += 1
            made = row.content
            if not isinstance(made, InvalidRow):
                made = problem_of(made, row.location, name, self._source.columns)
            if isinstance(made, Problem) and made.id in self._places:
                where = self._places[made.id]
                detail = f"id {made.id!r} was already seen at {where}; ids must differ, or set columns.id to ''"
                made = InvalidRow(location=row.location, id=made.id, reason="duplicate-id", detail=detail)
            if isinstance(made, InvalidRow):
                self.malformed.append(made)
            else:
                self._places[made.id] = row.location
                yield made, subset

    def _readable(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those whose right answer can be read; the others are put down as bad rows."""
        unreadable = self._unreadable(problems)
        self.checked += len(problems)
        self.unreadable += [
            InvalidRow(
                location=self._places[problem.id], id=problem.id, reason="unreadable-answer", detail=_unread(problem)
            )
            for problem in problems
            if problem.id in unreadable
        ]
        return [problem for problem in problems if problem.id not in unreadable]

    def _unreadable(self, problems: Sequence[Problem]) -> set[str]:
        """Ids of problems whose right answer cannot be told from others, or is none of their options."""
        readable = self._verifier.readable(problems)
        return {problem.id for problem, yes in zip(problems, readable, strict=True) if not yes}

    def refuse(self, name: str) -> None:
        """Raises ProblemsRefused where there is nothing to use, or more bad rows than the source may have."""
        if not self.read:
            raise ProblemsRefused(f"{name}: no rows; name a source that has some")
        chance = min(self.read, SMALLEST_SAMPLE)
        for bad, among in ((self.malformed, self.read), (self.unreadable, self.checked)):
            if bad and (not self.good or len(bad) > self._source.max_invalid_fraction * max(among, chance)):
                raise ProblemsRefused(
                    f"{bad[0].location}: {bad[0].detail} ({len(bad)} of {among} rows are bad; "
                    f"problems.max_invalid_fraction allows "
                    f"{self._source.max_invalid_fraction:.0%})"
                )


def _unread(problem: Problem) -> str:
    remedy = "; where it is the option itself, set columns.answer_is to 'choice'" if problem.choices else ""
    return f"the right answer {problem.answer[:60]!r} reads neither as a number or formula nor as a letter{remedy}"
