"""Traces of CoT distillation as the page shows them: value, rating, budget, compressed text (arXiv 2509.05226)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from conf.cot_distillation import LengthBudget
from models.checkpoints.checkpoint import Checkpoint
from reasoning.records import CompressedTrace, PrefixValues, Problem, Rating, Trace
from reasoning.thinking import reply_of, thinking_of
from tasks.reports.page.beside import Beside
from tasks.reports.page.views import Piece, ProblemView, TextView, TraceView
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.problems import by_id


class DistillationArtifacts(NamedTuple):
    """Results of the curation."""

    base: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    """Selected right traces."""
    values: ArtifactRef | None
    ratings: ArtifactRef
    compressed: ArtifactRef
    budget: LengthBudget


def distillation_views(ctx: RunContext, made: DistillationArtifacts) -> Iterator[ProblemView]:
    """One view per problem with selected traces."""
    known, viewer = by_id(ctx, made.problems), _Viewer(ctx, made)
    for name, traces in groupby(ctx.artifacts.stream(made.traces, Trace), lambda trace: trace.problem_id):
        views = [viewer.view(trace) for trace in traces]
        yield _problem_view(known[name], views, viewer.levels.get(name))
    viewer.validate_all_taken()


def _problem_view(problem: Problem, views: Sequence[TraceView], rating: int | None) -> ProblemView:
    compressed = any(view.texts for view in views)
    return ProblemView.of(
        problem,
        "training",
        ("compressed" if compressed else "not compressed", *([f"rated {rating}"] if rating else [])),
        traces=tuple(views),
    )


class _Viewer:
    def __init__(self, ctx: RunContext, made: DistillationArtifacts):
        self._checkpoint, self._made = ctx.resources.checkpoint(made.base), made
        self.levels = {row.problem_id: row.level for row in ctx.artifacts.rows(made.ratings, Rating)}
        self._values = Beside(ctx, made.values, PrefixValues)
        self._compressed = Beside(ctx, made.compressed, CompressedTrace)

    def view(self, trace: Trace) -> TraceView:
        compressed, values = self._compressed.one(trace), self._values.one(trace)
        tags = self._checkpoint.prompt.thinking
        if values:
            pieces = _valued(self._checkpoint, trace, values, compressed)
        else:
            pieces = [Piece(text=thinking_of(trace.text, tags), state="cut" if compressed else "unused")]
        reply = Piece(text=reply_of(trace.text, tags) or "", state="unused", note="the original reply")
        return TraceView(
            name=f"trace {trace.sample}",
            verdict=trace.verdict,
            tokens=len(trace.token_ids),
            status=_status(compressed),
            pieces=(*pieces, reply),
            facts=self._facts(trace, self.levels.get(trace.problem_id), compressed),
            texts=tuple(_texts(self._checkpoint, compressed)),
        )

    def validate_all_taken(self) -> None:
        for rows in (self._values, self._compressed):
            rows.validate_all_taken()

    def _facts(self, trace: Trace, level: int | None, compressed: CompressedTrace | None) -> dict[str, str]:
        if level is None:
            return {"rating": "none"}
        thinking = len(self._checkpoint.encode(thinking_of(trace.text, self._checkpoint.prompt.thinking)))
        facts = {
            "rating": f"{level} of 10",
            "budget": f"{self._made.budget.tokens(level, thinking):.0f} of {thinking} tokens of thinking",
        }
        if compressed:
            share = 1 - len(compressed.token_ids) / compressed.original_tokens
            facts["shorter by"] = f"{100 * share:.0f} %"
        return facts


def _valued(
    checkpoint: Checkpoint, trace: Trace, values: PrefixValues, compressed: CompressedTrace | None
) -> list[Piece]:
    """The segments with the share of right rollouts after each; those that were kept."""
    kept = set(compressed.kept) if compressed else set[int]()
    pieces = []
    for index, text in enumerate(checkpoint.texts_between(trace.token_ids, values.ends)):
        state = "unused" if compressed is None else "kept" if index in kept else "cut"
        pieces.append(Piece(text=text, state=state, right=values.right[index + 1], total=values.total))
    return pieces


def _status(compressed: CompressedTrace | None) -> str:
    if compressed is None:
        return "Not compressed: within its budget, without a rating, or no shorter form answered right."
    how = f"{len(compressed.kept)} segments kept" if compressed.kept else "rewritten by a language model"
    return f"Compressed, {how}: {len(compressed.token_ids)} tokens instead of {compressed.original_tokens}."


def _texts(checkpoint: Checkpoint, compressed: CompressedTrace | None) -> Iterator[TextView]:
    if compressed:
        text = checkpoint.decode(compressed.token_ids)
        yield TextView(title="Compressed, what the model is trained on", text=text, tokens=len(compressed.token_ids))
