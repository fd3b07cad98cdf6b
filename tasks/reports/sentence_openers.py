"""The report of the marker pipeline."""

from __future__ import annotations

from pathlib import Path

from conf.markers import MarkerReport
from reasoning.records import SentenceOpener
from tasks.reports.report import print_table
from tasks.reports.seed_results import ledger_lines
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext

SHOWN = 40
"""Openings on the terminal; the report holds more."""


def write_sentence_openers(ctx: RunContext, settings: MarkerReport, counted: ArtifactRef, traces: int) -> Path:
    """Prints the most frequent openings, and every marker; writes all that were kept to `report.json`."""
    rows = ctx.artifacts.rows(counted, SentenceOpener)
    shown = [row for index, row in enumerate(rows) if index < SHOWN or row.is_marker]
    print_table("Sentence openings", [_line(row, traces) for row in shown])
    report = {
        "pipeline": settings.pipeline,
        "preset": settings.preset,
        "traces": traces,
        "openings": [row.model_dump() for row in rows],
        "ledger": [line.model_dump() for line in ledger_lines(ctx)],
        "config": settings.model_dump(mode="json"),
    }
    path = ctx.directory.save_report(report)
    ctx.progress.note(f"report: {path}")
    return path


def _line(row: SentenceOpener, traces: int) -> dict[str, str]:
    return {
        "opening": row.text,
        "marker": "yes" if row.is_marker else "",
        "sentences": str(row.count),
        "traces %": f"{100 * row.traces / traces:.1f}",
        "position": "" if row.position is None else f"{row.position:.2f}",
    }
