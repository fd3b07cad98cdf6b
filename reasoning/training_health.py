"""Monitors a round of reinforcement learning: detects collapse and the best step."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from conf.long_short import CollapseLimits

SMOOTHING_STEPS = 5
"""Steps to average over, because a single step has few dialogues."""


class StepMetrics(BaseModel):
    """Means over the dialogues of one step, sampled with the weights at its start."""

    model_config = ConfigDict(frozen=True)

    step: int
    tokens: float
    """Tokens per dialogue."""
    quality_reward: float
    """Weighted reward without the length reward, whose group mean is no measure of quality."""


def collapse(history: Sequence[StepMetrics], limits: CollapseLimits) -> str | None:
    """Reason why the round has collapsed, or None."""
    first, last = history[0], _mean(history[-SMOOTHING_STEPS:])
    if last.tokens < limits.min_tokens * first.tokens or last.tokens > limits.max_tokens * first.tokens:
        return f"dialogues went from {first.tokens:.0f} tokens to {last.tokens:.0f}"
    if last.quality_reward < limits.min_quality_reward * first.quality_reward:
        return f"the reward went from {first.quality_reward:.2f} to {last.quality_reward:.2f}"
    return None


def is_best(history: Sequence[StepMetrics]) -> bool:
    """Whether the last step is the best so far, by the mean over recent steps."""
    means = [_mean(history[max(0, end - SMOOTHING_STEPS) : end]).quality_reward for end in range(1, len(history) + 1)]
    return means[-1] >= max(means)


def _mean(steps: Sequence[StepMetrics]) -> StepMetrics:
    return StepMetrics(
        step=steps[-1].step,
        tokens=sum(one.tokens for one in steps) / len(steps),
        quality_reward=sum(one.quality_reward for one in steps) / len(steps),
    )
