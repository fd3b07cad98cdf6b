"""Pruning a shortened trace, embedded form: a segment is redundant when the answer is reached without it (B.6).

Knows: segments in token ids, the rule by which a removal stands. Must not know: engines, texts, where probes come from.

Greedy from left to right: each inner segment is left out once; when the rest still passes the probe it stays out,
otherwise it is rolled back. The first segment (the start of the reasoning) and the last (where the answer became
clear) always stay.

A text can lead to the answer and still make no sense: "Now it is 86, not 96" where nothing says 96 any more. Trained
on, that costs accuracy (docs/log.md). So what is kept must also stay *natural*: where one of its tokens has become far
less likely to the model itself than it was in the whole trace, the nearest removed segment before it comes back. Ours,
not the paper's.

Who proposes: in the paper an auxiliary LLM (`reasoning.pruning_proposals`); embedded, every inner segment is proposed.
The check decides in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from reasoning.dto import shortest_right
from reasoning.records import OptimisedTrace, Trace, Verdict
from reasoning.sampling_plans import Outcomes, SampleRange, SequentialTest, min_successes


class OpenPruning:
    """A `Plan`: a cut trace whose inner segments are being left out one by one."""

    def __init__(
        self, trace: Trace, ends: Sequence[int], total: int, threshold: float, proposed: Sequence[int] | None = None
    ):
        """`ends`: token ends of the segments up to the crossing; `proposed`: which of them may go (all), by index."""
        self._spans = [trace.token_ids[start:end] for start, end in pairwise((0, *ends))]
        self._kept = list(range(len(ends)))
        self._open = [
            index
            for index in sorted(set(range(len(ends)) if proposed is None else proposed))
            if 0 < index < len(ends) - 1
        ]
        self._total, self._threshold = total, threshold
        self._trial = SequentialTest(total, threshold)
        self._under_way = False
        self._trace = trace

    @property
    def trace(self) -> Trace:
        return self._trace

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def next_ranges(self) -> list[SampleRange]:
        """Rollouts of what is left when the next proposed segment goes, too; the ask's prefix is that segment."""
        if self._under_way or not self._open:
            return []
        self._under_way = True
        return [SampleRange(self._open[0], len(self._trial.outcomes), self._trial.next_batch_size())]

    def without(self, segment: int) -> tuple[int, ...]:
        """Token ids of what is kept, without `segment`."""
        return self._join(index for index in self._kept if index != segment)

    def add(self, ask: SampleRange, outcomes: Outcomes) -> None:
        self._under_way = False
        self._trial.add(outcomes)
        if self._trial.passed is None:
            return
        if self._trial.passed:
            self._kept.remove(ask.prefix)
        self._open.pop(0)
        self._trial = SequentialTest(self._total, self._threshold)

    @property
    def removed(self) -> tuple[int, ...]:
        """Indices of the segments that went, in order."""
        return tuple(index for index in range(len(self._spans)) if index not in self._kept)

    def prefix(self) -> tuple[int, ...]:
        """Token ids of all that is kept."""
        return self._join(self._kept)

    def whole_prefix(self) -> tuple[int, ...]:
        """Token ids of the trace up to its cut, nothing left out."""
        return self._join(range(len(self._spans)))

    def first_unnatural(self, whole: Sequence[float], kept: Sequence[float], most: float) -> int | None:
        """The first kept segment with a token that lost more than `most` nats; None when there is none. What stands
        before all removed segments reads as before.

        `whole` and `kept` are the model's log-probs of each token of `whole_prefix` and of `prefix`.
        """
        starts = (0, *accumulate(map(len, self._spans)))
        position = 0
        for index in self._kept:
            width = len(self._spans[index])
            before = whole[starts[index] : starts[index] + width]
            after = kept[position : position + width]
            if index > min(self.removed) and any(old - new > most for old, new in zip(before, after, strict=True)):
                return index
            position += width
        return None

    def restore_before(self, index: int) -> None:
        """Puts back the nearest removed segment before the kept segment `index`."""
        self._kept = sorted([*self._kept, max(removed for removed in self.removed if removed < index)])

    def restore_all(self) -> None:
        """Leaves the trace as it was."""
        self._kept = list(range(len(self._spans)))

    def _join(self, indices: Iterable[int]) -> tuple[int, ...]:
        return tuple(token for index in indices for token in self._spans[index])


def pruned_trace(
    row: OptimisedTrace, pruning: OpenPruning, endings: Sequence[tuple[tuple[int, ...], Verdict]], threshold: float
) -> OptimisedTrace:
    """`row` without what was removed and with the shortest right one of fresh `endings`.

    `row` itself, as it was, unless those confirm the answer (more than `threshold` of them right) and the trace got
    shorter.
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
