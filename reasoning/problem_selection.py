"""Which problems a run takes from a larger set: at random by its seed, in the set's own shares, each draw within the
next larger one.

The seed fixes an order of all candidates, and a draw of n is its first n. So a larger draw keeps the smaller one, and
the order of the rows in their files makes no difference. Every beginning holds of each stratum its proportional
share, rounded up or down: a house-monotone apportionment that satisfies quota (Balinski and Young, 1975), here as the
scheduling of unit jobs that earliest-deadline-first solves (Steiner and Yeomans, 1993). Strata are nested: the shares
of the subjects in a subset are those of that subset's own beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from reasoning.records import Problem


class Candidate(NamedTuple):
    """A problem that may be drawn."""

    key: bytes
    """Orders the candidates of one stratum. Differs from every other candidate's."""
    strata: tuple[str, ...]
    """The groups that it is in, the coarsest first; of the same length for all candidates."""
    problem: Problem


class ProblemSelection(NamedTuple):
    """Which draw of a source a run takes."""

    seed: int
    backwards: bool
    """From the order's end: training and benchmarks that draw from one source meet as late as possible."""

    def order(self, names: Sequence[str]) -> list[int]:
        """The positions of the names, at random."""
        order = sorted(range(len(names)), key=lambda index: selection_key(self.seed, names[index]))
        return order[::-1] if self.backwards else order

    def key(self, text: str) -> bytes:
        return selection_key(self.seed, text)

    def select(self, candidates: Iterable[Candidate]) -> list[Problem]:
        """All, in the order in which the draw takes them."""
        order = [candidate.problem for candidate in selection_order(candidates)]
        return order[::-1] if self.backwards else order


def selection_key(seed: int, text: str) -> bytes:
    """Evenly spread, different for each text, and another for each seed."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def selection_order(candidates: Iterable[Candidate], depth: int = 0) -> list[Candidate]:
    """All candidates, in the order of which every beginning is a draw."""
    groups: dict[str | None, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault((*candidate.strata, None)[depth], []).append(candidate)
    if None in groups:
        return sorted(groups[None])
    return _in_proportion([selection_order(group, depth + 1) for group in groups.values()])


def _in_proportion(groups: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """One order of all groups, each in its own order. Of the first n, a group with the share p has n p, rounded up or
    down: its member of rank r comes at position floor(r / p) at the earliest, ceil((r + 1) / p) - 1 at the latest."""
    total = sum(map(len, groups))
    jobs = sorted(
        (rank * total // len(group), -(-(rank + 1) * total // len(group)), member.key, member)
        for group in groups
        for rank, member in enumerate(group)
    )
    jobs.reverse()
    order: list[Candidate] = []
    ready: list[tuple[int, bytes, Candidate]] = []
    for position in range(total):
        while jobs and jobs[-1][0] <= position:
            heappush(ready, jobs.pop()[1:])
        order.append(heappop(ready)[2])
    return order
