"""Traces of DTO as the page shows them: probes, cut, pruned segments, ending, pairs (arXiv 2505.21765)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from itertools import groupby
from typing import Any, NamedTuple

from models.checkpoints.checkpoint import Checkpoint
from reasoning.records import (
    CrossingEstimate,
    OptimisedTrace,
    Pair,
    PairKind,
    Problem,
    ProposedRemovals,
    Scan,
    Trace,
)
from tasks.reports.page.beside import Beside
from tasks.reports.page.views import Piece, ProblemView, State, TextView, TraceView
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.problems import by_id


class DtoArtifacts(NamedTuple):
    """Results of the curation."""

    base: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    scans: ArtifactRef
    estimates: ArtifactRef
    optimised: ArtifactRef
    proposals: ArtifactRef | None
    """Segments that a language model proposed to remove; None where every inner segment was tried, or none."""
    is_pruned: bool
    pairs: ArtifactRef
    rejected: str
    """As `conf.dto.Pairing.rejected`."""
    threshold: float


def dto_views(ctx: RunContext, made: DtoArtifacts) -> Iterator[ProblemView]:
    """One view per problem with traces."""
    known, viewer = by_id(ctx, made.problems), _Viewer(ctx, made)
    for name, traces in groupby(ctx.artifacts.stream(made.traces, Trace), lambda trace: trace.problem_id):
        views = [viewer.view(trace) for trace in traces]
        yield _problem_view(known[name], views)
    viewer.validate_all_taken()


def _problem_view(problem: Problem, views: Sequence[TraceView]) -> ProblemView:
    states = {piece.state for view in views for piece in view.pieces}
    tags = [state for state in ("cut", "pruned", "put back") if state in states]
    tags += ["a right trace"] * any(view.verdict == "right" for view in views)
    tags += ["no right trace"] * all(view.verdict != "right" for view in views)
    return ProblemView.of(problem, "training", tuple(tags), traces=tuple(views))


class _Viewer:
    """Makes views of traces, which come in the order of their artifact."""

    def __init__(self, ctx: RunContext, made: DtoArtifacts):
        self._checkpoint, self._made = ctx.resources.checkpoint(made.base), made
        self._scans = Beside(ctx, made.scans, Scan)
        self._estimates = Beside(ctx, made.estimates, CrossingEstimate)
        self._optimised = Beside(ctx, made.optimised, OptimisedTrace)
        self._proposed = Beside(ctx, made.proposals, ProposedRemovals)
        self._pairs = Beside(ctx, made.pairs, Pair)

    def view(self, trace: Trace) -> TraceView:
        scan, optimised = self._scans.one(trace), self._optimised.one(trace)
        proposal, estimate = self._proposed.one(trace), self._estimates.one(trace)
        pairs = self._pairs.of(trace)
        proposed = set(proposal.segments) if proposal else set[int]()
        pieces = [Piece(text=trace.text, state="unused")]
        if scan:
            pieces = self._pieces(trace, scan, optimised, proposed)
        facts = {"right on fresh samples at the cut": f"{estimate.right} of {estimate.total}"} if estimate else {}
        return TraceView(
            name=f"sample {trace.sample}",
            verdict=trace.verdict,
            tokens=len(trace.token_ids),
            status=_status(trace, scan, optimised) + (NO_PAIR if optimised and not pairs else ""),
            threshold=self._made.threshold,
            pieces=tuple(pieces),
            facts=facts,
            texts=tuple(_pair_texts(self._checkpoint, pairs, self._made.rejected)),
        )

    def validate_all_taken(self) -> None:
        for rows in (self._scans, self._estimates, self._optimised, self._proposed, self._pairs):
            rows.validate_all_taken()

    def _pieces(self, trace: Trace, scan: Scan, optimised: OptimisedTrace | None, proposed: Set[int]) -> list[Piece]:
        texts = self._checkpoint.texts_between(trace.token_ids, (0, *scan.ends, len(trace.token_ids)))
        probes = {probe.segment: probe for probe in scan.probes}
        pieces = []
        for index, text in enumerate(texts[:-1]):
            probe = probes.get(index)
            counts = {"right": probe.right, "total": probe.total} if probe else {}
            note = "first prefix that passes" if index == scan.crossing else ""
            pieces.append(Piece(text=text, state=self._state(index, scan, optimised, proposed), note=note, **counts))
        if optimised and scan.crossing is not None:
            pieces.insert(scan.crossing + 1, self._ending(scan, optimised))
        reply: State = "cut" if optimised else "unused"
        return [*pieces, Piece(text=texts[-1], state=reply, note="the original reply")]

    def _state(self, index: int, scan: Scan, optimised: OptimisedTrace | None, proposed: Set[int]) -> State:
        if optimised is None or scan.crossing is None:
            return "unused"
        if index > scan.crossing:
            return "cut"
        if index in optimised.removed:
            return "pruned"
        inner = 0 < index < scan.crossing
        was_tried = index in proposed if self._made.proposals else self._made.is_pruned
        return "put back" if inner and was_tried else "kept"

    def _ending(self, scan: Scan, optimised: OptimisedTrace) -> Piece:
        """The sampled ending: what follows the kept segments in the optimised trace."""
        starts = (0, *scan.kept_ends)
        kept = sum(
            end - start
            for index, (start, end) in enumerate(zip(starts, scan.kept_ends, strict=False))
            if index not in optimised.removed
        )
        text = self._checkpoint.decode(optimised.token_ids[kept:])
        return Piece(text=text, state="added", note="the ending that was chosen: the shortest right one")


def _status(trace: Trace, scan: Scan | None, optimised: OptimisedTrace | None) -> str:
    if scan is None:
        return "Not probed: no thinking that ends, or its tokens could not be read."
    if scan.crossing is None:
        return f"No prefix passes, of {len(scan.probes)} tested. Not trained on."
    cut = f"cut after segment {scan.crossing + 1} of {len(scan.ends)}"
    if optimised is None:
        return f"Would be {cut}, but no ending was right and short enough. Not trained on."
    removed = f", {len(optimised.removed)} of the kept segments pruned" if optimised.removed else ""
    return f"Thinking {cut}{removed}: {len(optimised.token_ids)} tokens instead of {len(trace.token_ids)}."


NO_PAIR = " Not trained on: no shorter than the rejected trace, or too long."
REJECTED = {"original": "the original", "longest": "the longest trace of the problem"}


def _pair_texts(checkpoint: Checkpoint, pairs: Sequence[Pair], rejected: str) -> Iterator[TextView]:
    """Both sides of each pair that was trained on."""
    kinds = {PairKind.OPTIMISED: REJECTED[rejected], PairKind.PREMATURE_STOP: "a stop that came too early"}
    for number, pair in enumerate(pairs, start=1):
        sides: tuple[tuple[str, Any], ...] = (
            ("chosen", pair.chosen_ids),
            (f"rejected: {kinds[pair.kind]}", pair.rejected_ids),
        )
        for side, token_ids in sides:
            yield TextView(title=f"Pair {number}, {side}", text=checkpoint.decode(token_ids), tokens=len(token_ids))
