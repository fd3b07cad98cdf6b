"""Prunes a shortened trace: removes segments without which the answer is still reached (DTO, arXiv 2505.21765).

Greedy, from left to right: each proposed inner segment is removed once. The removal stands if the rest passes the
probes and is rolled back otherwise. The first segment (start of the reasoning) and the last one (where the answer
becomes clear) always stay. An LLM proposes segments, as in the paper (`reasoning.pruning_proposals`), or every inner
segment is tried.

Not from the paper: the kept text must also stay natural. A text can reach the answer and still make no sense, like "Now
it is 86, not 96" when no earlier text says 96. Training on it costs accuracy (docs/log.md). If a kept token becomes
much less likely to the model than it was in the full trace, the nearest removed segment before it is restored
(docs/decisions/0005-pruned-text-stays-natural.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from reasoning.dto import shortest_right
from reasoning.records import OptimisedTrace, Trace, Verdict
from reasoning.sampling_plans import Outcomes, SampleRange, SequentialTest, min_successes
from reasoning.token_ids import TokenIds


class PruningPlan:
    """A `SamplingPlan` that removes inner segments of a cut trace one at a time."""

    def __init__(
        self, trace: Trace, ends: Sequence[int], total: int, threshold: float, proposed: Sequence[int] | None = None
    ):
        """`ends`: ends of the segments up to the crossing, in tokens. `proposed`: indices that may be removed; None:
        all inner ones."""
        self._spans = [trace.token_ids[start:end] for start, end in pairwise((0, *ends))]
        self._kept = list(range(len(ends)))
        self._pending = [
            index
            for index in sorted(set(range(len(ends)) if proposed is None else proposed))
            if 0 < index < len(ends) - 1
        ]
        self._total, self._threshold = total, threshold
        self._test = SequentialTest(total, threshold)
        self._in_flight = False
        self._trace = trace

    @property
    def trace(self) -> Trace:
        return self._trace

    @property
    def is_open(self) -> bool:
        return bool(self._pending)

    def next_ranges(self) -> list[SampleRange]:
        """Rollouts of the kept text without the next proposed segment. `SampleRange.prefix` is that segment's index."""
        if self._in_flight or not self._pending:
            return []
        self._in_flight = True
        return [SampleRange(self._pending[0], len(self._test.outcomes), self._test.next_batch_size())]

    def without(self, segment: int) -> TokenIds:
        """Token ids of the kept segments except `segment`."""
        return self._join(index for index in self._kept if index != segment)

    def add(self, drawn: SampleRange, outcomes: Outcomes) -> None:
        self._in_flight = False
        self._test.add(outcomes)
        if self._test.passed is None:
            return
        if self._test.passed:
            self._kept.remove(drawn.prefix)
        self._pending.pop(0)
        self._test = SequentialTest(self._total, self._threshold)

    @property
    def removed(self) -> tuple[int, ...]:
        """Indices of the removed segments, ascending."""
        return tuple(index for index in range(len(self._spans)) if index not in self._kept)

    def prefix(self) -> TokenIds:
        """Token ids of the kept segments."""
        return self._join(self._kept)

    def whole_prefix(self) -> TokenIds:
        """Token ids of the cut trace before pruning."""
        return self._join(range(len(self._spans)))

    def first_unnatural(self, whole: Sequence[float], kept: Sequence[float], max_drop: float) -> int | None:
        """Index of the first kept segment with a token whose log-probability dropped by more than `max_drop` nats, or
        None.

        `whole`, `kept`: the model's log-probabilities of the tokens of `whole_prefix` and of `prefix`. Segments before
        the first removed one are skipped: their context is unchanged.
        """
        starts = (0, *accumulate(map(len, self._spans)))
        position = 0
        for index in self._kept:
            width = len(self._spans[index])
            before = whole[starts[index] : starts[index] + width]
            after = kept[position : position + width]
            if index > min(self.removed) and any(old - new > max_drop for old, new in zip(before, after, strict=True)):
                return index
            position += width
        return None

    def restore_before(self, index: int) -> None:
        """Restores the nearest removed segment before the kept segment `index`."""
        self._kept = sorted([*self._kept, max(removed for removed in self.removed if removed < index)])

    def restore_all(self) -> None:
        """Restores all removed segments."""
        self._kept = list(range(len(self._spans)))

    def _join(self, indices: Iterable[int]) -> TokenIds:
        return TokenIds.join(self._spans[index] for index in indices)


def pruned_trace(
    row: OptimisedTrace, pruning: PruningPlan, endings: Sequence[tuple[TokenIds, Verdict]], threshold: float
) -> OptimisedTrace:
    """`row` without the removed segments, completed with the shortest correct one of fresh `endings`.

    Returns `row` unchanged unless more than `threshold` of the endings are correct and the result is shorter.
    """
    prefix, ending = pruning.prefix(), shortest_right(endings)
    right = sum(verdict is Verdict.RIGHT for _, verdict in endings)
    if (
        ending is None
        or right < min_successes(len(endings), threshold)
        or len(prefix) + len(ending) >= len(row.token_ids)
    ):
        return row
    return row.model_copy(update={"token_ids": prefix + ending, "removed": pruning.removed})
