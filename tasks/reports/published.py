"""Tables of a paper's figures beside those of a report, and of the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conf.base import Settings
from conf.published import Headline, Published
from tasks.reports.frames import records, report_frames, result_frame
from tasks.reports.layout import NONE, formatted, with_interval


def published_tables(report: Mapping[str, Any], settings: Settings, paper: Published) -> list[dict[str, Any]]:
    """The tables of a report as it stores them, without empty ones."""
    tables = {
        f"{paper.source}, and this run: accuracy % (mean tokens)": figures_table(report, paper),
        f"{paper.source}, and this run: main figures": headline_table(report, paper.headlines),
        f"Known differences from {paper.source}": difference_table(settings, paper),
    }
    return [{"title": title, "rows": rows, "is_pooled": True} for title, rows in tables.items() if rows]


def figures_table(report: Mapping[str, Any], paper: Published) -> list[dict[str, str]]:
    """One row per model and benchmark of the paper; a dash where this run has not evaluated it."""
    results = result_frame(report_frames(report))
    ours = results.assign(
        cell=with_interval(results, "accuracy", "{:.1f}", 100) + formatted(" ({:.0f})", results["mean_tokens"])
    )
    cells = {(row["model"], row["benchmark"]): row["cell"] for row in records(ours)}
    methods = results.loc[results["role"] == "method", "model"]
    named = {"method": methods.iloc[0] if len(methods) else "method"}
    return [
        {
            "model": named.get(model, model),
            "benchmark": benchmark,
            "paper": _cell(figures),
            "this run": cells.get((named.get(model, model), benchmark), NONE),
        }
        for model, by_benchmark in paper.figures.items()
        for benchmark, figures in by_benchmark.items()
    ]


def _cell(figures: Sequence[float]) -> str:
    accuracy, *tokens = figures
    return f"{accuracy:.1f}" + "".join(f" ({mean:.0f})" for mean in tokens)


def headline_table(report: Mapping[str, Any], headlines: Sequence[Headline]) -> list[dict[str, str]]:
    """One row per headline; our figure is that of the method on the main benchmark."""
    method = next((entry["name"] for entry in report["models"] if entry["role"] == "method"), "")
    compared: dict[str, Any] = next((entry for entry in report["comparisons"] if entry["model"] == method), {})
    by_base = compared.get("by_base_correctness") or {}
    model, chance = by_base.get("wrong_to_right"), by_base.get("wrong_to_right_of_base")
    gained = None if model is None or chance is None else model - chance
    figures = {**compared, **by_base, "wrong_to_right_gained": gained}
    rows = []
    for one in headlines:
        value = figures.get(one.figure)
        rows.append(
            {"figure": one.what, "paper": one.paper, "this run": NONE if value is None else one.form.format(value)}
        )
    return rows


def difference_table(settings: Settings, paper: Published) -> list[dict[str, str]]:
    """Settings that differ, then what cannot be said as a setting."""
    differences = [
        {"what": name, "paper": value, "this run": ours} for name, value, ours in paper.differences(settings)
    ]
    return differences + [{"what": note, "paper": "", "this run": ""} for note in paper.notes]
