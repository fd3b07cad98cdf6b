"""Tables of a report: how problems were rated, traces got shorter, thoughts were valued, completions were graded.

Knows: records, a table's layout. Must not know: how ratings, traces or grades arose.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

from conf.cot_distillation import LEVELS, PAPER_RATIOS
from reasoning import judging
from reasoning.records import ColdStartDialogue, CompressedTrace, JudgeGrades, PrefixValues, Problem, Rating, by_trace
from reasoning.stats import partial_correlation, proportion_difference, rank_correlation
from tasks.reports.seed_results import ReportTable
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext


def rating_table(ctx: RunContext, problems: ArtifactRef, ratings: ArtifactRef) -> ReportTable:
    """Ratings against the level that the data set gives, where it does, with what the text's length alone tells."""
    known = {problem.id: problem for problem in ctx.artifacts.rows(problems, Problem)}
    rated = [(row.level, known[row.problem_id]) for row in ctx.artifacts.rows(ratings, Rating)]
    both = [(level, problem) for level, problem in rated if problem.level is not None]
    title = f"Ratings of {len(rated)} problems against their true level (Spearman)"
    if len({problem.level for _, problem in both}) < 2:
        return ReportTable(title, [])
    true = [float(problem.level or 0) for _, problem in both]
    told = {"rating": [float(level) for level, _ in both], "length of the text": [float(len(p.text)) for _, p in both]}
    rows = []
    for name, values in told.items():
        rho, (low, high) = rank_correlation(values, true)
        rows.append({"from": name, "ρ": f"{rho:.3f} [{low:.3f}, {high:.3f}]", "ρ²": f"{rho**2:.3f}"})
    partial = partial_correlation(told["rating"], true, told["length of the text"])
    rows.append({"from": "rating, length held fixed", "ρ": f"{partial:.3f}", "ρ²": f"{partial**2:.3f}"})
    return ReportTable(title, rows)


def compression_table(ctx: RunContext, compressed: ArtifactRef) -> ReportTable:
    """By level: how many traces, how long they were and are, by how much shorter, and by how much the paper's are."""
    by_level: dict[int, list[CompressedTrace]] = defaultdict(list)
    for row in ctx.artifacts.rows(compressed, CompressedTrace):
        by_level[row.level].append(row)
    rows = []
    for level in range(1, LEVELS + 1):
        group = by_level[level]
        if group:
            was = sum(row.original_tokens for row in group) / len(group)
            now = sum(len(row.token_ids) for row in group) / len(group)
            ratios = [1 - len(row.token_ids) / row.original_tokens for row in group]
            rows.append(
                {
                    "level": str(level),
                    "traces": str(len(group)),
                    "tokens before": f"{was:.1f}",
                    "after": f"{now:.1f}",
                    "shorter by %": f"{100 * sum(ratios) / len(ratios):.1f}",
                    "the paper's": f"{PAPER_RATIOS[level - 1]}",
                }
            )
    return ReportTable("Compression by level", rows)


def thought_table(ctx: RunContext, values: ArtifactRef, rehearsals: ArtifactRef) -> ReportTable:
    """Important thoughts and the others: how many, how long, what they gain, and of how many that is certain."""
    valued = by_trace(ctx.artifacts.rows(values, PrefixValues))
    groups: dict[bool, list[tuple[int, float, bool]]] = {True: [], False: []}
    for row in ctx.artifacts.rows(rehearsals, ColdStartDialogue):
        found = valued[row.problem_id, row.sample]
        for (before, after), tokens, important in zip(pairwise(found.right), found.lengths, row.important, strict=True):
            low, _ = proportion_difference(after, before, found.total)
            groups[important].append((tokens, (after - before) / found.total, low > 0))
    rows = []
    for important, group in groups.items():
        if group:
            tokens, gains, certain = zip(*group, strict=True)
            rows.append(
                {
                    "thoughts": "important" if important else "others",
                    "number": str(len(group)),
                    "tokens": f"{mean(tokens):.1f}",
                    "gain": f"{mean(gains):+.3f}",
                    "gain above 0 for certain, %": f"{100 * mean(certain):.1f}",
                }
            )
    return ReportTable("Thoughts that the cold start learnt from; 95 % intervals of each thought's rollouts", rows)


def judge_table(ctx: RunContext, judged: ArtifactRef, names: Sequence[str]) -> ReportTable:
    """Each model's mean grades with their intervals."""
    rows = ctx.artifacts.rows(judged, JudgeGrades)
    table = []
    for index, name in enumerate(names):
        own = [row for row in rows if row.model == index]
        grades = judging.means(own) if own else {}
        told = {what: f"{mean:.2f} [{low:.2f}, {high:.2f}]" for what, (mean, low, high) in grades.items()}
        table.append({"model": name, "completions": str(len(own))} | told)
    return ReportTable("Grades by the judge, 1 to 5", table)
