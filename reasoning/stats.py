"""Means, differences and ratios with 95 % intervals, clustered by problem.

Samples of one problem are not independent, so the problem is the unit: each problem contributes its own mean, and
intervals are t-intervals over problems; those of an accuracy on few problems are Wilson's. Ratios use the linearised
(delta-method) variance. `_P`: one value per problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata
from scipy.stats import t as student_t

SMALL = 100
"""Fewer problems than this are a small set."""
Interval = tuple[float, float]
ByProblem = Mapping[str, float] | pd.Series
"""One value per problem, by the problem's id."""


def problem_means(samples: pd.DataFrame, column: str) -> pd.Series:
    """Mean of `column` in each problem, indexed by `problem_id` in order of first appearance."""
    return samples.groupby("problem_id", sort=False)[column].mean()


def mean_interval(values_P: pd.Series | NDArray[np.float64]) -> tuple[float, Interval]:
    """Mean over P problems and its 95 % interval. The interval is infinite for one problem; for none, all is NaN."""
    values_P = np.asarray(values_P, dtype=float)
    if not len(values_P):
        return math.nan, (math.nan, math.nan)
    mean = float(np.mean(values_P))
    half = _half_width(values_P)
    return mean, (mean - half, mean + half)


def share_interval(shares_P: pd.Series | NDArray[np.float64], samples: int) -> tuple[float, Interval]:
    """Mean of the shares of P problems and its 95 % interval, from `samples` samples together.

    With fewer than `SMALL` problems it is Wilson's interval, for as many independent samples as would have the same
    variance: a t-interval there leaves [0, 1], and has no width where all problems agree.
    """
    shares_P = np.asarray(shares_P, dtype=float)
    mean, interval = mean_interval(shares_P)
    if not 1 < len(shares_P) < SMALL:
        return mean, interval
    variance = float(np.var(shares_P, ddof=1)) / len(shares_P)
    unanimous = len(shares_P) if mean in (0, 1) else samples
    effective = min(samples, mean * (1 - mean) / variance) if variance else unanimous
    return mean, _wilson(mean, effective, float(student_t.ppf(0.975, len(shares_P) - 1)))


def _wilson(share: float, samples: float, quantile: float) -> Interval:
    """Wilson's interval of a share of independent samples."""
    added = quantile**2 / samples
    half = quantile * math.sqrt(share * (1 - share) / samples + added / (4 * samples))
    low, high = (share + added / 2 - half) / (1 + added), (share + added / 2 + half) / (1 + added)
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # against rounding


def paired_difference(new: ByProblem, base: ByProblem) -> tuple[float, Interval]:
    """Mean of new − base over the same problems with its 95 % interval."""
    new_P, base_P = _aligned(new, base)
    return mean_interval(new_P - base_P)


def paired_ratio(new: ByProblem, base: ByProblem) -> tuple[float, Interval]:
    """mean(new) / mean(base) over the same problems with its 95 % interval; NaN without problems."""
    new_P, base_P = _aligned(new, base)
    if not len(base_P):
        return math.nan, (math.nan, math.nan)
    ratio = float(new_P.mean() / base_P.mean())
    half = _half_width((new_P - ratio * base_P) / base_P.mean())
    return ratio, (ratio - half, ratio + half)


@cache
def proportion(right: int, total: int) -> Interval:
    """95 % interval of a proportion, from `right` of `total` independent samples (Wilson)."""
    found = binomtest(right, total).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def proportion_difference(new: int, base: int, total: int) -> Interval:
    """95 % interval of the difference new − base of two proportions of `total` samples each (Newcombe, from Wilson)."""
    (low, high), (base_low, base_high) = proportion(new, total), proportion(base, total)
    p, q = new / total, base / total
    return p - q - math.hypot(p - low, base_high - q), p - q + math.hypot(high - p, q - base_low)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, Interval]:
    """Spearman's ρ and its 95 % interval (Fisher's z with the variance of Bonett and Wright). NaN if either side is
    constant."""
    rho = float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
    if len(first) < 4 or abs(rho) == 1:
        return rho, (-1.0, 1.0) if abs(rho) < 1 else (rho, rho)
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (len(first) - 3))
    return rho, (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))


def partial_correlation(first: Sequence[float], second: Sequence[float], fixed: Sequence[float]) -> float:
    """Spearman's ρ of `first` and `second`, controlled for `fixed`. NaN if either has the same ranks as `fixed`."""
    between, one, other = (rank_correlation(*pair)[0] for pair in ((first, second), (first, fixed), (second, fixed)))
    if math.isclose(abs(one), 1) or math.isclose(abs(other), 1):
        return math.nan
    return (between - one * other) / math.sqrt((1 - one**2) * (1 - other**2))


def _aligned(new: ByProblem, base: ByProblem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in the order of the problem ids."""
    new, base = (pd.Series(side, dtype=float).sort_index() for side in (new, base))
    assert new.index.equals(base.index), "both models must be evaluated on the same problems"
    return new.to_numpy(), base.to_numpy()


def _half_width(values_P: NDArray[np.float64]) -> float:
    count = len(values_P)
    if count < 2:
        return math.inf
    return float(student_t.ppf(0.975, count - 1)) * float(np.std(values_P, ddof=1)) / math.sqrt(count)
