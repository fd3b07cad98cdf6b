"""Finished traces as `brevity watch` shows them."""

from __future__ import annotations

from collections.abc import Sequence

from models.checkpoints.checkpoint import Checkpoint
from reasoning.records import PrefixValues, Problem, Scan, Trace, Verdict
from tasks.runtime.live import LivePiece, LiveTrace


def sampled_trace(problem: Problem, text: str, verdict: Verdict) -> LiveTrace:
    """A sampled trace, in one piece."""
    return LiveTrace(id=problem.id, problem=problem.text, verdict=verdict, pieces=(LivePiece(text=text),))


def scanned_trace(model: Checkpoint, problem: Problem, trace: Trace, scan: Scan) -> LiveTrace:
    """A trace with its probes and its cut."""
    probes = {probe.segment: probe for probe in scan.probes}
    pieces = []
    for index, text in enumerate(model.texts_between(trace.token_ids, (0, *scan.ends))):
        probe, is_cut = probes.get(index), scan.crossing is not None and index > scan.crossing
        counts = {"right": probe.right, "total": probe.total} if probe else {}
        pieces.append(LivePiece(text=text, is_cut=is_cut, **counts))
    return _live(problem, trace, pieces)


def valued_trace(model: Checkpoint, problem: Problem, trace: Trace, values: PrefixValues) -> LiveTrace:
    """A trace with the value of each prefix."""
    texts = model.texts_between(trace.token_ids, values.ends)
    rights = zip(texts, values.right[1:], strict=True)
    return _live(problem, trace, [LivePiece(text=text, right=right, total=values.total) for text, right in rights])


def _live(problem: Problem, trace: Trace, pieces: Sequence[LivePiece]) -> LiveTrace:
    return LiveTrace(id=trace.id, problem=problem.text, verdict=trace.verdict, pieces=tuple(pieces))
