"""Statistics, cost and evaluation figures, each expectation worked out by hand."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.cost import Shape, aes, efficiency
from reasoning.evaluation import break_even, by_base_correctness, comparison, model_figures, score_frame
from reasoning.records import ModelCall, Score, Usage, Verdict
from reasoning.stats import (
    mean_interval,
    paired_difference,
    paired_ratio,
    partial_correlation,
    problem_means,
    proportion,
    proportion_difference,
    rank_correlation,
    share_interval,
)

T_2 = 4.302652729911275  # the 97.5 % quantile of Student's t with two degrees of freedom


def test_mean_and_interval_over_three_problems():
    mean, (low, high) = mean_interval(np.array([1.0, 2.0, 3.0]))
    # standard deviation 1, so the half width is t / sqrt(3)
    assert mean == 2
    assert (low, high) == pytest.approx((2 - T_2 / math.sqrt(3), 2 + T_2 / math.sqrt(3)))


def test_samples_of_one_problem_count_once():
    samples = pd.DataFrame({"problem_id": ["b", "a", "b"], "correct": [True, True, False]})
    assert problem_means(samples, "correct").to_dict() == {"b": 0.5, "a": 1.0}
    assert list(problem_means(samples, "correct").index) == ["b", "a"]


def test_without_problems_there_are_no_figures():
    none = pd.Series(dtype=float)
    assert all(math.isnan(value) for value in (mean_interval(none)[0], paired_difference({}, none)[0]))
    assert all(math.isnan(value) for value in paired_ratio({}, {})[1])


def test_a_single_problem_tells_nothing_about_the_spread():
    assert mean_interval(np.array([0.7])) == (0.7, (-math.inf, math.inf))


def test_the_paired_difference_is_taken_problem_by_problem():
    difference, (low, high) = paired_difference({"a": 3, "b": 5, "c": 4}, {"c": 3, "b": 4, "a": 2})
    assert (difference, low, high) == (1, 1, 1)  # each problem differs by exactly 1


def test_the_ratio_and_its_linearised_interval():
    ratio, (low, high) = paired_ratio({"a": 1, "b": 2, "c": 3}, {"a": 4, "b": 4, "c": 4})
    # 6/12; residuals new − 0.5·base = −1, 0, 1 over the base mean 4: standard deviation 1/4
    half = T_2 * 0.25 / math.sqrt(3)
    assert (ratio, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


@given(st.dictionaries(st.text(), st.floats(1, 1000), min_size=2), st.floats(0.01, 10))
def test_scaling_every_problem_scales_the_ratio_without_doubt(base: dict[str, float], factor: float):
    ratio, (low, high) = paired_ratio({name: factor * value for name, value in base.items()}, base)
    assert (ratio, low, high) == pytest.approx((factor, factor, factor))


def test_rank_correlations_by_hand():
    first, second, fixed = [1, 2, 3, 4, 5], [20, 10, 40, 30, 50], [1, 3, 2, 4, 5]
    rho, (low, high) = rank_correlation(first, second)
    assert rho == pytest.approx(0.8)  # 1 - 6·4 / (5·24)
    assert (low, high) == pytest.approx((-0.457, 0.991), abs=1e-3)  # tanh(1.0986 ± 1.96·√(1.32 / 2))
    assert partial_correlation(first, second, fixed) == pytest.approx(0.35 / (0.19 * 0.75) ** 0.5)
    assert rank_correlation(first, [5, 4, 3, 2, 1]) == (pytest.approx(-1.0), (pytest.approx(-1.0),) * 2)


def test_what_a_fixed_twin_leaves_is_not_a_number():
    assert math.isnan(partial_correlation([1, 2, 3, 4], [2, 1, 4, 3], [10, 20, 30, 40]))
    assert math.isnan(partial_correlation([2, 1, 4, 3], [1, 2, 3, 4], [10, 20, 30, 40]))


def test_attention_flops_by_hand():
    # 4 · 2 layers · width 8 · positions (4 + 5) after three prompt tokens
    assert Shape(parameters=100, layers=2, attention_width=8).attention_flops(prompt=3, new=2) == 4 * 2 * 8 * 9


def test_forward_and_training_flops_by_hand():
    shape = Shape(parameters=100, layers=1, attention_width=1)
    # 2 per weight for 5−2 uncached and 4 generated tokens; attention at positions 3…9: 4 · 42
    assert shape.forward_flops(prompt=5, cached=2, generated=4) == 2 * 100 * 7 + 4 * 42


def test_training_flops_by_hand():
    shape = Shape(parameters=100, layers=2, attention_width=3)
    # two texts, of 4 and 1 tokens: weights 2 · 100 · 5; attention 4 · 2 · 3 · (1+2+3+4 + 1)
    weights, attention = 1000, 264
    assert shape.forward_flops(4, 0, 0) + shape.forward_flops(1, 0, 0) == weights + attention
    # forward, gradients of activations, gradients of weights; attention has none of these, and two of those
    assert shape.training_flops([4, 1]) == 3 * weights + 3 * attention
    assert shape.training_flops([4, 1], gradient_checkpointing=True) == 4 * weights + 4 * attention
    assert shape.training_flops([4, 1], with_reference=True) == 4 * weights + 4 * attention
    # frozen weights have no gradients, attention's operands have
    assert shape.training_flops([4, 1], are_weights_frozen=True) == 2 * weights + 3 * attention
    assert shape.training_flops([4, 1], are_weights_frozen=True, gradient_checkpointing=True, with_reference=True) == (
        4 * weights + 5 * attention
    )
    assert shape.training_flops([]) == 0


def test_attentions_share_of_training_grows_with_length():
    # Of the shape of Qwen2.5-1.5B: 12 · L·d·T²/2 beside 6 · N·T, so 28 · 1536 · T / N, N = 1,543,714,304
    shape = Shape(parameters=1_543_714_304, layers=28, attention_width=12 * 128)
    for tokens, share in ((4_500, 0.13), (9_200, 0.26)):
        weights = 6 * shape.parameters * tokens
        assert shape.training_flops([tokens]) / weights - 1 == pytest.approx(share, abs=0.01)


def test_efficiency_and_aes():
    assert efficiency(0.9, 50, 0.6, 100) == pytest.approx(3.0)
    assert aes(0.9, 50, 0.6, 100) == pytest.approx(0.5 + 3 * 0.5)
    assert aes(0.3, 50, 0.6, 100) == pytest.approx(0.5 - 5 * 0.5)
    assert efficiency(0.5, 50, 0.0, 100) is None
    assert aes(0.5, 50, 0.0, 100) is None


def without(problem: str, level: int = 1) -> Score:
    """The score of a completion that failed."""
    return Score(
        problem_id=problem,
        level=level,
        sample=9,
        prompt_tokens=3,
        tokens=0,
        truncated=False,
        verdict=Verdict.NO_COMPLETION,
    )


SHAPE = Shape(parameters=10, layers=1, attention_width=1)
UNIT = Shape(parameters=1, layers=1, attention_width=1)


def frame(scores: Sequence[Score], shape: Shape = SHAPE) -> pd.DataFrame:
    return score_frame(scores, shape)


def test_a_completion_that_is_not_there_is_not_right_and_has_no_length():
    scores = frame([score("a", 10, True), without("a"), score("b", 30, True), without("c", level=2)], UNIT)
    figures = model_figures("m", "base", scores)
    # accuracy: a ½, b 1, c 0; tokens: a 10, b 30
    assert (figures["accuracy"], figures["mean_tokens"], figures["failed"]) == (0.5, 20, 0.5)
    assert (figures["problems"], figures["samples"]) == (3, 4)
    # attention after 3 prompt tokens, of completed rows: 4·10·(4 + 13)/2 and 4·30·(4 + 33)/2
    assert figures["attention_flops"] == (340 + 2220) / 2
    assert math.isnan(figures["by_level"]["2"]["mean_tokens"])
    base = frame([score("a", 20, True), score("b", 30, False), score("c", 100, True)], UNIT)
    pair = comparison("m", scores, "base", base)
    # accuracy over a, b and c: ½ − ⅔; tokens over a and b, which both have: (10 + 30) / (20 + 30)
    assert pair["accuracy_delta"] == pytest.approx(0.5 - 2 / 3)
    assert pair["tokens_ratio"] == pytest.approx(0.8)
    even = break_even(100.0, scores, base)
    # a: 2·13 + 4·13·14/2 against 2·23 + 4·23·24/2; b alike
    assert even["saved_flops_per_query"] == pytest.approx(((46 + 1104) - (26 + 364)) / 2)
    assert by_base_correctness(scores, base)["wrong_to_right"] == 1


def test_a_model_without_any_completion_has_an_accuracy_and_no_lengths():
    scores, base = frame([without("a"), without("b")]), frame([score("a", 4, True), score("b", 4, False)])
    pair = comparison("m", scores, "base", base)
    assert pair["accuracy_delta"] == -0.5
    assert math.isnan(pair["tokens_ratio"])
    assert by_base_correctness(scores, base)["wrong_to_right"] is None
    assert break_even(7.0, scores, base)["queries"] is None
    assert math.isnan(model_figures("m", "base", scores)["attention_flops"])


def score(
    problem: str,
    tokens: int,
    right: bool,
    level: int = 1,
    truncated: bool = False,
    subject: str | None = None,
    answer_tokens: int | None = None,
) -> Score:
    return Score(
        problem_id=problem,
        level=level,
        subject=subject,
        sample=0,
        prompt_tokens=3,
        tokens=tokens,
        answer_tokens=answer_tokens,
        truncated=truncated,
        verdict=Verdict.RIGHT if right else Verdict.WRONG,
    )


def test_a_models_figures():
    scores = [score("a", 10, True), score("a", 20, False), score("b", 30, True, level=2, truncated=True)]
    figures = model_figures("m", "base", frame(scores))
    # problem a: accuracy ½, 15 tokens; problem b: 1, 30 tokens
    assert (figures["accuracy"], figures["mean_tokens"]) == (0.75, 22.5)
    assert (figures["problems"], figures["samples"], figures["truncated"]) == (2, 3, pytest.approx(1 / 3))
    assert (figures["by_level"]["1"]["accuracy"], figures["by_level"]["2"]["mean_tokens"]) == (0.5, 30)
    assert figures["by_subject"] == {}


def test_a_completion_cut_at_a_budget_needs_its_answer_before_the_cut():
    scores = frame(
        [
            score("a", 10, True, answer_tokens=8),
            score("a", 20, True, answer_tokens=8),
            score("b", 30, True),  # where the answer ends is unknown: all is needed
            score("b", 30, False, truncated=True, answer_tokens=5),
        ]
    )
    at = model_figures("m", "base", scores, [5, 8, 20, 30])["by_budget"]
    assert [at[budget]["accuracy"] for budget in ("5", "8", "20", "30")] == [0, 0.5, 0.5, 0.75]
    # a: 8 of 10 and of 20 tokens; b: 8 and 8. At 20: 10, 20, 20, 20.
    assert [at[budget]["mean_tokens"] for budget in ("5", "8", "20", "30")] == [5, 8, 17.5, 22.5]
    assert [at[budget]["truncated"] for budget in ("5", "8", "20", "30")] == [1, 1, 0.5, 0.25]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.booleans()), min_size=1),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_a_larger_budget_never_costs_accuracy(rows: list[tuple[int, int, bool]], one: int, other: int):
    scores = frame([score(f"p{n}", max(a, b), right, answer_tokens=min(a, b)) for n, (a, b, right) in enumerate(rows)])
    low, high = sorted((one, other))
    at = model_figures("m", "base", scores, [low, high])["by_budget"]
    assert at[str(low)]["accuracy"] <= at[str(high)]["accuracy"]
    assert at[str(low)]["mean_tokens"] <= at[str(high)]["mean_tokens"] <= high
    assert at[str(low)]["truncated"] >= at[str(high)]["truncated"]


def test_an_interval_of_few_problems_is_wilsons():
    # 30 of 30 right, Wilson with t(29) = 2.0452: 30 / (30 + 2.0452²)
    assert share_interval(np.ones(30), 120) == (1.0, (pytest.approx(0.8776, abs=1e-4), pytest.approx(1.0)))
    # 15 of 30, one sample each: the variance of the mean is 0.25 / 29, that of 29 independent samples
    half = 2.0452 * math.sqrt(0.25 / 29 + 2.0452**2 / (4 * 29**2)) / (1 + 2.0452**2 / 29)
    mean, (low, high) = share_interval(np.array([0.0, 1.0] * 15), 30)
    assert (mean, low, high) == (0.5, pytest.approx(0.5 - half, abs=1e-4), pytest.approx(0.5 + half, abs=1e-4))
    # all problems half right, of 4 samples each: no variance between problems, 120 independent samples
    assert share_interval(np.full(30, 0.5), 120)[1][0] == pytest.approx(0.4091, abs=1e-3)
    for count in range(2, 100):
        assert share_interval(np.zeros(count), count)[1][0] == 0
        assert share_interval(np.ones(count), count)[1][1] == 1
    many = np.array([0.0, 1.0] * 50)
    assert share_interval(many, 100) == mean_interval(many)


@given(st.lists(st.sampled_from([0, 0.25, 0.5, 0.75, 1]), min_size=2, max_size=99))
def test_wilsons_interval_holds_the_mean_and_stays_within_bounds(shares: list[float]):
    mean, (low, high) = share_interval(np.array(shares), 4 * len(shares))
    assert -1e-12 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1 + 1e-12
    assert high - low > 0


def test_figures_by_subject_are_clustered_by_problem():
    scores = [
        *(score("a", 10, right, subject="algebra") for right in (True, False)),
        *(score("b", tokens, True, subject="algebra") for tokens in (20, 40)),
        score("c", 50, False, subject="number theory"),
        score("d", 70, True),
    ]
    figures = model_figures("m", "base", frame(scores))
    assert list(figures["by_subject"]) == ["algebra", "number theory"]
    algebra = figures["by_subject"]["algebra"]
    # a: accuracy ½, 10 tokens; b: 1, 30 tokens; t(1 degree, 0.975) = 12.706 times √(2·¼²) / √2
    assert (algebra["accuracy"], algebra["mean_tokens"], algebra["problems"], algebra["samples"]) == (0.75, 20, 2, 4)
    # Wilson: variance of the mean 0.0625, so 0.75 × 0.25 / 0.0625 = 3 independent samples; t of one degree is 12.706.
    assert algebra["accuracy_ci"] == pytest.approx([0.01027, 0.99885], abs=1e-4)
    assert figures["by_subject"]["number theory"]["accuracy"] == 0
    json.dumps(algebra)  # plain numbers


def test_the_calls_of_a_dialogue_cost_one_by_one():
    calls = (ModelCall(prompt_tokens=3, tokens=2), ModelCall(prompt_tokens=6, tokens=1))
    row = score("a", 3, True).model_copy(update={"calls": calls})
    # attention: 4·(4 + 5) + 4·7; whole queries: 2·10 per token of 5 and 7, attention 4·(1+…+5) + 4·(1+…+7)
    figures = frame([row]).iloc[0]
    assert (figures["attention_flops"], figures["query_flops"]) == (36 + 28, 20 * 12 + 4 * 15 + 4 * 28)


def test_a_comparison():
    base = frame([score("a", 40, True), score("b", 60, False)])
    new = frame([score("a", 10, True), score("b", 40, True)])
    pair = comparison("new", new, "base", base)
    assert (pair["accuracy_delta"], pair["tokens_ratio"]) == (0.5, 0.5)
    assert pair["efficiency"] == pytest.approx((1 / 0.5) / 0.5)
    assert pair["aes"] == pytest.approx(0.5 + 3 * 1.0)


def test_usage_adds_up():
    assert Usage(generated_tokens=1, seconds=0.5) + Usage(generated_tokens=2, flops=3) == Usage(
        generated_tokens=3, seconds=0.5, flops=3
    )


def test_right_and_wrong_answers_of_the_base_are_told_apart():
    base = frame([score("a", 4, True), score("a", 4, False), score("b", 6, False), score("b", 6, False)])
    new = frame([score("a", 2, True), score("a", 2, True), score("b", 6, True), score("b", 6, False)])
    figures = by_base_correctness(new, base)
    # Attention after 3 prompt tokens: 2 new 4·(4+5) = 36, 4 new 4·(4+5+6+7) = 88, 6 new 4·(4+…+9) = 156.
    assert figures["attention_flops_right"] == pytest.approx(36 / 88 - 1)
    assert figures["attention_flops_wrong"] == pytest.approx((36 + 156 + 156) / (88 + 156 + 156) - 1)
    # Wrong at first: once a (now always right), twice b (now right in one of two).
    assert figures["wrong_to_right"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    # Another sample of the base would have been right for a (1 of 1), never for b (0 of 1).
    assert figures["wrong_to_right_of_base"] == pytest.approx((1 + 0 + 0) / 3)


def test_nothing_is_said_of_an_empty_group():
    figures = by_base_correctness(frame([score("a", 2, True)]), frame([score("a", 4, True)]))
    assert figures["attention_flops_right"] is None  # the base has no other sample of it
    assert figures["attention_flops_wrong"] is None
    assert figures["wrong_to_right"] is None
    assert figures["wrong_to_right_of_base"] is None


def test_a_second_draw_of_the_base_has_changed_nothing():
    """Right traces are shorter; that alone must not look like a change."""
    rng = np.random.default_rng(0)

    def draw() -> pd.DataFrame:
        right = rng.random((3000, 4)) < 0.7
        rows = [(f"p{p}", bool(right[p, k])) for p in range(3000) for k in range(4)]
        return frame([score(problem, 50 if is_right else 75, is_right) for problem, is_right in rows])

    figures = by_base_correctness(draw(), draw())
    assert figures["attention_flops_right"] == pytest.approx(0, abs=0.03)
    assert figures["attention_flops_wrong"] == pytest.approx(0, abs=0.03)
    assert figures["wrong_to_right"] == pytest.approx(figures["wrong_to_right_of_base"], abs=0.03)


def test_break_even_is_build_cost_over_saving():
    base = frame([score("a", 4, True), score("b", 4, True)])
    new = frame([score("a", 2, True), score("b", 3, True)])
    # "a": 2·10·2 for two tokens fewer, and their attention: positions 6 and 7 after 3 + 2 tokens are saved: 4·13 = 52.
    # "b": 2·10 and position 7: 4·7 = 28. Their mean is 70; t(1 degree, 0.975) = 12.706 times √(22² + 22²) / √2 = 22.
    found = break_even(700, new, base)
    assert (found["build_flops"], found["saved_flops_per_query"]) == (700, pytest.approx(70))
    assert found["saved_flops_per_query_ci"] == pytest.approx([70 - 12.706 * 22, 70 + 12.706 * 22], rel=1e-3)
    assert found["queries"] is None  # with two problems the saving is not sure


def test_a_sure_saving_pays_back_within_its_interval():
    base = frame([score(f"p{n}", 4, True) for n in range(8)])
    new = frame([score(f"p{n}", 2 + n % 2, True) for n in range(8)])
    found = break_even(700, new, base)
    # Savings of 92 and 48, four each: mean 70, deviation 22·√(8/7), t(7, 0.975) = 2.3646.
    half = 2.3646 * 22 * (8 / 7) ** 0.5 / 8**0.5
    assert found["queries"] == pytest.approx(10)
    assert found["queries_ci"] == pytest.approx([700 / (70 + half), 700 / (70 - half)], rel=1e-3)
    assert break_even(700, base, new)["queries"] is None


def test_how_certain_a_share_is_and_that_it_rose():
    """Wilson's interval of 0 of 5 ends at 1.96²/(5 + 1.96²); Newcombe (1998) prints 9 of 10 against 3 of 10."""
    assert proportion(0, 5) == pytest.approx((0, 1.96**2 / (5 + 1.96**2)), abs=1e-4)
    assert proportion_difference(9, 3, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)
    low, high = proportion_difference(3, 3, 5)
    assert low == pytest.approx(-high)
