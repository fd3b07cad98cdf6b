"""Validates rows, and takes all problems or a random selection of them."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from conf.problems import Hub, ProblemFile
from reasoning.answers.verifier import Verifier
from reasoning.contamination import deduplicate
from reasoning.problem_rows import image_values, problem_of, with_images
from reasoning.problem_selection import Candidate, ProblemSelection
from reasoning.records import InvalidRow, Problem
from tasks.steps.problem_files import ProblemsRefused, Row
from tasks.steps.problem_images import ImageReader, InvalidImage, entries_of

MIN_SAMPLE = 100
"""Smaller samples of a larger set are judged as if they had this size, because a share of a few rows is chance."""


class NamedRow(NamedTuple):
    """A row with its subset and a default id."""

    name: str
    """The problem's id where the row has none."""
    subset: str
    row: Row


class Intake:
    """Valid problems of a source, after `take_all` or `select`, and its invalid rows."""

    def __init__(self, source: ProblemFile | Hub, verifier: Verifier):
        self._source = source
        self._verifier = verifier
        self._images = ImageReader(source.images)
        self._image_entries = _Spool()
        """What well-formed rows have in their columns of images, by problem id."""
        self._image_keys: dict[str, str] = {}
        self._locations: dict[str, str] = {}
        self._seen: set[bytes] = set()
        self.read = 0
        """Rows read so far."""
        self.checked = 0
        """Problems whose answer was checked for readability."""
        self.problems: list[Problem] = []
        self.malformed: list[InvalidRow] = []
        self.unreadable: list[InvalidRow] = []
        self.duplicates = 0

    @property
    def scaled_down(self) -> int:
        """Images that were scaled down."""
        return self._images.scaled_down

    def take_all(self, rows: Iterable[NamedRow]) -> None:
        """Takes every valid problem, in the order of the rows."""
        self.problems = self._readable(self._with_images([problem for problem, _ in self._well_formed(rows)]))

    def select(self, rows: Iterator[NamedRow], selection: ProblemSelection, count: int, buffer: int | None) -> None:
        """Takes `count` distinct problems from the first `buffer` rows; from the next `buffer` rows when these have too
        few.

        Whether a problem is kept depends only on the problems before it, so a larger selection contains a smaller one.
        """
        while len(self.problems) < count:
            before = self.read
            order = iter(selection.select(self._candidates(islice(rows, buffer), selection)))
            self._add_distinct(order, count)
            if self.read == before:
                break

    def select_by_subject(
        self, rows: Iterator[NamedRow], selection: ProblemSelection, each: int, buffer: int | None
    ) -> None:
        """Takes `each` distinct problems of every subject, or all that it has, from the first `buffer` rows. Raises
        ProblemsRefused where there are no subjects."""
        drawn = selection.select(self._candidates(islice(rows, buffer), selection))
        by_subject: dict[str | None, list[Problem]] = {}
        for problem in drawn:
            by_subject.setdefault(problem.subject, []).append(problem)
        if set(by_subject) == {None}:
            raise ProblemsRefused(
                "problems.per_subject needs subjects, and no row has one; name their column in columns.subject, or set "
                "problems.count"
            )
        for problems in by_subject.values():
            self._add_distinct(iter(problems), len(self.problems) + each)

    def _add_distinct(self, order: Iterator[Problem], count: int) -> None:
        """Adds readable problems that are not there yet, until there are `count`."""
        while chunk := list(islice(order, count - len(self.problems))):
            readable = [*self.problems, *self._readable(self._with_images(chunk))]
            self.problems = deduplicate(readable)
            self.duplicates += len(readable) - len(self.problems)

    def _candidates(self, rows: Iterable[NamedRow], selection: ProblemSelection) -> list[Candidate]:
        """Well-formed problems whose text was not seen before."""
        candidates: list[Candidate] = []
        for problem, subset in self._well_formed(rows):
            key = selection.key(problem.text + self._image_keys.get(problem.id, ""))
            if key in self._seen:
                self.duplicates += 1
                continue
            self._seen.add(key)
            candidates.append(Candidate(key, (subset, problem.subject or "", str(problem.level)), problem))
        return candidates

    def _well_formed(self, rows: Iterable[NamedRow]) -> Iterator[tuple[Problem, str]]:
        """Well-formed problems with new ids, and their subsets."""
        for name, subset, row in rows:
            self.read += 1
            parsed = row.content
            if not isinstance(parsed, InvalidRow):
                parsed = problem_of(parsed, row.location, name, self._source.columns)
            if isinstance(parsed, Problem) and parsed.id in self._locations:
                first = self._locations[parsed.id]
                detail = f"id {parsed.id!r} was already seen at {first}; ids must differ, or set columns.id to ''"
                parsed = InvalidRow(location=row.location, id=parsed.id, reason="duplicate-id", detail=detail)
            if isinstance(parsed, InvalidRow):
                self.malformed.append(parsed)
            else:
                self._locations[parsed.id] = row.location
                if self._source.columns.image_columns:
                    entries = entries_of(image_values(row.content, self._source.columns))
                    self._image_entries.put(parsed.id, entries)
                    self._image_keys[parsed.id] = _digest(entries)
                yield parsed, subset

    def _with_images(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems with their images, which are read only now that the problems are selected. Those whose images cannot
        be used become invalid rows."""
        if not self._source.columns.image_columns:
            return list(problems)
        found: list[Problem] = []
        for problem in problems:
            try:
                found.append(with_images(problem, self._images.read(self._image_entries.take(problem.id))))
            except InvalidImage as error:
                location = self._locations[problem.id]
                self.checked += 1
                self.unreadable.append(
                    InvalidRow(location=location, id=problem.id, reason=error.reason, detail=error.detail)
                )
        return found

    def _readable(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems whose answer can be read. The others become invalid rows."""
        unreadable = self._unreadable(problems)
        self.checked += len(problems)
        self.unreadable += [
            InvalidRow(
                location=self._locations[problem.id],
                id=problem.id,
                reason="unreadable-answer",
                detail=_unreadable_detail(problem),
            )
            for problem in problems
            if problem.id in unreadable
        ]
        return [problem for problem in problems if problem.id not in unreadable]

    def _unreadable(self, problems: Sequence[Problem]) -> set[str]:
        """Ids of problems whose answer cannot be read, or is none of their options."""
        readable = self._verifier.readable(problems)
        return {problem.id for problem, is_readable in zip(problems, readable, strict=True) if not is_readable}

    def validate(self, name: str) -> None:
        """Raises ProblemsRefused when there is no problem, or when too many rows are invalid."""
        if not self.read:
            raise ProblemsRefused(f"{name}: no rows; name a source that has some")
        fraction, min_sample = self._source.max_invalid_fraction, min(self.read, MIN_SAMPLE)
        for invalid, total in ((self.malformed, self.read), (self.unreadable, self.checked)):
            if invalid and (not self.problems or len(invalid) > fraction * max(total, min_sample)):
                raise ProblemsRefused(
                    f"{invalid[0].location}: {invalid[0].detail} ({len(invalid)} of {total} rows are invalid; "
                    f"problems.max_invalid_fraction allows {fraction:.0%})"
                )


class _Spool:
    """Values on disk, by name: images of rows of which most may never be selected."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 (it lives as long as this)
        self._places: dict[str, int] = {}

    def put(self, name: str, value: Any) -> None:
        self._places[name] = self._file.seek(0, os.SEEK_END)
        pickle.dump(value, self._file)

    def take(self, name: str) -> Any:
        self._file.seek(self._places.pop(name))
        return pickle.load(self._file)


def _digest(entries: Sequence[Any]) -> str:
    """What a row has as images, before they are read."""
    digest = hashlib.sha256()
    for entry in entries:
        content = entry.get("bytes") if isinstance(entry, Mapping) else entry
        digest.update(content if isinstance(content, bytes) else repr(entry).encode(errors="replace"))
        digest.update(b";")
    return digest.hexdigest()


def _unreadable_detail(problem: Problem) -> str:
    remedy = "; if it is the option itself, set columns.answer_is to 'choice'" if problem.choices else ""
    return f"the right answer {problem.answer[:60]!r} reads neither as a number or formula nor as a letter{remedy}"
