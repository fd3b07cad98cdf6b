"""Tables of a report: ratings of problems, compressed traces, values of thoughts, grades by a judge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from reasoning import judging
from reasoning.records import ColdStartDialogue, CompressedTrace, JudgeGrades, PrefixValues, Problem, Rating, by_trace
from reasoning.stats import partial_correlation, proportion_difference, rank_correlation
from tasks.reports.frames import records
from tasks.reports.layout import formatted
from tasks.reports.seed_results import ReportTable
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext


def report_table(title: str, table: pd.DataFrame) -> ReportTable:
    """`table` holds texts; a missing one is empty."""
    return ReportTable(title, records(table.fillna("")))


def rating_table(ctx: RunContext, problems: ArtifactRef, ratings: ArtifactRef) -> ReportTable:
    """Spearman's ρ between ratings and the data set's levels, and between text lengths and levels.

    No rows unless the rated problems have two different levels.
    """
    known = [(row.id, row.level, len(row.text)) for row in ctx.artifacts.rows(problems, Problem)]
    texts = pd.DataFrame(known, columns=["problem_id", "true", "length"])
    levels = [(row.problem_id, row.level) for row in ctx.artifacts.rows(ratings, Rating)]
    rated = pd.DataFrame(levels, columns=["problem_id", "level"])
    title = f"Ratings of {len(rated)} problems against their true level (Spearman)"
    both = rated.merge(texts, how="left", on="problem_id").dropna(subset="true").astype({"true": float})
    if both["true"].nunique() < 2:
        return ReportTable(title, [])
    rows = []
    for name, column in {"rating": "level", "length of the text": "length"}.items():
        rho, (low, high) = rank_correlation(both[column].tolist(), both["true"].tolist())
        rows.append({"from": name, "ρ": f"{rho:.3f} [{low:.3f}, {high:.3f}]", "ρ²": f"{rho**2:.3f}"})
    partial = partial_correlation(*(both[column].tolist() for column in ("level", "true", "length")))
    rows.append({"from": "rating, length held fixed", "ρ": f"{partial:.3f}", "ρ²": f"{partial**2:.3f}"})
    return ReportTable(title, rows)


def compression_table(ctx: RunContext, compressed: ArtifactRef, paper: Sequence[float]) -> ReportTable:
    """By level: number of traces, mean tokens before and after, mean reduction, and the paper's reductions, level 1
    first."""
    rows = ctx.artifacts.rows(compressed, CompressedTrace)
    lengths = [(row.level, row.original_tokens, len(row.token_ids)) for row in rows]
    traces = pd.DataFrame(lengths, columns=["level", "before", "after"])
    levels = traces.assign(reduction=100 * (1 - traces["after"] / traces["before"])).groupby("level")
    means, sizes = levels.mean(), levels.size()
    table = pd.DataFrame(
        {
            "traces": formatted("{}", sizes),
            "tokens before": formatted("{:.1f}", means["before"]),
            "tokens after": formatted("{:.1f}", means["after"]),
            "reduction %": formatted("{:.1f}", means["reduction"]),
            "paper's reduction %": [f"{paper[level - 1]}" if level <= len(paper) else "" for level in sizes.index],
        }
    )
    return report_table("Compression by level", table.reset_index(names="level").astype("str"))


def thought_table(ctx: RunContext, values: ArtifactRef, dialogues: ArtifactRef) -> ReportTable:
    """Important thoughts and others: number, mean tokens, mean gain in value, and how often the gain is significant."""
    valued = by_trace(ctx.artifacts.rows(values, PrefixValues))
    thoughts = pd.DataFrame(
        [
            {"thoughts": "important" if important else "others", **thought}
            for row in ctx.artifacts.rows(dialogues, ColdStartDialogue)
            for important, thought in zip(row.important, _gains(valued[row.problem_id, row.sample]), strict=True)
        ],
        columns=["thoughts", "tokens", "gain", "significant"],
    )
    groups = thoughts.groupby("thoughts")  # "important" first, as sorted
    means = groups.mean()
    table = pd.DataFrame(
        {
            "number": formatted("{}", groups.size()),
            "tokens": formatted("{:.1f}", means["tokens"]),
            "gain": formatted("{:+.3f}", means["gain"]),
            "gain significantly above 0, %": formatted("{:.1f}", 100 * means["significant"]),
        }
    )
    title = "Thoughts in the cold start data; 95 % intervals of each thought's rollouts"
    return report_table(title, table.reset_index(names="thoughts"))


def _gains(values: PrefixValues) -> list[dict[str, float]]:
    """For each thought its tokens, its gain in value, and whether the 95 % interval of the gain is above 0."""
    total, pairs = values.total, zip(values.right, values.right[1:], values.lengths, strict=False)
    return [
        {
            "tokens": tokens,
            "gain": (after - before) / total,
            "significant": float(proportion_difference(after, before, total)[0] > 0),
        }
        for before, after, tokens in pairs
    ]


def judge_table(ctx: RunContext, judged: ArtifactRef, names: Sequence[str]) -> ReportTable:
    """Each model's mean grades with their 95 % intervals."""
    rows = ctx.artifacts.rows(judged, JudgeGrades)
    table = []
    for index, name in enumerate(names):
        own = [row for row in rows if row.model == index]
        grades = judging.means(own) if own else {}
        texts = {criterion: _with_bounds(*found) for criterion, found in grades.items()}
        table.append({"model": name, "completions": str(len(own))} | texts)
    return report_table("Grades by the judge, 1 to 5", pd.DataFrame(table))


def _with_bounds(mean: float, low: float, high: float) -> str:
    """The mean alone where a single completion has no interval."""
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(low) and math.isfinite(high) else f"{mean:.2f}"
