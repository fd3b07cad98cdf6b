"""Sampling plans compared with the plain rule on all k rollouts of every prefix."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.records import CostBounds
from reasoning.sampling_plans import (
    BinarySearchPlan,
    ForwardScanPlan,
    FullEstimate,
    Outcomes,
    SampleRange,
    SamplingPlan,
    SequentialTest,
    cost_bounds,
    count_agreeing,
    min_successes,
)

K = 8
rows = st.lists(st.lists(st.booleans(), min_size=K, max_size=K), min_size=1, max_size=12)
percents = st.integers(0, 99)


def play(plan: SamplingPlan, samples: Sequence[Outcomes], order: random.Random | None = None) -> list[SampleRange]:
    """Feeds outcomes from `samples` to the plan, in any order; returns the ranges that it asked for."""
    sampled: list[SampleRange] = []
    waiting = plan.next_ranges()
    while waiting:
        drawn_range = waiting.pop(order.randrange(len(waiting)) if order else 0)
        sampled.append(drawn_range)
        plan.add(drawn_range, samples[drawn_range.prefix][drawn_range.first : drawn_range.first + drawn_range.count])
        waiting += plan.next_ranges()
    assert not plan.is_open
    return sampled


def passes(row: Outcomes, percent: int) -> bool:
    return Fraction(sum(outcome is True for outcome in row), len(row)) > Fraction(percent, 100)


@given(st.integers(1, 100), percents)
def test_min_successes_is_the_smallest_number_above_the_threshold(total: int, percent: int):
    smallest = min_successes(total, percent / 100)
    assert Fraction(smallest, total) > Fraction(percent, 100) >= Fraction(smallest - 1, total)


def test_sequential_test_stops_at_the_fewest_deciding_rollouts():
    test = SequentialTest(8, 0.5)  # 5 right ones pass, 4 wrong ones fail
    assert test.next_batch_size() == 4
    test.add([True, True, True, False])  # 2 more right or 3 more wrong would decide
    assert (test.passed, test.next_batch_size()) == (None, 2)
    test.add([True, False])  # 1 more right or 2 more wrong
    assert (test.passed, test.next_batch_size()) == (None, 1)
    test.add([True])
    assert (test.passed, test.next_batch_size()) == (True, 0)


@given(rows, percents)
def test_earliest_crossing_equals_that_of_all_rollouts(samples: list[list[bool]], percent: int):
    plan = ForwardScanPlan(len(samples), K, percent / 100)
    play(plan, samples)
    assert plan.crossing == next((i for i, row in enumerate(samples) if passes(row, percent)), None)


@given(rows, percents)
def test_no_rollout_is_wasted(samples: list[list[bool]], percent: int):
    """The minimum: for each prefix up to the crossing, the samples up to the first that decides it."""
    plan = ForwardScanPlan(len(samples), K, percent / 100)
    sampled = play(plan, samples)
    r = min_successes(K, percent / 100)
    crossing = next((i for i, row in enumerate(samples) if passes(row, percent)), len(samples) - 1)
    floor = sum(
        next(n for n in range(1, K + 1) if sum(row[:n]) >= r or n - sum(row[:n]) >= K - r + 1)
        for row in samples[: crossing + 1]
    )
    assert sum(drawn_range.count for drawn_range in sampled) == floor
    assert plan.wasted == 0


@given(rows, percents, st.integers(1, 4), st.randoms(use_true_random=False))
def test_lookahead_keeps_decisions_and_counts_wasted_rollouts(
    samples: list[list[bool]], percent: int, lookahead: int, order: random.Random
):
    plain, ahead = (ForwardScanPlan(len(samples), K, percent / 100, depth) for depth in (0, lookahead))
    needed = sum(drawn_range.count for drawn_range in play(plain, samples))
    drawn = sum(drawn_range.count for drawn_range in play(ahead, samples, order))
    assert ahead.crossing == plain.crossing
    assert {i: test.outcomes for i, test in ahead.tested.items()} == {i: t.outcomes for i, t in plain.tested.items()}
    assert drawn == needed + ahead.wasted


@given(st.integers(1, 40), st.integers(0, 40))
def test_binary_search_finds_the_crossing_of_a_monotone_trace_in_few_tests(prefixes: int, crossing: int):
    samples = [[index >= crossing] * K for index in range(prefixes)]
    plan = BinarySearchPlan(prefixes, K, 0.5)
    play(plan, samples)
    assert plan.crossing == (crossing if crossing < prefixes else None)
    assert len(plan.tested) <= math.ceil(math.log2(prefixes + 1))


@given(rows, percents)
def test_binary_search_always_returns_a_passing_prefix(samples: list[list[bool]], percent: int):
    plan = BinarySearchPlan(len(samples), K, percent / 100)
    play(plan, samples)
    assert plan.crossing is None or passes(samples[plan.crossing], percent)


def test_trace_without_prefixes_has_no_crossing():
    for plan in (ForwardScanPlan(0, K, 0.5), BinarySearchPlan(0, K, 0.5)):
        assert play(plan, []) == []
        assert plan.crossing is None


def test_agreement_replaces_ground_truth():
    answers = ["7", None, "8", "7", "7", "9", "7", "7"]
    plan = ForwardScanPlan(1, K, 0.5, count_successes=count_agreeing)
    sampled = play(plan, [answers])
    # 5 of 8 must agree: after 4 samples two 7s lack three; after 7 four lack one, and one sample is left.
    assert [(drawn_range.first, drawn_range.count) for drawn_range in sampled] == [(0, 4), (4, 2), (6, 1), (7, 1)]
    assert plan.crossing == 0
    assert count_agreeing([None, None, "1"]) == 1
    assert count_agreeing([]) == 0


@given(rows)
def test_full_estimate_samples_all_rollouts_of_every_prefix(samples: list[list[bool]]):
    plan = FullEstimate(len(samples), K)
    sampled = play(plan, samples)
    assert sampled == [SampleRange(index, 0, K) for index in range(len(samples))]
    assert plan.outcomes == samples


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 4.0), (0.5, 6.54), (1.0, 5.0)])
def test_mean_number_of_rollouts(chance: float, expected: float):
    """E[n | p] for r = 5, f = 4, summed over all 2⁸ outcomes."""
    mean = 0.0
    for bits in range(2**K):
        row = [bool(bits >> index & 1) for index in range(K)]
        weight = chance ** sum(row) * (1 - chance) ** (K - sum(row))
        plan = ForwardScanPlan(1, K, 0.5)
        mean += weight * sum(drawn_range.count for drawn_range in play(plan, [row]))
    assert mean == pytest.approx(expected, abs=0.005)


@given(rows, st.integers(1, 60), st.integers(0, 20))
def test_cost_bounds(samples: list[list[bool]], length: int, opening: int):
    plan = ForwardScanPlan(len(samples), K, 0.5)
    sampled = play(plan, samples)
    lengths = [length * (index + 1) for index in range(len(samples))]
    got = cost_bounds(plan, lengths, opening, K, block=32)
    reached = len(samples) if plan.crossing is None else plan.crossing + 1
    assert (got.rollouts, got.rollouts_floor) == (sum(drawn_range.count for drawn_range in sampled),) * 2
    assert got.rollouts_naive == K * len(samples)
    assert got.prefill_floor == length * reached + got.rollouts * (32 + opening)
    assert got.prefill_naive == sum(K * (prefix + opening) for prefix in lengths)
    assert got + got == CostBounds(**{name: 2 * value for name, value in got.model_dump().items()})
