"""The marker report's own steps. Knows: traces, how a report is laid out. Must not know: what an opening is."""

from __future__ import annotations

import time
from collections.abc import Sequence

from reasoning.records import Trace
from reasoning.sentence_openers import openings
from reasoning.thinking import thinking_of
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext


@step
def count_openings(
    place: RunContext, model: ArtifactRef, traces: ArtifactRef, markers: Sequence[str]
) -> ArtifactRef:  # fmt: skip
    """Rows of Opening, over the thinking parts: all markers, and what opens sentences in two traces or more."""
    started = time.monotonic()
    rows, thinking = place.rows(traces, Trace), place.checkpoint(model).prompt.thinking
    found = openings([thinking_of(row.text, thinking) for row in rows], markers)
    kept = [row for row in found if row.is_marker or row.traces > 1]
    counts = {"openings": len(found), "in one trace only": len(found) - len(kept)}
    return place.publish("openings", kept, rows_in=len(rows), started=started, counts=counts)
