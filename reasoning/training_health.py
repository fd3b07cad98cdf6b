"""How a round of reinforcement goes: has it collapsed, and when was it at its best.

Knows: figures of its steps, bounds. Must not know: models, rewards' meaning, files.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from conf.long_short import CollapseLimits

SMOOTHED = 5
"""Steps whose mean is compared, since one step's dialogues are few."""


class StepFigures(BaseModel):
    """Means over the dialogues of one step, drawn with the weights that it began with."""

    model_config = ConfigDict(frozen=True)

    step: int
    tokens: float
    quality_reward: float
    """Reward as weighted, without that for length, whose mean over a group says nothing of how good the group is."""


def collapse(history: Sequence[StepFigures], bounds: CollapseLimits) -> str | None:
    """Why the round has collapsed; None while it has not."""
    first, last = history[0], _mean(history[-SMOOTHED:])
    if last.tokens < bounds.min_tokens * first.tokens or last.tokens > bounds.max_tokens * first.tokens:
        return f"dialogues went from {first.tokens:.0f} tokens to {last.tokens:.0f}"
    if last.quality_reward < bounds.min_quality_reward * first.quality_reward:
        return f"the reward went from {first.quality_reward:.2f} to {last.quality_reward:.2f}"
    return None


def is_best(history: Sequence[StepFigures]) -> bool:
    """Whether no step was better than the last, each with those just before it."""
    means = [_mean(history[max(0, end - SMOOTHED) : end]).quality_reward for end in range(1, len(history) + 1)]
    return means[-1] >= max(means)


def _mean(steps: Sequence[StepFigures]) -> StepFigures:
    return StepFigures(
        step=steps[-1].step,
        tokens=sum(one.tokens for one in steps) / len(steps),
        quality_reward=sum(one.quality_reward for one in steps) / len(steps),
    )
