"""Plans against the plain rule: all k rollouts of every prefix, counted."""

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
    EarliestCrossing,
    FullEstimate,
    Outcomes,
    SampleRange,
    SamplingPlan,
    SequentialTest,
    cost_bounds,
    count_agreeing,
    estimate_value,
    min_successes,
)

K = 8
rows = st.lists(st.lists(st.booleans(), min_size=K, max_size=K), min_size=1, max_size=12)
percents = st.integers(0, 99)


def play(plan: SamplingPlan, samples: Sequence[Outcomes], order: random.Random | None = None) -> list[SampleRange]:
    """Answers every ask from `samples`, several asks in any order; returns what was asked."""
    asked: list[SampleRange] = []
    waiting = plan.next_ranges()
    while waiting:
        ask = waiting.pop(order.randrange(len(waiting)) if order else 0)
        asked.append(ask)
        plan.add(ask, samples[ask.prefix][ask.first : ask.first + ask.count])
        waiting += plan.next_ranges()
    assert not plan.is_open
    return asked


def passes(row: Outcomes, percent: int) -> bool:
    return Fraction(sum(outcome is True for outcome in row), len(row)) > Fraction(percent, 100)


@given(st.integers(1, 100), percents)
def test_enough_is_the_smallest_number_above_the_threshold(total: int, percent: int):
    least = min_successes(total, percent / 100)
    assert Fraction(least, total) > Fraction(percent, 100) >= Fraction(least - 1, total)


def test_a_trial_is_decided_by_the_fewest_rollouts():
    trial = SequentialTest(8, 0.5)  # 5 right ones pass it, 4 wrong ones refuse it
    assert trial.next_batch_size() == 4
    trial.add([True, True, True, False])  # 2 more right or 3 more wrong would decide
    assert (trial.passed, trial.next_batch_size()) == (None, 2)
    trial.add([True, False])  # 1 more right or 2 more wrong
    assert (trial.passed, trial.next_batch_size()) == (None, 1)
    trial.add([True])
    assert (trial.passed, trial.next_batch_size()) == (True, 0)


@given(rows, percents)
def test_the_earliest_crossing_is_the_one_of_all_rollouts(samples: list[list[bool]], percent: int):
    plan = EarliestCrossing(len(samples), K, percent / 100)
    play(plan, samples)
    assert plan.crossing == next((i for i, row in enumerate(samples) if passes(row, percent)), None)


@given(rows, percents)
def test_not_one_rollout_is_drawn_in_vain(samples: list[list[bool]], percent: int):
    """The floor: of each prefix up to the crossing, the samples up to the first that decides it."""
    plan = EarliestCrossing(len(samples), K, percent / 100)
    asked = play(plan, samples)
    r = min_successes(K, percent / 100)
    crossing = next((i for i, row in enumerate(samples) if passes(row, percent)), len(samples) - 1)
    floor = sum(
        next(n for n in range(1, K + 1) if sum(row[:n]) >= r or n - sum(row[:n]) >= K - r + 1)
        for row in samples[: crossing + 1]
    )
    assert sum(ask.count for ask in asked) == floor
    assert plan.wasted == 0


@given(rows, percents, st.integers(1, 4), st.randoms(use_true_random=False))
def test_lookahead_changes_no_decision_and_counts_its_waste(
    samples: list[list[bool]], percent: int, lookahead: int, order: random.Random
):
    plain, ahead = (EarliestCrossing(len(samples), K, percent / 100, depth) for depth in (0, lookahead))
    needed = sum(ask.count for ask in play(plain, samples))
    drawn = sum(ask.count for ask in play(ahead, samples, order))
    assert ahead.crossing == plain.crossing
    assert {i: trial.outcomes for i, trial in ahead.tested.items()} == {i: t.outcomes for i, t in plain.tested.items()}
    assert drawn == needed + ahead.wasted


@given(st.integers(1, 40), st.integers(0, 40))
def test_bisection_finds_the_crossing_of_a_monotone_trace_in_few_trials(prefixes: int, crossing: int):
    samples = [[index >= crossing] * K for index in range(prefixes)]
    plan = BinarySearchPlan(prefixes, K, 0.5)
    play(plan, samples)
    assert plan.crossing == (crossing if crossing < prefixes else None)
    assert len(plan.tested) <= math.ceil(math.log2(prefixes + 1))


@given(rows, percents)
def test_bisection_always_names_a_prefix_that_passes(samples: list[list[bool]], percent: int):
    plan = BinarySearchPlan(len(samples), K, percent / 100)
    play(plan, samples)
    assert plan.crossing is None or passes(samples[plan.crossing], percent)


def test_a_trace_without_prefixes_has_no_crossing():
    for plan in (EarliestCrossing(0, K, 0.5), BinarySearchPlan(0, K, 0.5)):
        assert play(plan, []) == []
        assert plan.crossing is None


def test_agreement_stands_in_for_right_answers():
    answers = ["7", None, "8", "7", "7", "9", "7", "7"]
    plan = EarliestCrossing(1, K, 0.5, count_successes=count_agreeing)
    asked = play(plan, [answers])
    # 5 of 8 must agree: after 4 samples two 7s lack three; after 7 four lack one, and one sample is left.
    assert [(ask.first, ask.count) for ask in asked] == [(0, 4), (4, 2), (6, 1), (7, 1)]
    assert plan.crossing == 0
    assert count_agreeing([None, None, "1"]) == 1
    assert count_agreeing([]) == 0


@given(rows)
def test_values_take_all_rollouts_of_every_prefix(samples: list[list[bool]]):
    plan = FullEstimate(len(samples), K)
    asked = play(plan, samples)
    assert asked == [SampleRange(index, 0, K) for index in range(len(samples))]
    assert plan.outcomes == samples


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 4.0), (0.5, 6.54), (1.0, 5.0)])
def test_the_mean_number_of_rollouts_is_as_calculated(chance: float, expected: float):
    """E[n | p] for r = 5, f = 4, summed over all 2⁸ outcomes."""
    mean = 0.0
    for bits in range(2**K):
        row = [bool(bits >> index & 1) for index in range(K)]
        weight = chance ** sum(row) * (1 - chance) ** (K - sum(row))
        plan = EarliestCrossing(1, K, 0.5)
        mean += weight * sum(ask.count for ask in play(plan, [row]))
    assert mean == pytest.approx(expected, abs=0.005)


@given(rows, st.integers(1, 60), st.integers(0, 20))
def test_a_bill_adds_up(samples: list[list[bool]], length: int, opening: int):
    plan = EarliestCrossing(len(samples), K, 0.5)
    asked = play(plan, samples)
    lengths = [length * (index + 1) for index in range(len(samples))]
    got = cost_bounds(plan, lengths, opening, K, block=32)
    reached = len(samples) if plan.crossing is None else plan.crossing + 1
    assert (got.rollouts, got.rollouts_floor) == (sum(ask.count for ask in asked),) * 2
    assert got.rollouts_naive == K * len(samples)
    assert got.prefill_floor == length * reached + got.rollouts * (32 + opening)
    assert got.prefill_naive == sum(K * (prefix + opening) for prefix in lengths)
    assert got + got == CostBounds(**{name: 2 * value for name, value in got.model_dump().items()})


def test_an_interval_is_wilsons():
    """Of 1 right in 5: (0.2 + z²/10 ± z·√(0.2·0.8/5 + z²/100)) / (1 + z²/5), z = 1.96, by hand."""
    got = estimate_value([True, False, False, False, False])
    assert got == pytest.approx((0.2, 0.0362, 0.6245), abs=1e-4)
    assert estimate_value([False] * 5).low == pytest.approx(0)
    assert estimate_value([True] * 5).high == pytest.approx(1)
