"""Selects problems from a larger set: at random by seed, stratified, and nested, so that a larger draw contains every
smaller one.

The seed fixes an order of all candidates; a draw of n is its first n. So the order of rows in their files makes no
difference. Every prefix of the order contains of each stratum its proportional share, rounded up or down: a
house-monotone apportionment that satisfies quota (Balinski and Young, 1975), computed by earliest-deadline-first
scheduling of unit jobs (Steiner and Yeomans, 1993). Strata are nested: within a subset, subjects have the shares of
that subset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from reasoning.records import Problem


class Candidate(NamedTuple):
    """A problem that may be selected."""

    key: bytes
    """Sort key within a stratum; unique among candidates."""
    strata: tuple[str, ...]
    """Groups that contain the problem, coarsest first. The same length for all candidates."""
    problem: Problem


class ProblemSelection(NamedTuple):
    """Which draw of a source a run takes."""

    seed: int
    backwards: bool
    """Takes the order from its end, so that training and benchmark draws from the same source overlap as late as
    possible."""

    def order(self, names: Sequence[str]) -> list[int]:
        """Indices of `names` in random order."""
        order = sorted(range(len(names)), key=lambda index: selection_key(self.seed, names[index]))
        return order[::-1] if self.backwards else order

    def key(self, text: str) -> bytes:
        """Sort key of `text` for this seed."""
        return selection_key(self.seed, text)

    def select(self, candidates: Iterable[Candidate]) -> list[Problem]:
        """All problems, in the order in which they are drawn."""
        order = [candidate.problem for candidate in selection_order(candidates)]
        return order[::-1] if self.backwards else order


def selection_key(seed: int, text: str) -> bytes:
    """Uniformly distributed sort key; differs by text and by seed."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def selection_order(candidates: Iterable[Candidate], depth: int = 0) -> list[Candidate]:
    """All candidates in an order whose prefixes are the draws."""
    groups: dict[str | None, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault((*candidate.strata, None)[depth], []).append(candidate)
    if None in groups:
        return sorted(groups[None])
    return _merge_proportionally([selection_order(group, depth + 1) for group in groups.values()])


def _merge_proportionally(groups: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """Merges groups into one order, keeping each group's own order. Among the first n, a group with share p has n·p
    members, rounded up or down: its member of rank r is at position floor(r / p) at the earliest and ceil((r + 1) / p)
    − 1 at the latest."""
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
