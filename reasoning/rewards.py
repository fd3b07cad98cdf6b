"""Rewards of a dialogue (Long⊗Short, papers, section C.5).

Knows: groups of dialogues about one problem, their lengths and verdicts. Must not know: turns, trainers, weights.
"""

from __future__ import annotations

from collections.abc import Sequence

METHOD_VERSION = "1"


def length_rewards(tokens: Sequence[int], right: Sequence[bool]) -> list[float]:
    """Of the dialogues of one problem: 0.5 for the shortest to -0.5 for the longest, and no praise for a wrong one.
    0 where all are equally long."""
    shortest, longest = min(tokens), max(tokens)
    if shortest == longest:
        return [0.0] * len(tokens)
    shares = [0.5 - (count - shortest) / (longest - shortest) for count in tokens]
    return [share if is_right else min(0.0, share) for share, is_right in zip(shares, right, strict=True)]
