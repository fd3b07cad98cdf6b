"""Sets of real numbers as intervals: union, intersection, equality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from reasoning.answers.formulas import Value, inexact, mp, same_value


class Interval(NamedTuple):
    """Real numbers between two ends; each end may be included."""

    low: Value
    has_low: bool
    high: Value
    has_high: bool


Intervals = tuple[Interval, ...]
EVERYWHERE = Interval(-mp.inf, False, mp.inf, False)


def is_real(interval: Interval) -> bool:
    return all(mp.im(inexact(end)) == 0 for end in (interval.low, interval.high))


def union(intervals: Iterable[Interval]) -> Intervals:
    """Union as disjoint intervals in ascending order. All must be real."""
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda interval: (inexact(interval.low), not interval.has_low)):
        if merged and _touch(merged[-1], interval):
            merged[-1] = _joined(merged[-1], interval)
        else:
            merged.append(interval)
    return tuple(merged)


def _touch(first: Interval, second: Interval) -> bool:
    if same_value(second.low, first.high):
        return second.has_low or first.has_high
    return bool(inexact(second.low) < inexact(first.high))


def _joined(first: Interval, second: Interval) -> Interval:
    """Union of two intervals that touch; `second` does not begin earlier."""
    if same_value(first.high, second.high):
        return first._replace(has_high=first.has_high or second.has_high)
    further = max(first, second, key=lambda interval: inexact(interval.high))
    return first._replace(high=further.high, has_high=further.has_high)


def intersection(first: Interval, second: Interval) -> Interval | None:
    """Common part of two intervals; None if it is empty."""
    lower = max(first, second, key=lambda interval: (inexact(interval.low), not interval.has_low))
    upper = min(first, second, key=lambda interval: (inexact(interval.high), interval.has_high))
    if inexact(lower.low) > inexact(upper.high):
        return None
    return Interval(lower.low, lower.has_low, upper.high, upper.has_high)


def same(first: Sequence[Interval], second: Sequence[Interval]) -> bool:
    """Whether two unions contain the same numbers."""
    a, b = union(first), union(second)
    return len(a) == len(b) and all(
        x.has_low == y.has_low and x.has_high == y.has_high and same_value(x.low, y.low) and same_value(x.high, y.high)
        for x, y in zip(a, b, strict=True)
    )
