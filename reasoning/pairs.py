"""Preference pairs: which ones can be trained on (CoT distillation, arXiv 2509.05226; DTO, arXiv 2505.21765)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from reasoning.records import CompressedTrace, Pair, PairKind, Trace, by_trace
from reasoning.token_ids import TokenIds


def fit_pairs(pairs: Iterable[Pair], max_length: int) -> tuple[list[Pair], Counter[str]]:
    """Pairs that can be trained on, and the number of dropped pairs by reason. `max_length` limits prompt + completion
    in tokens."""
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for pair in pairs:
        reason = _unfit(pair, max_length)
        if reason is None:
            kept.append(pair)
        else:
            dropped[reason] += 1
    return kept, dropped


def _unfit(pair: Pair, max_length: int) -> str | None:
    """Reason why a pair cannot be trained on, or None."""
    if not pair.chosen_ids or not pair.rejected_ids:
        return "empty"  # its mean log-prob would be 0/0
    if pair.kind is not PairKind.PREMATURE_STOP and len(pair.chosen_ids) >= len(pair.rejected_ids):
        return "not-shorter"
    if len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) > max_length:
        return "too-long"
    return None


def distillation_pairs(
    prompts: Mapping[str, TokenIds], traces: Sequence[Trace], compressed: Sequence[CompressedTrace]
) -> list[Pair]:
    """Pairs of compressed trace (chosen) and original trace (rejected). `prompts`: token ids by problem id."""
    originals = by_trace(traces)
    return [
        Pair(
            problem_id=row.problem_id,
            sample=row.sample,
            kind=PairKind.COMPRESSED,
            prompt_ids=prompts[row.problem_id],
            chosen_ids=row.token_ids,
            rejected_ids=originals[row.problem_id, row.sample].token_ids,
        )
        for row in compressed
    ]
