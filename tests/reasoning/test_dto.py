from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.dto import (
    OpenScan,
    agreement,
    first_wrong,
    last_refused,
    passes,
    preference_pairs,
    shortest_longest_pairs,
    shortest_right,
)
from reasoning.records import Optimised, PairKind, Trace, Verdict


def trace(problem: str = "p", sample: int = 0, length: int = 10, verdict: Verdict = Verdict.RIGHT) -> Trace:
    return Trace(
        problem_id=problem, sample=sample, token_ids=tuple(range(length)), text="", truncated=False,
        verdict=verdict,
    )  # fmt: skip


def test_a_prefix_passes_only_strictly_above_the_threshold():
    assert not passes(4, 8, 0.5)
    assert passes(5, 8, 0.5)
    assert not passes(29, 100, 0.29)  # in floats 0.29 * 100 = 28.999999999999996
    assert passes(30, 100, 0.29)
    assert not passes(0, 8, 0.0)


@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 99))
def test_passing_is_the_exact_comparison(right: int, extra: int, percent: int):
    assert passes(right, right + extra, percent / 100) == (Fraction(right, right + extra) > Fraction(percent, 100))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_a_scan_stops_at_the_first_prefix_that_passes(right_counts: list[int]):
    ends = [3 * (index + 1) for index in range(len(right_counts))]
    scan = OpenScan(trace(length=3 * len(right_counts)), ends, 0.5)
    for right in right_counts:
        if not scan.is_open:
            break
        scan.add([True] * right + [False] * (8 - right))
    result = scan.result()
    expected = next((index for index, right in enumerate(right_counts) if right > 4), None)
    assert result.crossing == expected
    assert len(result.probes) == (len(right_counts) if expected is None else expected + 1)
    assert not scan.is_open


def test_prefixes_are_the_traces_own_tokens():
    scan = OpenScan(trace(length=10), [4, 10], 0.5)
    assert scan.next_prefix() == (0, 1, 2, 3)
    scan.add([False] * 8)
    assert scan.next_prefix() == tuple(range(10))
    assert last_refused(scan.result()) is None  # it never crossed: no stop was premature
    scan.add([True] * 8)
    refused = last_refused(scan.result())
    assert refused is not None
    assert (refused.segment, refused.end, refused.right) == (0, 4, 0)


def test_endings():
    right, wrong = Verdict.RIGHT, Verdict.WRONG
    endings = [((1, 2, 3), right), ((9,), Verdict.TIMEOUT), ((4,), wrong), ((5, 6), right), ((7, 8), right)]
    assert shortest_right(endings) == (5, 6)
    assert first_wrong(endings) == (4,)
    assert shortest_right([((1,), wrong)]) is None
    assert first_wrong([((1,), right), ((2,), Verdict.NO_ANSWER), ((3,), Verdict.TIMEOUT)]) is None


def optimised(length: int, premature: int | None = None, sample: int = 0) -> Optimised:
    return Optimised(
        problem_id="p", sample=sample, token_ids=tuple(range(length)), kept=1,
        premature_ids=None if premature is None else tuple(range(premature)),
    )  # fmt: skip


def build(rows: list[Optimised], traces: list[Trace], rejected: str = "original", max_length: int = 100):
    return preference_pairs({"p": (90, 91)}, traces, rows, rejected, max_length)


def test_pairs_prefer_the_shortened_trace_to_the_original_and_to_the_premature_stop():
    pairs, dropped = build([optimised(6, premature=3)], [trace(length=10)])
    assert [(p.kind, len(p.chosen_ids), len(p.rejected_ids)) for p in pairs] == [
        (PairKind.OPTIMISED, 6, 10), (PairKind.PREMATURE_STOP, 6, 3),
    ]  # fmt: skip
    assert pairs[0].prompt_ids == (90, 91)
    assert not dropped


@pytest.mark.parametrize(("length", "max_length", "reason"), [(10, 100, "not-shorter"), (6, 11, "too-long")])
def test_unfit_pairs_are_dropped_with_their_reason(length: int, max_length: int, reason: str):
    # Two prompt tokens and ten rejected ones need a length of twelve.
    pairs, dropped = build([optimised(length)], [trace(length=10)], max_length=max_length)
    assert pairs == []
    assert dropped == {reason: 1}


def test_an_empty_completion_is_no_side_of_a_pair():
    pairs, dropped = build([optimised(0)], [trace(length=10)])
    assert (pairs, dropped) == ([], {"empty": 1})


def test_the_longest_of_a_problems_traces_can_be_rejected_instead():
    pairs, _ = build([optimised(6)], [trace(length=10), trace(sample=1, length=15)], rejected="longest")
    assert len(pairs[0].rejected_ids) == 15


def test_the_control_prefers_the_shortest_right_trace_to_the_longest():
    traces = [
        trace(length=9), trace(sample=1, length=5, verdict=Verdict.WRONG), trace(sample=2, length=6),
        trace(sample=3, length=12, verdict=Verdict.WRONG), trace("q", length=4, verdict=Verdict.WRONG),
        trace("r", length=7),
    ]  # fmt: skip
    pairs, dropped = shortest_longest_pairs({"p": (90,), "q": (91,), "r": (92,)}, traces, 100)
    assert [(p.problem_id, p.kind, len(p.chosen_ids), len(p.rejected_ids)) for p in pairs] == [
        ("p", PairKind.SHORTEST_LONGEST, 6, 12),
    ]  # fmt: skip
    assert dropped == {"never-right": 1, "not-shorter": 1}  # q has no right trace, r has but one


def test_rollouts_agree_with_the_most_frequent_answer():
    assert agreement(["4", "5", "5", None, None, None]) == [False, True, True, False, False, False]
    assert agreement(["4", "5"]) == [True, False]  # the first of two equally frequent ones
    assert agreement([None, None]) == [False, False]
    assert agreement(["", " ", "4"]) == [False, False, True]
