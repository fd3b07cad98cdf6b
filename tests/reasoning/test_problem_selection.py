"""Properties of a draw: deterministic, nested, proportional, independent of the order of rows."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor

from hypothesis import given
from hypothesis import strategies as st

from reasoning.problem_selection import Candidate, ProblemSelection, selection_order
from reasoning.records import Problem, TextPart

STRATA = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pqr"), st.sampled_from("12345")), max_size=120)
SEEDS = st.integers(min_value=0, max_value=99)


def candidates(strata: Sequence[tuple[str, ...]], draw: ProblemSelection) -> list[Candidate]:
    texts = [f"{index}?" for index in range(len(strata))]
    return [
        Candidate(draw.key(text), group, Problem(id=text, prompt=(TextPart(text=text),), answer="1"))
        for text, group in zip(texts, strata, strict=True)
    ]


def assert_in_proportion(groups: Sequence[str]) -> None:
    """Every prefix contains each group's proportional share, rounded up or down."""
    whole, taken = Counter(groups), Counter[str]()
    for length, group in enumerate(groups, start=1):
        taken[group] += 1
        for name, size in whole.items():
            share = Fraction(length * size, len(groups))
            assert floor(share) <= taken[name] <= ceil(share), (length, name)


@given(STRATA, SEEDS)
def test_every_prefix_has_the_proportions_of_the_whole(strata: list[tuple[str, ...]], seed: int):
    order = selection_order(candidates(strata, ProblemSelection(seed, False)))
    assert_in_proportion([candidate.strata[0] for candidate in order])
    for subset in {candidate.strata[0] for candidate in order}:
        inside = [candidate for candidate in order if candidate.strata[0] == subset]
        assert_in_proportion([candidate.strata[1] for candidate in inside])
        for subject in {candidate.strata[1] for candidate in inside}:
            assert_in_proportion([one.strata[2] for one in inside if one.strata[1] == subject])


@given(STRATA, SEEDS, st.randoms())
def test_draw_is_independent_of_row_order(strata: list[tuple[str, ...]], seed: int, random: object):
    draw = ProblemSelection(seed, False)
    rows = candidates(strata, draw)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert draw.select(shuffled) == draw.select(rows)


@given(STRATA, SEEDS)
def test_backward_draws_are_proportional_and_overlap_late(strata: list[tuple[str, ...]], seed: int):
    forwards, backwards = ProblemSelection(seed, False), ProblemSelection(seed, True)
    rows = candidates(strata, forwards)
    first, last = forwards.select(rows), backwards.select(rows)
    assert last == first[::-1]
    group = {candidate.problem.id: candidate.strata[0] for candidate in rows}
    assert_in_proportion([group[problem.id] for problem in last])


def test_rows_are_equally_likely_across_seeds():
    rows = [("", "", "")] * 40
    drawn = [
        ProblemSelection(seed, False).select(candidates(rows, ProblemSelection(seed, False)))[:10]
        for seed in range(400)
    ]
    assert len({tuple(problem.id for problem in draw) for draw in drawn}) == 400
    often = Counter(problem.id for draw in drawn for problem in draw)
    # Each of 40 rows is in 400 x 10 / 40 = 100 draws, give or take: standard deviation sqrt(400 x 1/4 x 3/4) = 8.7.
    assert len(often) == 40
    assert all(60 < times < 140 for times in often.values())


def test_small_draws_from_the_seven_math_subjects():
    # The training set of MATH: 1744 algebra, 771 counting, 870 geometry, 1295, 869, 1205, 746; 7500 in all.
    sizes = {
        "algebra": 1744,
        "counting": 771,
        "geometry": 870,
        "intermediate": 1295,
        "number": 869,
        "prealgebra": 1205,
        "precalculus": 746,
    }
    draw = ProblemSelection(3, False)
    rows = candidates([(name, "", str(n % 5)) for name, size in sizes.items() for n in range(size)], draw)
    subset = {candidate.problem.id: candidate.strata[0] for candidate in rows}
    taken = draw.select(rows)
    counts = Counter(subset[problem.id] for problem in taken[:2000])
    for name, size in sizes.items():
        assert abs(counts[name] - 2000 * size / 7500) < 1
    assert len(Counter(subset[problem.id] for problem in taken[:14])) == 7


def test_files_are_read_in_an_order_given_by_the_seed():
    names = [f"file-{n}" for n in range(20)]
    orders = {tuple(ProblemSelection(seed, False).order(names)) for seed in range(20)}
    assert len(orders) == 20
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert ProblemSelection(1, True).order(names) == ProblemSelection(1, False).order(names)[::-1]
