import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.dto import (
    first_wrong,
    last_failed_probe,
    preference_pairs,
    scan_of,
    shortest_longest_pairs,
    shortest_right,
)
from reasoning.records import OptimisedTrace, PairKind, Probe, Scan, Trace, Verdict
from reasoning.sampling_plans import ForwardScanPlan
from reasoning.token_ids import TokenIds


def trace(problem: str = "p", sample: int = 0, length: int = 10, verdict: Verdict = Verdict.RIGHT) -> Trace:
    return Trace(
        problem_id=problem,
        sample=sample,
        token_ids=TokenIds(range(length)),
        text="",
        truncated=False,
        verdict=verdict,
    )


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_scan_holds_the_probes_up_to_the_first_passing_prefix(right_counts: list[int]):
    ends = [3 * (index + 1) for index in range(len(right_counts))]
    plan = ForwardScanPlan(len(ends), 8, 0.5)
    while ranges := plan.next_ranges():
        for drawn in ranges:
            right = right_counts[drawn.prefix]
            plan.add(drawn, ([True] * right + [False] * (8 - right))[drawn.first : drawn.first + drawn.count])
    scan = scan_of(trace(length=3 * len(right_counts)), ends, plan)
    expected = next((index for index, right in enumerate(right_counts) if right > 4), None)
    assert (scan.crossing, list(scan.ends)) == (expected, ends)
    probed = len(ends) if expected is None else expected + 1
    assert [probe.segment for probe in scan.probes] == list(range(probed))
    assert expected is None or (scan.cut, list(scan.kept_ends)) == (ends[expected], ends[:probed])
    assert all(probe.right <= right_counts[probe.segment] for probe in scan.probes)


def test_last_failed_probe_before_the_crossing():
    probes = tuple(Probe(segment=index, right=right, total=5) for index, right in ((0, 0), (1, 5), (3, 5)))
    crossed = Scan(problem_id="p", sample=0, ends=(4, 10, 12, 15), probes=probes, crossing=1)
    refused = last_failed_probe(crossed)
    assert refused is not None
    assert (refused.segment, refused.right) == (0, 0)
    assert last_failed_probe(crossed.model_copy(update={"crossing": None})) is None  # it never crossed
    assert last_failed_probe(crossed.model_copy(update={"probes": probes[1:]})) is None  # it crossed at once


def ending(verdict: Verdict, *token_ids: int) -> tuple[TokenIds, Verdict]:
    return TokenIds(token_ids), verdict


def test_shortest_right_and_first_wrong():
    right, wrong, timeout = Verdict.RIGHT, Verdict.WRONG, Verdict.TIMEOUT
    endings = [ending(right, 1, 2, 3), ending(timeout, 9), ending(wrong, 4), ending(right, 5, 6), ending(right, 7, 8)]
    assert shortest_right(endings) == TokenIds((5, 6))
    assert first_wrong(endings) == TokenIds((4,))
    assert shortest_right([ending(wrong, 1)]) is None
    assert first_wrong([ending(right, 1), ending(Verdict.NO_ANSWER, 2), ending(timeout, 3)]) is None


def optimised(length: int, premature: int | None = None, sample: int = 0) -> OptimisedTrace:
    return OptimisedTrace(
        problem_id="p",
        sample=sample,
        token_ids=TokenIds(range(length)),
        premature_ids=None if premature is None else TokenIds(range(premature)),
    )


def build(rows: list[OptimisedTrace], traces: list[Trace], rejected: str = "original", max_length: int = 100):
    return preference_pairs({"p": TokenIds((90, 91))}, traces, rows, rejected, max_length)


def test_pairs_against_original_and_premature_stop():
    pairs, dropped = build([optimised(6, premature=3)], [trace(length=10)])
    assert [(p.kind, len(p.chosen_ids), len(p.rejected_ids)) for p in pairs] == [
        (PairKind.OPTIMISED, 6, 10),
        (PairKind.PREMATURE_STOP, 6, 3),
    ]
    assert pairs[0].prompt_ids == TokenIds((90, 91))
    assert not dropped


@pytest.mark.parametrize(("length", "max_length", "reason"), [(10, 100, "not-shorter"), (6, 11, "too-long")])
def test_unfit_pairs_are_dropped_by_reason(length: int, max_length: int, reason: str):
    # Two prompt tokens and ten rejected ones need a length of twelve.
    pairs, dropped = build([optimised(length)], [trace(length=10)], max_length=max_length)
    assert pairs == []
    assert dropped == {reason: 1}


def test_pair_with_empty_completion_is_dropped():
    pairs, dropped = build([optimised(0)], [trace(length=10)])
    assert (pairs, dropped) == ([], {"empty": 1})


def test_longest_trace_can_be_the_rejected_side():
    pairs, _ = build([optimised(6)], [trace(length=10), trace(sample=1, length=15)], rejected="longest")
    assert len(pairs[0].rejected_ids) == 15


def test_shortest_longest_pairs():
    traces = [
        trace(length=9),
        trace(sample=1, length=5, verdict=Verdict.WRONG),
        trace(sample=2, length=6),
        trace(sample=3, length=12, verdict=Verdict.WRONG),
        trace("q", length=4, verdict=Verdict.WRONG),
        trace("r", length=7),
    ]
    prompts = {name: TokenIds((token,)) for name, token in (("p", 90), ("q", 91), ("r", 92))}
    pairs, dropped = shortest_longest_pairs(prompts, traces, 100)
    assert [(p.problem_id, p.kind, len(p.chosen_ids), len(p.rejected_ids)) for p in pairs] == [
        ("p", PairKind.SHORTEST_LONGEST, 6, 12),
    ]
    assert dropped == {"never-right": 1, "not-shorter": 1}  # q has no right trace, r has but one
