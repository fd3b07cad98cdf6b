from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from reasoning.pruning import PruningPlan, pruned_trace
from reasoning.records import OptimisedTrace, Trace, Verdict
from reasoning.token_ids import TokenIds

RIGHT, WRONG = [True] * 8, [True] * 4 + [False] * 4  # 4 of 8 is not more than T = 0.5


def new_plan(ends: Sequence[int], proposed: Sequence[int] | None = None) -> PruningPlan:
    trace = Trace(
        problem_id="p",
        sample=0,
        token_ids=TokenIds(range(ends[-1] + 5)),
        text="",
        truncated=False,
        verdict=Verdict.RIGHT,
    )
    return PruningPlan(trace, ends, 8, 0.5, proposed)


def play(pruning: PruningPlan, outcomes: Iterable[Sequence[bool]]) -> list[TokenIds]:
    """Feeds `outcomes`, one entry per proposed segment, to the plan; returns the prefixes that it asked for."""
    prefixes, sample = [], iter(outcomes)
    current: Sequence[bool] = ()
    while ranges := pruning.next_ranges():
        (drawn,) = ranges
        assert pruning.next_ranges() == []  # one at a time: the next depends on it
        if drawn.first == 0:
            current = next(sample)
            prefixes.append(pruning.without(drawn.prefix))
        pruning.add(drawn, current[drawn.first : drawn.first + drawn.count])
    return prefixes


def test_removal_stands_if_the_rest_passes_else_is_rolled_back():
    pruning = new_plan([2, 4, 6, 8])
    without_1, without_2 = play(pruning, [WRONG, RIGHT])
    assert without_1 == TokenIds((0, 1, 4, 5, 6, 7))
    assert without_2 == TokenIds((0, 1, 2, 3, 6, 7))  # segment 1 is back
    assert not pruning.is_open
    assert pruning.removed == (2,)
    assert pruning.prefix() == TokenIds((0, 1, 2, 3, 6, 7))


def test_removals_are_cumulative():
    assert play(new_plan([1, 2, 3, 4]), [RIGHT, RIGHT])[1] == TokenIds((0, 3))


def test_only_proposed_segments_are_removed():
    assert play(new_plan([1, 2, 3, 4], proposed=[0, 2, 3, 9]), [RIGHT]) == [TokenIds((0, 1, 3))]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.data())
def test_first_and_last_segments_stay_in_order(lengths: list[int], data: st.DataObject):
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    pruning = new_plan(ends)
    play(pruning, (data.draw(st.sampled_from([RIGHT, WRONG])) for _ in lengths))
    kept = pruning.prefix()
    assert list(kept) == sorted(set(kept))
    assert kept[: lengths[0]] == TokenIds(range(lengths[0]))
    assert kept[-lengths[-1] :] == TokenIds(range(ends[-1] - lengths[-1], ends[-1]))
    assert len(pruning.removed) <= max(0, len(lengths) - 2)


def test_segment_is_restored_if_kept_text_becomes_unlikely():
    pruning = new_plan([1, 2, 4, 5, 7])  # segments (0), (1), (2 3), (4), (5 6)
    play(pruning, [RIGHT, RIGHT, WRONG])
    assert pruning.removed == (1, 2)
    assert pruning.prefix() == TokenIds((0, 4, 5, 6))
    whole = [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    assert pruning.first_unnatural(whole, [-1.0, -3.0, -4.0, -1.0], 3.0) is None  # exactly 3 nats is still natural
    assert pruning.first_unnatural(whole, [-1.0, -1.0, -1.0, -4.1], 3.0) == 4
    pruning.restore_before(4)
    assert pruning.removed == (1,)
    assert pruning.prefix() == TokenIds((0, 2, 3, 4, 5, 6))
    # A token that was already unlikely in the full trace does not count.
    assert pruning.first_unnatural([-1, -1, -1, -9, -1, -1, -1], [-1, -1, -9, -1, -1, -1], 3.0) is None
    assert pruning.first_unnatural(whole, [-1, -9, -1, -1, -1, -1], 3.0) == 2
    pruning.restore_before(2)
    assert pruning.prefix() == pruning.whole_prefix() == TokenIds(range(7))


def test_pruned_trace_needs_confirming_completions():
    pruning = new_plan([2, 4, 6])
    play(pruning, [RIGHT])
    row = OptimisedTrace(problem_id="p", sample=0, token_ids=TokenIds((0, 1, 2, 3, 4, 5, 90, 91)))
    right, wrong = (TokenIds((90, 91)), Verdict.RIGHT), (TokenIds((92,)), Verdict.WRONG)
    assert pruned_trace(row, pruning, [right, wrong], 0.5) == row  # one of two is not more than half
    assert pruned_trace(row, pruning, [wrong, wrong], 0.0) == row
    pruned = pruned_trace(row, pruning, [right, right, wrong], 0.5)
    assert (pruned.token_ids, pruned.removed) == (TokenIds((0, 1, 4, 5, 90, 91)), (1,))


def test_pruned_trace_must_be_shorter():
    pruning = new_plan([2, 4, 6])
    play(pruning, [RIGHT])
    row = OptimisedTrace(problem_id="p", sample=0, token_ids=TokenIds((0, 1, 2, 3, 4, 5, 90)))
    assert pruned_trace(row, pruning, [(TokenIds((90, 91, 92)), Verdict.RIGHT)], 0.5) == row
