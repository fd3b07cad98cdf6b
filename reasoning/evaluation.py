"""From scored completions to the figures of a report.

A frame of scores has one row per completion (`score_frame`); every figure is clustered by problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pandas as pd

from reasoning.cost import Shape, aes, efficiency
from reasoning.records import ModelCall, Score, Verdict
from reasoning.stats import mean_interval, paired_difference, paired_ratio, problem_means, share_interval

Role = Literal["base", "method", "control", "reference"]
DTYPES = {
    "problem_id": "object",  # isin is ten times as slow for "str"
    "level": "Int64",
    "subject": "str",
    "sample": "int64",
    "tokens": "int64",
    "answer_tokens": "int64",
    "truncated": "bool",
    "correct": "bool",
    "completed": "bool",
    "attention_flops": "float64",
    "query_flops": "float64",
}
"""Columns of a frame of scores. `attention_flops` are those of generated tokens; `query_flops` are those of the whole
query, prompt included. `answer_tokens`: how many tokens a completion needs for its answer. A row that is not
`completed` has no completion: it is not correct, and has no length."""


def score_frame(scores: Iterable[Score], shape: Shape) -> pd.DataFrame:
    """One row per completion of a model of `shape`, in the given order; columns as in `DTYPES`."""
    return pd.DataFrame([_score_row(score, shape) for score in scores], columns=list(DTYPES)).astype(DTYPES)


def _score_row(score: Score, shape: Shape) -> dict[str, Any]:
    calls = score.calls or (ModelCall(prompt_tokens=score.prompt_tokens, tokens=score.tokens),)
    return {
        "problem_id": score.problem_id,
        "level": score.level,
        "subject": score.subject,
        "sample": score.sample,
        "tokens": score.tokens,
        "answer_tokens": score.tokens if score.answer_tokens is None else score.answer_tokens,
        "truncated": score.truncated,
        "correct": score.verdict is Verdict.RIGHT,
        "completed": score.verdict is not Verdict.NO_COMPLETION,
        "attention_flops": sum(shape.attention_flops(call.prompt_tokens, call.tokens) for call in calls),
        "query_flops": sum(shape.forward_flops(call.prompt_tokens, 0, call.tokens) for call in calls),
    }


def completed_by_both(scores: pd.DataFrame, base: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The completed rows of problems with at least one completion on both sides."""
    scores, base = scores[scores["completed"]], base[base["completed"]]
    in_both = scores["problem_id"].isin(base["problem_id"])
    return scores[in_both], base[base["problem_id"].isin(scores["problem_id"])]


def model_figures(name: str, role: Role, scores: pd.DataFrame, budgets: Sequence[int] = ()) -> dict[str, Any]:
    """One entry of the report's `models`: fractions and tokens, with 95 % intervals; also by level, by subject, and at
    token budgets."""
    return {
        "name": name,
        "role": role,
        **_accuracy_and_tokens(scores),
        "attention_flops": float(scores.loc[scores["completed"], "attention_flops"].mean()),
        **{
            f"by_{column}": {str(group): _accuracy_and_tokens(rows) for group, rows in scores.groupby(column)}
            for column in ("level", "subject")
        },
        "by_budget": {str(budget): _accuracy_and_tokens(cut_at(scores, budget)) for budget in budgets},
    }


def cut_at(scores: pd.DataFrame, budget: int) -> pd.DataFrame:
    """The scores of the same completions, each cut after `budget` tokens: one that needs more for its answer is not
    correct."""
    return scores.assign(
        correct=scores["correct"] & (scores["answer_tokens"] <= budget),
        truncated=scores["truncated"] | (scores["tokens"] > budget),
        tokens=scores["tokens"].clip(upper=budget),
    )


def _accuracy_and_tokens(scores: pd.DataFrame) -> dict[str, Any]:
    completed = scores[scores["completed"]]
    accuracy, accuracy_ci = share_interval(problem_means(scores, "correct"), len(scores))
    tokens, tokens_ci = mean_interval(problem_means(completed, "tokens"))
    return {
        "accuracy": accuracy,
        "accuracy_ci": list(accuracy_ci),
        "mean_tokens": tokens,
        "mean_tokens_ci": list(tokens_ci),
        "truncated": float(scores["truncated"].mean()),
        "failed": 1 - len(completed) / len(scores),
        "problems": scores["problem_id"].nunique(),
        "samples": len(scores),
    }


def comparison(name: str, scores: pd.DataFrame, against: str, base: pd.DataFrame) -> dict[str, Any]:
    """One entry of the report's `comparisons`, paired over the same problems."""
    accuracy, accuracy_0 = problem_means(scores, "correct"), problem_means(base, "correct")
    tokens, tokens_0 = (problem_means(side, "tokens") for side in completed_by_both(scores, base))
    delta, delta_ci = paired_difference(accuracy, accuracy_0)
    ratio, ratio_ci = paired_ratio(tokens, tokens_0)
    means = [float(values.mean()) for values in (accuracy, tokens, accuracy_0, tokens_0)]
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


def by_base_correctness(scores: pd.DataFrame, base: pd.DataFrame) -> dict[str, float | None]:
    """Figures of the model where the base was right and where it was wrong, as fractions (section B, metrics).

    Both models' samples must be independent. A problem's weight in a group is the number of the base's samples in that
    group. The model is compared with the base's *other* samples of the problem, because those that chose the group are
    biased: right traces are shorter, so a second draw of the base itself would seem longer there.

    `attention_flops_right`, `attention_flops_wrong`: relative change of attention FLOPs. `wrong_to_right`: accuracy
    where the base was wrong. `wrong_to_right_of_base`: the same for another sample of the base, which is right by
    chance. None for an empty group, and where no problem has several samples.
    """
    scores, base = completed_by_both(scores, base)
    of_model = {
        column: base["problem_id"].map(problem_means(scores, column)) for column in ("attention_flops", "correct")
    }
    of_base = {column: _mean_of_others(base, column) for column in ("attention_flops", "correct")}
    right, wrong = base["correct"], ~base["correct"]
    return {
        **{
            f"attention_flops_{name}": _change(of_model["attention_flops"][group], of_base["attention_flops"][group])
            for name, group in (("right", right), ("wrong", wrong))
        },
        "wrong_to_right": _mean_or_none(of_model["correct"][wrong]),
        "wrong_to_right_of_base": _mean_or_none(of_base["correct"][wrong]),
    }


def _mean_of_others(scores: pd.DataFrame, column: str) -> pd.Series:
    """For each row the mean of its problem's other rows; NaN where it is the only one."""
    values = scores[column].astype(float)
    groups = values.groupby(scores["problem_id"])
    return (groups.transform("sum") - values) / (groups.transform("count") - 1)


def _change(new: pd.Series, old: pd.Series) -> float | None:
    return float(new.sum() / old.sum() - 1) if old.notna().all() and old.sum() else None


def _mean_or_none(values: pd.Series) -> float | None:
    return float(values.mean()) if values.notna().any() else None


def break_even(build_flops: float, scores: pd.DataFrame, base: pd.DataFrame) -> dict[str, Any]:
    """After how many queries the FLOPs saved equal those that building the model took.

    The saving is paired over the same problems, and the interval of `queries` follows from its interval. `queries` is
    None unless the saving is significantly above 0.
    """
    flops, flops_0 = (problem_means(side, "query_flops") for side in completed_by_both(scores, base))
    saved, (low, high) = paired_difference(flops_0, flops)
    return {
        "build_flops": build_flops,
        "saved_flops_per_query": saved,
        "saved_flops_per_query_ci": [low, high],
        "queries": build_flops / saved if low > 0 else None,
        "queries_ci": [build_flops / high, build_flops / low] if low > 0 else None,
    }
