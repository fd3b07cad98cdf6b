"""Pools the scores of one or several seeds into the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reasoning.evaluation import break_even, by_base_correctness, comparison, model_figures
from tasks.reports.frames import records


def figures(scores: pd.DataFrame, models: pd.DataFrame, budgets: Sequence[int] = (), **where: Any) -> dict[str, Any]:
    """`models`; `comparisons`, each against the first; and `vs_method`, each control against the method.

    `budgets`: tokens at which the completions are cut, for a curve. `where`: values of the columns that select rows, of
    all seeds unless it names one. The problem stays the unit of pooling: stories of different seeds are different
    problems; problems of a file or of the hub are the same in every seed, with more samples each.
    """
    for column, value in where.items():
        scores, models = scores[scores[column] == value], models[models[column] == value]
    rows = {name: scores[scores["model"] == name] for name in models["model"].unique()}
    pooled = models.groupby("model", sort=False).agg(
        {"role": "first", "independent": "first", "build_flops": "mean", "trained_on": "mean"}
    )
    entries = records(pooled.reset_index())
    base = entries[0]["model"]
    method = next(entry["model"] for entry in entries if entry["role"] == "method")
    controls = [entry["model"] for entry in entries if entry["role"] == "control"]
    return {
        "models": [model_figures(entry["model"], entry["role"], rows[entry["model"]], budgets) for entry in entries],
        "comparisons": [_compared(entry, rows[entry["model"]], base, rows[base]) for entry in entries[1:]],
        "vs_method": [comparison(name, rows[name], method, rows[method]) for name in controls],
    }


def _compared(entry: Mapping[str, Any], scores: pd.DataFrame, base: str, base_scores: pd.DataFrame) -> dict[str, Any]:
    """One entry of `comparisons`; `entry` is a row of `seed_models`, pooled."""
    return {
        **comparison(entry["model"], scores, base, base_scores),
        "by_base_correctness": by_base_correctness(scores, base_scores) if entry["independent"] else None,
        "break_even": break_even(entry["build_flops"], scores, base_scores),
        "trained_on": entry["trained_on"],
    }


def figures_by_seed(scores: pd.DataFrame, models: pd.DataFrame, benchmark: str) -> list[dict[str, Any]]:
    """Each seed's own figures: the pooled intervals do not show how much trainings differ."""
    seeds = models["seed"].drop_duplicates().tolist()
    return [{"seed": seed, **figures(scores, models, benchmark=benchmark, seed=seed)} for seed in seeds]
