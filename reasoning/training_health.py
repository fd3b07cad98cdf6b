"""How a round of reinforcement goes: has it collapsed, and when was it at its best.

Knows: figures of its steps, bounds. Must not know: models, rewards' meaning, files.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from conf.long_short import Bounds

SMOOTHED = 5
"""Steps whose mean is compared, since one step's dialogues are few."""


class Figures(BaseModel):
    """Means over the dialogues of one step, drawn with the weights that it began with."""

    model_config = ConfigDict(frozen=True)

    step: int
    tokens: float
    praised: float
    """Reward as weighted, without that for length, whose mean over a group says nothing of how good the group is."""


def collapse(course: Sequence[Figures], bounds: Bounds) -> str | None:
    """Why the round has collapsed; None while it has not."""
    first, last = course[0], _mean(course[-SMOOTHED:])
    if last.tokens < bounds.fewest_tokens * first.tokens or last.tokens > bounds.most_tokens * first.tokens:
        return f"dialogues went from {first.tokens:.0f} tokens to {last.tokens:.0f}"
    if last.praised < bounds.least_reward * first.praised:
        return f"the reward went from {first.praised:.2f} to {last.praised:.2f}"
    return None


def is_best(course: Sequence[Figures]) -> bool:
    """Whether no step was better than the last, each with those just before it."""
    means = [_mean(course[max(0, end - SMOOTHED) : end]).praised for end in range(1, len(course) + 1)]
    return means[-1] >= max(means)


def _mean(steps: Sequence[Figures]) -> Figures:
    return Figures(
        step=steps[-1].step, tokens=sum(one.tokens for one in steps) / len(steps),
        praised=sum(one.praised for one in steps) / len(steps),
    )  # fmt: skip
