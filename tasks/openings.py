"""The marker report's own steps. Knows: traces, how a report is laid out. Must not know: what an opening is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from conf.settings import MarkerReport
from reasoning.openings import openings
from reasoning.records import Opening, Trace
from reasoning.thinking import thinking_of
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.outcomes import ledger_lines
from tasks.reporting import print_table
from tasks.workplace import Workplace

SHOWN = 40
"""Openings on the terminal; the report holds more."""


@step
def count_openings(
    place: Workplace, model: ArtifactRef, traces: ArtifactRef, markers: Sequence[str]
) -> ArtifactRef:  # fmt: skip
    """Rows of Opening, over the thinking parts: all markers, and what opens sentences in two traces or more."""
    started = time.monotonic()
    rows, thinking = place.rows(traces, Trace), place.checkpoint(model).prompt.thinking
    found = openings([thinking_of(row.text, thinking) for row in rows], markers)
    kept = [row for row in found if row.is_marker or row.traces > 1]
    counts = {"openings": len(found), "in one trace only": len(found) - len(kept)}
    return place.publish("openings", kept, rows_in=len(rows), started=started, counts=counts)


def write_openings(place: Workplace, settings: MarkerReport, counted: ArtifactRef, traces: int) -> Path:
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
