"""From examined completions to the figures of a report.

Knows: scores, intervals, cost formulas. Must not know: how completions were drawn, or what a report looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
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
