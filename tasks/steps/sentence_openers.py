"""The step of the marker report."""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.records import Trace
from reasoning.sentence_openers import sentence_openers
from reasoning.thinking import thinking_of
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import StepContext


@step()
def count_sentence_openers(
    ctx: StepContext, model: ArtifactRef, traces: ArtifactRef, markers: Sequence[str]
) -> ArtifactRef:
    """Rows of SentenceOpener, from the traces' thinking: all markers, and openers that occur in two traces or more."""
    rows, thinking = ctx.artifacts.rows(traces, Trace), ctx.resources.checkpoint(model).prompt.thinking
    found = sentence_openers([thinking_of(row.text, thinking) for row in rows], markers)
    kept = [row for row in found if row.is_marker or row.traces > 1]
    counts = {"openers": len(found), "in one trace only": len(found) - len(kept)}
    return ctx.publish("sentence-openers", kept, rows_in=len(rows), counts=counts)
