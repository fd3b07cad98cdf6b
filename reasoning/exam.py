"""From examined completions to the figures of a report.

Knows: scores, intervals, cost formulas. Must not know: how completions were drawn, or what a report looks like.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from reasoning.cost import Shape, aes, efficiency
from reasoning.records import Score, Verdict
from reasoning.stats import Interval, mean_interval, paired_difference, paired_ratio, problem_means

Role = Literal["base", "method", "control"]


def accuracy_by_problem(scores: Sequence[Score]) -> dict[str, float]:
    return problem_means((score.problem_id, float(score.verdict is Verdict.RIGHT)) for score in scores)


def tokens_by_problem(scores: Sequence[Score]) -> dict[str, float]:
    return problem_means((score.problem_id, float(score.tokens)) for score in scores)


def model_figures(name: str, role: Role, scores: Sequence[Score], shape: Shape) -> dict[str, Any]:
    """One entry of the report's `models`: fractions and tokens, intervals clustered by problem."""
    levels = sorted({score.level for score in scores if score.level is not None})
    return {
        "name": name,
        "role": role,
        **_core(scores),
        "attention_flops": float(np.mean([shape.attention_flops(s.prompt_tokens, s.tokens) for s in scores])),
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
        "problems": len({score.problem_id for score in scores}),
        "samples": len(scores),
    }


def _mean(by_problem: dict[str, float]) -> tuple[float, Interval]:
    return mean_interval(np.array(list(by_problem.values())))


def comparison(name: str, scores: Sequence[Score], against: str, base: Sequence[Score]) -> dict[str, Any]:
    """One entry of the report's `comparisons`: paired over the same problems."""
    accuracy, accuracy_0 = accuracy_by_problem(scores), accuracy_by_problem(base)
    tokens, tokens_0 = tokens_by_problem(scores), tokens_by_problem(base)
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


def by_original(scores: Sequence[Score], base: Sequence[Score], shape: Shape) -> dict[str, float | None]:
    """The method on what the base had right and on what it had wrong (section B, metrics). Fractions.

    Samples are independent, so a problem weighs in each group by how many of the base's samples fall into it.
    `attention_flops_right` and `_wrong`: change of attention FLOPs. `wrong_to_right`: accuracy where the base was
    wrong; `wrong_to_right_of_base`: the same for another sample of the base itself, which is right there now and then
    by chance alone (None for a single sample a problem).
    """
    flops = _mean_by_problem(scores, lambda score: shape.attention_flops(score.prompt_tokens, score.tokens))
    accuracy, wrong_of_base = accuracy_by_problem(scores), [s for s in base if s.verdict is not Verdict.RIGHT]
    others = _accuracy_of_the_others(base)
    right_of_base = [s for s in base if s.verdict is Verdict.RIGHT]
    return {
        "attention_flops_right": _flops_change(flops, right_of_base, shape),
        "attention_flops_wrong": _flops_change(flops, wrong_of_base, shape),
        "wrong_to_right": _average(accuracy[score.problem_id] for score in wrong_of_base),
        "wrong_to_right_of_base": _average(others[s.problem_id] for s in wrong_of_base if s.problem_id in others),
    }


def _mean_by_problem(scores: Sequence[Score], value: Callable[[Score], float]) -> dict[str, float]:
    return problem_means((score.problem_id, value(score)) for score in scores)


def _flops_change(flops: dict[str, float], group: Sequence[Score], shape: Shape) -> float | None:
    before = sum(shape.attention_flops(score.prompt_tokens, score.tokens) for score in group)
    return sum(flops[score.problem_id] for score in group) / before - 1 if before else None


def _accuracy_of_the_others(base: Sequence[Score]) -> dict[str, float]:
    """For each problem with several samples: given that one of them is wrong, the accuracy of the others."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for score in base:
        verdicts[score.problem_id].append(score.verdict is Verdict.RIGHT)
    return {name: sum(right) / (len(right) - 1) for name, right in verdicts.items() if len(right) > 1}


def _average(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def break_even(build_flops: float, scores: Sequence[Score], base: Sequence[Score], shape: Shape) -> dict[str, Any]:
    """How many queries pay back what building the model cost; None where a query has not become cheaper."""
    saved = _flops_per_query(base, shape) - _flops_per_query(scores, shape)
    return {
        "build_flops": build_flops,
        "saved_flops_per_query": saved,
        "queries": build_flops / saved if saved > 0 else None,
    }


def _flops_per_query(scores: Sequence[Score], shape: Shape) -> float:
    return float(np.mean([shape.forward_flops(score.prompt_tokens, 0, score.tokens) for score in scores]))
