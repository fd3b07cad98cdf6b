"""Means, differences and ratios with 95 % intervals, clustered by problem.

Knows: numbers grouped by problem. Must not know: models, tokens, files.

Samples of one problem are not independent, so the problem is the unit: each problem contributes its own mean, and
intervals are t-intervals over problems. Ratios use the linearised (delta-method) variance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata
from scipy.stats import t as student_t

Interval = tuple[float, float]


def problem_means(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean value of each problem from (problem id, value) samples."""
    groups: dict[str, list[float]] = defaultdict(list)
    for problem, value in values:
        groups[problem].append(value)
    return {problem: sum(group) / len(group) for problem, group in groups.items()}


def mean_interval(values_P: NDArray[np.float64]) -> tuple[float, Interval]:
    """Mean over P problems and its 95 % interval; the interval is the whole line for a single problem."""
    mean = float(np.mean(values_P))
    half = _half_width(values_P)
    return mean, (mean - half, mean + half)


def paired_difference(new: Mapping[str, float], base: Mapping[str, float]) -> tuple[float, Interval]:
    """Mean of new − base over the same problems with its 95 % interval."""
    new_P, base_P = _aligned(new, base)
    return mean_interval(new_P - base_P)


def paired_ratio(new: Mapping[str, float], base: Mapping[str, float]) -> tuple[float, Interval]:
    """mean(new) / mean(base) over the same problems with its 95 % interval."""
    new_P, base_P = _aligned(new, base)
    ratio = float(new_P.mean() / base_P.mean())
    half = _half_width((new_P - ratio * base_P) / base_P.mean())
    return ratio, (ratio - half, ratio + half)


@cache
def proportion(right: int, total: int) -> Interval:
    """95 % interval of a share of which `right` of `total` independent samples were seen (Wilson)."""
    found = binomtest(right, total).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def proportion_difference(new: int, base: int, total: int) -> Interval:
    """95 % interval of new − base, both of `total` samples (Newcombe's, from Wilson's two)."""
    (low, high), (base_low, base_high) = proportion(new, total), proportion(base, total)
    p, q = new / total, base / total
    return p - q - math.hypot(p - low, base_high - q), p - q + math.hypot(high - p, q - base_low)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, Interval]:
    """Spearman's ρ and its 95 % interval (Fisher's z with the variance of Bonett and Wright); not a number where one
    side is constant."""
    rho = float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
    if len(first) < 4 or abs(rho) == 1:
        return rho, (-1.0, 1.0) if abs(rho) < 1 else (rho, rho)
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (len(first) - 3))
    return rho, (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))


def partial_correlation(first: Sequence[float], second: Sequence[float], fixed: Sequence[float]) -> float:
    """Spearman's ρ of `first` and `second` where `fixed` is held fixed; not a number where that leaves nothing."""
    between, one, other = (rank_correlation(*pair)[0] for pair in ((first, second), (first, fixed), (second, fixed)))
    if math.isclose(abs(one), 1) or math.isclose(abs(other), 1):
        return math.nan
    return (between - one * other) / math.sqrt((1 - one**2) * (1 - other**2))


def _aligned(new: Mapping[str, float], base: Mapping[str, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    assert new.keys() == base.keys(), "both models must have been examined on the same problems"
    problems = sorted(new)
    return np.array([new[p] for p in problems]), np.array([base[p] for p in problems])


def _half_width(values_P: NDArray[np.float64]) -> float:
    count = len(values_P)
    if count < 2:
        return math.inf
    return float(student_t.ppf(0.975, count - 1)) * float(np.std(values_P, ddof=1)) / math.sqrt(count)
