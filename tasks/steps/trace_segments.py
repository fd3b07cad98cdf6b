"""Segments of traces as token positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conf.segmentation import Segmentation
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.token_texts import Undecodable
from models.inference.engine import Failure
from reasoning.records import SkippedRow, Trace
from reasoning.segment import segment_text, token_ends
from reasoning.thinking import thinking_of
from tasks.runtime.context import RunContext
from tasks.steps.prefix_sampling import Prefix


def prefix_of(trace: Trace, end: int) -> Prefix:
    """The first `end` tokens of a trace."""
    return Prefix(trace.problem_id, trace.token_ids[:end])


class TokenAligner:
    """Finds the token ends of parts of traces, and lists the traces whose tokens cannot be aligned with text."""

    def __init__(self, ctx: RunContext, model: Checkpoint, total: int, parts: Callable[[Trace], list[str]]):
        """`parts`: consecutive texts from the beginning of a trace. `total`: about how many traces."""
        self._model, self._parts = model, parts
        self._failures = ctx.resources.failure_budget("read tokens", total)
        self.undecodable: list[SkippedRow] = []

    def ends(self, trace: Trace) -> list[int] | None:
        """The token ends of a trace's parts; None if it is `undecodable`. Raises TooManyFailed."""
        try:
            return token_ends(self._parts(trace), self._model.token_texts(trace.token_ids))
        except Undecodable as error:
            self._failures.add(Failure.UNDECODABLE, str(error))
            self.undecodable.append(SkippedRow(id=trace.id, reason=Failure.UNDECODABLE, detail=str(error)))
            return None


def segment_aligner(ctx: RunContext, model: Checkpoint, total: int, segmentation: Segmentation) -> TokenAligner:
    """An aligner for the segments of traces' thinking."""

    def segments(trace: Trace) -> list[str]:
        thinking = thinking_of(trace.text, model.prompt.thinking)
        return segment_text(thinking, segmentation.markers, segmentation.min_chars, segmentation.max_chars)

    return TokenAligner(ctx, model, total, segments)


def all_segment_ends(
    ctx: RunContext, model: Checkpoint, traces: Sequence[Trace], segmentation: Segmentation
) -> tuple[dict[str, list[int]], list[SkippedRow]]:
    """Token ends of the segments of each trace's thinking, by trace id, and the traces whose tokens cannot be aligned
    with text. Raises TooManyFailed."""
    aligner = segment_aligner(ctx, model, len(traces), segmentation)
    found = {trace.id: aligner.ends(trace) for trace in traces}
    return {name: ends for name, ends in found.items() if ends is not None}, aligner.undecodable
