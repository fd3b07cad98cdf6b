"""Scores thoughts and decides which model learns each one (Long⊗Short, arXiv 2505.11827).

The paper does not print the formula of its joint metric. Ours, in gain form: M_i = (V_i − V_{i−1}) − λ·len_i/Σ len −
δ·[V_i ≤ V_{i−1}]; in level form, V_i replaces the gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from conf.long_short import Importance


def importance(values: Sequence[float], lengths: Sequence[int], metric: Importance) -> list[float]:
    """M_i of each thought. `values` has one more entry than `lengths`: the first is V_0, the value of the bare
    question."""
    total = sum(lengths)
    return [
        (after - before if metric.form == "gain" else after)
        - metric.length_weight * length / total
        - metric.decay * (after <= before)
        for (before, after), length in zip(pairwise(values), lengths, strict=True)
    ]


def are_long(scores: Sequence[float]) -> list[bool]:
    """Whether each thought is important: its score is positive and above the trace's median."""
    middle = median(scores)
    return [score > middle and score > 0 for score in scores]
