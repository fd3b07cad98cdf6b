"""From examined completions to the figures of a report.

Knows: scores, intervals, cost formulas. Must not know: how completions were drawn, or what a report looks like.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from reasoning.cost import Shape, aes, efficiency
from reasoning.records import ModelCall, Score, Verdict, completed
from reasoning.stats import Interval, mean_interval, paired_difference, paired_ratio, problem_means

Role = Literal["base", "method", "control"]


def calls_of(score: Score) -> tuple[ModelCall, ...]:
    """The requests that a completion took."""
    return score.calls or (ModelCall(prompt_tokens=score.prompt_tokens, tokens=score.tokens),)


def attention_flops(score: Score, shape: Shape) -> float:
    """Of the tokens that were generated."""
    return sum(shape.attention_flops(call.prompt_tokens, call.tokens) for call in calls_of(score))


def completed_by_both(scores: Sequence[Score], base: Sequence[Score]) -> tuple[list[Score], list[Score]]:
    """Those of completions that there are, of problems that have some on both sides."""
    sides = completed(scores), completed(base)
    common = {score.problem_id for score in sides[0]} & {score.problem_id for score in sides[1]}
    first, second = ([score for score in side if score.problem_id in common] for side in sides)
    return first, second


def accuracy_by_problem(scores: Sequence[Score]) -> dict[str, float]:
    return problem_means((score.problem_id, float(score.verdict is Verdict.RIGHT)) for score in scores)


def tokens_by_problem(scores: Sequence[Score]) -> dict[str, float]:
    return problem_means((score.problem_id, float(score.tokens)) for score in completed(scores))


def model_figures(name: str, role: Role, scores: Sequence[Score], shape: Shape) -> dict[str, Any]:
    """One entry of the report's `models`: fractions and tokens, intervals clustered by problem."""
    levels = sorted({score.level for score in scores if score.level is not None})
    return {
        "name": name,
        "role": role,
        **_core(scores),
        "attention_flops": float(np.mean([attention_flops(score, shape) for score in completed(scores)])),
        "by_level": {str(level): _core([s for s in scores if s.level == level]) for level in levels},
    }


def _core(scores: Sequence[Score]) -> dict[str, Any]:
    accuracy, accuracy_ci = _mean(accuracy_by_problem(scores))
    tokens, tokens_ci = _mean(tokens_by_problem(scores))
    return {
        "accuracy": accuracy,
        "accuracy_ci": list(accuracy_ci),
        "mean_tokens": tokens,
        "mean_tokens_ci": list(tokens_ci),
        "truncated": sum(score.truncated for score in scores) / len(scores),
        "failed": 1 - len(completed(scores)) / len(scores),
        "problems": len({score.problem_id for score in scores}),
        "samples": len(scores),
    }


def _mean(by_problem: dict[str, float]) -> tuple[float, Interval]:
    if not by_problem:
        return math.nan, (math.nan, math.nan)
    return mean_interval(np.array(list(by_problem.values())))


def comparison(name: str, scores: Sequence[Score], against: str, base: Sequence[Score]) -> dict[str, Any]:
    """One entry of the report's `comparisons`: paired over the same problems."""
    accuracy, accuracy_0 = accuracy_by_problem(scores), accuracy_by_problem(base)
    tokens, tokens_0 = map(tokens_by_problem, completed_by_both(scores, base))
    delta, delta_ci = paired_difference(accuracy, accuracy_0)
    ratio, ratio_ci = paired_ratio(tokens, tokens_0)
    means = [sum(values.values()) / len(values) for values in (accuracy, tokens, accuracy_0, tokens_0)]
    return {
        "model": name,
        "against": against,
        "accuracy_delta": delta,
        "accuracy_delta_ci": list(delta_ci),
        "tokens_ratio": ratio,
        "tokens_ratio_ci": list(ratio_ci),
        "efficiency": efficiency(*means),
        "aes": aes(*means),
    }


def by_base_correctness(scores: Sequence[Score], base: Sequence[Score], shape: Shape) -> dict[str, float | None]:
    """The method on what the base had right and on what it had wrong (section B, metrics). Fractions.

    Both models' samples must be independent. A problem weighs in each group by how many of the base's samples fall
    into it, and is then compared with the base's *other* samples of it: those that chose the group are no fair measure
    (right traces are shorter, so a second draw of the base itself would seem longer there). `attention_flops_right` and
    `_wrong`: change of attention FLOPs. `wrong_to_right`: accuracy where the base was wrong; `wrong_to_right_of_base`:
    the same for another sample of the base, which is right there now and then by chance. None where a group is empty
    or no problem has several samples.
    """

    scores, base = completed_by_both(scores, base)

    def flops(score: Score) -> float:
        return attention_flops(score, shape)

    def is_right(score: Score) -> float:
        return float(score.verdict is Verdict.RIGHT)

    right = [score for score in base if is_right(score)]
    wrong = [score for score in base if not is_right(score)]
    new_flops, new_accuracy = _mean_by_problem(scores, flops), accuracy_by_problem(scores)
    changes = {
        f"attention_flops_{name}": _change([new_flops[s.problem_id] for s in group], _of_the_others(base, group, flops))
        for name, group in (("right", right), ("wrong", wrong))
    }
    return changes | {
        "wrong_to_right": _average([new_accuracy[score.problem_id] for score in wrong]),
        "wrong_to_right_of_base": _average(_of_the_others(base, wrong, is_right)),
    }


def _mean_by_problem(scores: Sequence[Score], value: Callable[[Score], float]) -> dict[str, float]:
    return problem_means((score.problem_id, value(score)) for score in scores)


def _of_the_others(base: Sequence[Score], group: Sequence[Score], value: Callable[[Score], float]) -> list[float]:
    """For each score in `group` the mean value of its problem's other samples; nothing where it has none."""
    of_problem: dict[str, list[float]] = defaultdict(list)
    for score in base:
        of_problem[score.problem_id].append(value(score))
    return [
        (sum(values) - value(score)) / (len(values) - 1)
        for score in group
        if len(values := of_problem[score.problem_id]) > 1
    ]


def _change(new: Sequence[float], old: Sequence[float]) -> float | None:
    return sum(new) / sum(old) - 1 if len(new) == len(old) and sum(old) else None


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def break_even(build_flops: float, scores: Sequence[Score], base: Sequence[Score], shape: Shape) -> dict[str, Any]:
    """How many queries pay back what building the model cost; None where a query has not become surely cheaper.

    The interval of `queries` follows from that of the saving, paired over the same problems.
    """

    scores, base = completed_by_both(scores, base)

    def flops(score: Score) -> float:
        return sum(shape.forward_flops(call.prompt_tokens, 0, call.tokens) for call in calls_of(score))

    saved, (low, high) = paired_difference(_mean_by_problem(base, flops), _mean_by_problem(scores, flops))
    return {
        "build_flops": build_flops,
        "saved_flops_per_query": saved,
        "saved_flops_per_query_ci": [low, high],
        "queries": build_flops / saved if low > 0 else None,
        "queries_ci": [build_flops / high, build_flops / low] if low > 0 else None,
    }
