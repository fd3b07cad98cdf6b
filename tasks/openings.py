"""The marker report's own steps. Knows: traces, how a report is laid out. Must not know: what an opening is."""

from __future__ import annotations

import time
from pathlib import Path

from conf.settings import MarkerReport, Segmentation
from reasoning.answers import CLOSE_THINK
from reasoning.openings import METHOD_VERSION, openings
from reasoning.records import Opening, Trace
from reasoning.segment import METHOD_VERSION as SEGMENT_VERSION
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.reporting import print_table
from tasks.workplace import Workplace

SHOWN = 40
"""Openings on the terminal; the report holds all."""


@step(version=f"{METHOD_VERSION}.{SEGMENT_VERSION}")
def count_openings(place: Workplace, traces: ArtifactRef, segmentation: Segmentation) -> ArtifactRef:
    """Rows of Opening, over the thinking parts."""
    started = time.monotonic()
    rows = place.rows(traces, Trace)
    found = openings([row.text.split(CLOSE_THINK)[0] for row in rows], segmentation.markers)
    return place.publish("openings", found, rows_in=len(rows), started=started)


def write_openings(place: Workplace, settings: MarkerReport, counted: ArtifactRef, traces: int) -> Path:
    """Prints the most frequent openings, and every marker; writes all of them to `report.json`."""
    rows = place.rows(counted, Opening)
    shown = [row for index, row in enumerate(rows) if index < SHOWN or row.is_marker]
    print_table("Sentence openings", [_line(row, traces) for row in shown])
    report = {
        "pipeline": settings.pipeline, "preset": settings.preset, "traces": traces,
        "openings": [row.model_dump() for row in rows], "config": settings.model_dump(mode="json"),
    }  # fmt: skip
    path = place.save_report(report)
    place.progress.note(f"report: {path}")
    return path


def _line(row: Opening, traces: int) -> dict[str, str]:
    return {
        "opening": row.text, "marker": "yes" if row.is_marker else "", "sentences": str(row.count),
        "traces %": f"{100 * row.traces / traces:.1f}", "place": "" if row.place is None else f"{row.place:.2f}",
    }  # fmt: skip
