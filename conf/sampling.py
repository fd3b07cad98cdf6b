"""How completions are sampled."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from conf.base import Positive, Settings, Share


class Sampling(Settings):
    """How a completion is drawn."""

    samples: Positive = 4
    """Completions per prompt. The paper draws 4."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.6
    """The paper's value."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """The paper's value."""
    max_tokens: Positive = 768
    """Completions are cut here. The paper's value is 8192; the tiny model's traces are shorter."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only so many of the likeliest tokens; 0: all. Not from the paper."""
    min_p: Share = 0.0
    """Only tokens with at least this share of the likeliest one's probability. Not from the paper."""

    @property
    def request(self) -> dict[str, float]:
        """In vLLM's words; what changes nothing is left out."""
        neutral = {name: getattr(self, name) for name in ("top_k", "min_p") if getattr(self, name)}
        return {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, **neutral}

    @model_validator(mode="after")
    def _worth_repeating(self) -> Sampling:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature 0 always draws the same completion: set samples to 1, not {self.samples}")
        return self
