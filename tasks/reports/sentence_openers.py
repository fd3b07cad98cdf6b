"""The report of the marker pipeline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from conf.markers import MarkerReport
from reasoning.records import SentenceOpener
from tasks.reports.layout import opener_table, print_table
from tasks.reports.seed_results import ledger_lines
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext


def write_sentence_openers(ctx: RunContext, settings: MarkerReport, counted: ArtifactRef, traces: int) -> Path:
    """Prints the most frequent openers and every marker; writes all counted openers to `report.json`."""
    openers = [row.model_dump() for row in ctx.artifacts.rows(counted, SentenceOpener)]
    print_table("Sentence openers", opener_table(pd.DataFrame(openers), traces))
    report = {
        "pipeline": settings.pipeline,
        "preset": settings.preset,
        "traces": traces,
        "sentence_openers": openers,
        "ledger": [line.model_dump() for line in ledger_lines(ctx)],
        "config": settings.model_dump(mode="json"),
    }
    path = ctx.directory.save_report(report)
    ctx.progress.note(f"report: {path}")
    return path
