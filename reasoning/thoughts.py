"""What a thought is worth, and which of the two models is to think it (Long⊗Short, papers, section C.2).

Knows: values of prefixes, lengths, the joint metric. Must not know: how values were measured, texts, turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from conf.long_short import Importance


def importance(values: Sequence[float], lengths: Sequence[int], metric: Importance) -> list[float]:
    """M_i of each thought. `values` has one more than `lengths`: the first is that of the bare question."""
    total = sum(lengths)
    return [
        (after - before if metric.form == "gain" else after)
        - metric.length_weight * length / total
        - metric.decay * (after <= before)
        for (before, after), length in zip(pairwise(values), lengths, strict=True)
    ]


def are_long(scores: Sequence[float]) -> list[bool]:
    """Which thoughts are important: above the trace's median, and positive."""
    middle = median(scores)
    return [score > middle and score > 0 for score in scores]
