"""Preference pairs: which ones can be trained on (CoT distillation, arXiv 2509.05226; DTO, arXiv 2505.21765)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from reasoning.records import CompressedTrace, Pair, PairKind, Trace
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


def distillation_pair(prompt: TokenIds, trace: Trace, compressed: CompressedTrace) -> Pair:
    """The compressed trace is chosen, the original is rejected."""
    return Pair(
        problem_id=trace.problem_id,
        sample=trace.sample,
        kind=PairKind.COMPRESSED,
        prompt_ids=prompt,
        chosen_ids=compressed.token_ids,
        rejected_ids=trace.token_ids,
    )
