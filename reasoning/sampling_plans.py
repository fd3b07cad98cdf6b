"""Sampling plans: which Monte-Carlo rollouts are needed to evaluate the prefixes of a trace, and not one more.

A prefix *passes* if strictly more than T of its M rollouts are successes; r is the smallest sufficient number. The
decision is final once r rollouts succeed, or so many fail that r cannot be reached: the same decision as with all M
(exact curtailment). Each batch has the smallest size that could decide, so no rollout is wasted.

Plans: the crossing, which is the first prefix that passes (`ForwardScanPlan`; `BinarySearchPlan` if passing is assumed
to be monotone), and the value of every prefix (`FullEstimate`). A plan says what to sample next and receives the
outcomes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from reasoning.records import CostBounds

Outcomes = Sequence[Hashable]
"""Result of each rollout: whether it is correct or, without ground truth, the answer that it gives."""


@dataclass(frozen=True, slots=True)
class SampleRange:
    """Rollouts to sample: samples `first` … `first` + `count` − 1 of prefix `prefix`."""

    prefix: int
    first: int
    count: int


class SamplingPlan(Protocol):
    """Says which rollouts to sample; each range is returned once. Closed when the result is known, even if rollouts are
    still in flight."""

    @property
    def is_open(self) -> bool: ...
    def next_ranges(self) -> list[SampleRange]: ...
    def add(self, drawn: SampleRange, outcomes: Outcomes, /) -> None: ...


def min_successes(total: int, threshold: float) -> int:
    """r: the smallest number of successes that is strictly more than `threshold` of `total`. Exact: `threshold` counts
    as the decimal written, not as its nearest float."""
    return int(Fraction(str(threshold)) * total) + 1


def count_right(outcomes: Outcomes) -> int:
    """Number of correct rollouts, where ground truth is used."""
    return sum(outcome is True for outcome in outcomes)


def count_agreeing(outcomes: Outcomes) -> int:
    """Number of rollouts with the most frequent answer, where ground truth is not used. None is no answer."""
    return max(Counter(outcome for outcome in outcomes if outcome is not None).values(), default=0)


class SequentialTest:
    """Rollouts of one prefix up to its decision."""

    def __init__(self, total: int, threshold: float, count_successes: Callable[[Outcomes], int] = count_right):
        self._total, self._min_successes, self._count_successes = (
            total,
            min_successes(total, threshold),
            count_successes,
        )
        self.outcomes: list[Hashable] = []

    @property
    def successes(self) -> int:
        return self._count_successes(self.outcomes)

    @property
    def passed(self) -> bool | None:
        """None while undecided."""
        missing, left = self._min_successes - self.successes, self._total - len(self.outcomes)
        return True if missing <= 0 else False if missing > left else None

    def next_batch_size(self) -> int:
        """Smallest number of further rollouts that could decide; 0 once decided."""
        missing, left = self._min_successes - self.successes, self._total - len(self.outcomes)
        return max(0, min(missing, left - missing + 1))

    def add(self, outcomes: Outcomes) -> None:
        self.outcomes.extend(outcomes)


class ForwardScanPlan:
    """Scans prefixes from the front for the first that passes.

    Up to `lookahead` later prefixes are sampled speculatively: better utilisation, but rollouts after the crossing are
    wasted (`wasted`).
    """

    def __init__(
        self,
        prefixes: int,
        total: int,
        threshold: float,
        lookahead: int = 0,
        count_successes: Callable[[Outcomes], int] = count_right,
    ):
        self._tests = [SequentialTest(total, threshold, count_successes) for _ in range(prefixes)]
        self._lookahead = lookahead
        self._current = 0
        self._in_flight: set[int] = set()

    @property
    def crossing(self) -> int | None:
        """Index of the first passing prefix. None while undecided, and if none passes."""
        return self._current if self._current < len(self._tests) and self._tests[self._current].passed else None

    @property
    def is_open(self) -> bool:
        return self._current < len(self._tests) and self.crossing is None

    @property
    def tested(self) -> dict[int, SequentialTest]:
        """Tests that the result rests on, by prefix index, in ascending order."""
        return dict(enumerate(self._tests[: self._current + 1]))

    @property
    def wasted(self) -> int:
        """Number of rollouts of prefixes after the crossing."""
        return sum(len(test.outcomes) for test in self._tests[self._current + 1 :])

    def next_ranges(self) -> list[SampleRange]:
        if not self.is_open:
            return []
        within = range(self._current, min(self._current + self._lookahead + 1, len(self._tests)))
        ranges = [
            SampleRange(index, len(self._tests[index].outcomes), count)
            for index in within
            if index not in self._in_flight and (count := self._tests[index].next_batch_size())
        ]
        self._in_flight.update(drawn.prefix for drawn in ranges)
        return ranges

    def add(self, drawn: SampleRange, outcomes: Outcomes) -> None:
        self._in_flight.remove(drawn.prefix)
        self._tests[drawn.prefix].add(outcomes)
        while self._current < len(self._tests) and self._tests[self._current].passed is False:
            self._current += 1


class BinarySearchPlan:
    """Finds a crossing in ⌈log₂(N+1)⌉ tests. It is the earliest one only if every prefix after a passing one passes
    too."""

    def __init__(self, prefixes: int, total: int, threshold: float):
        self._low, self._high, self._none = 0, prefixes, prefixes
        self._total, self._threshold = total, threshold
        self._in_flight = False
        self._tests: dict[int, SequentialTest] = {}

    @property
    def is_open(self) -> bool:
        return self._low < self._high

    @property
    def tested(self) -> dict[int, SequentialTest]:
        """Tests that the result rests on, by prefix index, in ascending order."""
        return dict(sorted(self._tests.items()))

    @property
    def crossing(self) -> int | None:
        """Index of a passing prefix. None while undecided, and if none was found."""
        return None if self.is_open or self._low == self._none else self._low

    def next_ranges(self) -> list[SampleRange]:
        if self._in_flight or not self.is_open:
            return []
        self._in_flight = True
        middle = (self._low + self._high) // 2
        test = self._tests.setdefault(middle, SequentialTest(self._total, self._threshold))
        return [SampleRange(middle, len(test.outcomes), test.next_batch_size())]

    def add(self, drawn: SampleRange, outcomes: Outcomes) -> None:
        self._in_flight = False
        test = self._tests[drawn.prefix]
        test.add(outcomes)
        if test.passed is True:
            self._high = drawn.prefix
        elif test.passed is False:
            self._low = drawn.prefix + 1


class FullEstimate:
    """Samples `total` rollouts of every prefix, shortest first."""

    def __init__(self, prefixes: int, total: int):
        self._pending = [SampleRange(index, 0, total) for index in range(prefixes)]
        self._missing = prefixes
        self.outcomes: list[Outcomes] = [()] * prefixes

    @property
    def is_open(self) -> bool:
        return self._missing > 0

    def next_ranges(self) -> list[SampleRange]:
        ranges, self._pending = self._pending, []
        return ranges

    def add(self, drawn: SampleRange, outcomes: Outcomes) -> None:
        self.outcomes[drawn.prefix] = outcomes
        self._missing -= 1


CrossingSearch = ForwardScanPlan | BinarySearchPlan


def cost_bounds(plan: CrossingSearch, lengths: Sequence[int], opening: int, total: int, block: int) -> CostBounds:
    """Cost bounds of one finished search. `lengths`: tokens of each prefix with its problem; `opening`: tokens appended
    to it for a rollout; `block`: tokens per block of the KV cache."""
    tested = plan.tested
    needed = sum(len(test.outcomes) for test in tested.values())
    wasted = plan.wasted if isinstance(plan, ForwardScanPlan) else 0
    return CostBounds(
        rollouts=needed + wasted,
        rollouts_floor=needed,
        rollouts_naive=len(lengths) * total,
        prefill_naive=total * sum(length + opening for length in lengths),
        prefill_floor=lengths[max(tested)] + needed * (block + opening) if tested else 0,
    )
