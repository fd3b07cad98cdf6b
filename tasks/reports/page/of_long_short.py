"""Traces of Long⊗Short as the page shows them: thoughts with values, the model each goes to, the cold-start dialogue
(arXiv 2505.11827)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from models.checkpoints.checkpoint import Checkpoint
from reasoning.dialogue import turns_of
from reasoning.records import ColdStartDialogue, PrefixValues, Trace
from reasoning.stats import proportion
from tasks.reports.page.beside import Beside
from tasks.reports.page.views import Piece, ProblemView, TextView, TraceView
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.problems import by_id


class ColdStartArtifacts(NamedTuple):
    """Results of the cold start's curation."""

    teacher: ArtifactRef
    problems: ArtifactRef
    traces: ArtifactRef
    values: ArtifactRef
    dialogues: ArtifactRef


def cold_start_views(ctx: RunContext, made: ColdStartArtifacts) -> Iterator[ProblemView]:
    """One view per problem with selected traces."""
    known, checkpoint = by_id(ctx, made.problems), ctx.resources.checkpoint(made.teacher)
    values, dialogues = Beside(ctx, made.values, PrefixValues), Beside(ctx, made.dialogues, ColdStartDialogue)
    for name, traces in groupby(ctx.artifacts.stream(made.traces, Trace), lambda trace: trace.problem_id):
        problem = known[name]
        views = [_view(checkpoint, trace, values.one(trace), dialogues.one(trace)) for trace in traces]
        yield ProblemView.of(
            problem,
            "training",
            ("in the cold start",) if any(view.texts for view in views) else ("not in the cold start",),
            traces=tuple(views),
        )
    for rows in (values, dialogues):
        rows.validate_all_taken()


def _view(
    checkpoint: Checkpoint, trace: Trace, values: PrefixValues | None, dialogue: ColdStartDialogue | None
) -> TraceView:
    pieces = _thoughts(checkpoint, trace, values, dialogue) if values else [Piece(text=trace.text, state="unused")]
    return TraceView(
        name=f"trace {trace.sample}",
        verdict=trace.verdict,
        tokens=len(trace.token_ids),
        status=_status(dialogue),
        pieces=tuple(pieces),
        facts={"value without thinking": _share(values.right[0], values.total)} if values else {},
        texts=tuple(_turns(checkpoint, dialogue)),
    )


def _thoughts(
    checkpoint: Checkpoint, trace: Trace, values: PrefixValues, dialogue: ColdStartDialogue | None
) -> list[Piece]:
    texts, pieces = checkpoint.texts_between(trace.token_ids, (*values.ends, len(trace.token_ids))), list[Piece]()
    for index, text in enumerate(texts[:-1]):
        right = values.right[index + 1]
        state = "unused" if dialogue is None else "long" if index in _longs(dialogue) else "short"
        note = f"value {_share(right, values.total)}, gain {(right - values.right[index]) / values.total:+.2f}"
        pieces.append(Piece(text=text, state=state, right=right, total=values.total, note=note))
    return [*pieces, Piece(text=texts[-1], state="unused", note="the reply")]


def _share(right: int, total: int) -> str:
    low, high = proportion(right, total)
    return f"{right / total:.2f} [{low:.2f}, {high:.2f}]"


def _status(dialogue: ColdStartDialogue | None) -> str:
    if dialogue is None:
        return "Not in the cold start: not separated into thoughts, too many rounds, or a tag of the protocol in it."
    return f"{len(_longs(dialogue))} of {len(dialogue.important)} thoughts go to Long, the others to Short."


def _longs(dialogue: ColdStartDialogue) -> set[int]:
    """Thoughts of the long-thought model: the important ones, and the first, since Long opens the dialogue."""
    return {0, *(index for index, is_important in enumerate(dialogue.important) if is_important)}


def _turns(checkpoint: Checkpoint, dialogue: ColdStartDialogue | None) -> Iterator[TextView]:
    for number, turn in enumerate(turns_of(dialogue.transcript) if dialogue else (), start=1):
        text = str(turn)
        yield TextView(title=f"Turn {number}, {turn.speaker}", text=text, tokens=len(checkpoint.encode(text)))
