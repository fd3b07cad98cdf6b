"""The report of the marker pipeline."""

from __future__ import annotations

from pathlib import Path

from conf.markers import MarkerReport
from reasoning.records import Opening
from tasks.reports.report import print_table
from tasks.reports.seed_results import ledger_lines
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext

SHOWN = 40
"""Openings on the terminal; the report holds more."""


def write_openings(place: RunContext, settings: MarkerReport, counted: ArtifactRef, traces: int) -> Path:
    """Prints the most frequent openings, and every marker; writes all that were kept to `report.json`."""
    rows = place.rows(counted, Opening)
    shown = [row for index, row in enumerate(rows) if index < SHOWN or row.is_marker]
    print_table("Sentence openings", [_line(row, traces) for row in shown])
    report = {
        "pipeline": settings.pipeline, "preset": settings.preset, "traces": traces,
        "openings": [row.model_dump() for row in rows], "ledger": [line.model_dump() for line in ledger_lines(place)],
        "config": settings.model_dump(mode="json"),
    }  # fmt: skip
    path = place.save_report(report)
    place.progress.note(f"report: {path}")
    return path


def _line(row: Opening, traces: int) -> dict[str, str]:
    return {
        "opening": row.text, "marker": "yes" if row.is_marker else "", "sentences": str(row.count),
        "traces %": f"{100 * row.traces / traces:.1f}", "place": "" if row.place is None else f"{row.place:.2f}",
    }  # fmt: skip
