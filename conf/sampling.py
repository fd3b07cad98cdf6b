"""Sampling parameters of completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from conf.base import Positive, Settings, Share


class Sampling(Settings):
    """Sampling parameters."""

    samples: Positive = 4
    """Completions per prompt. The DTO paper uses 4."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.6
    """Sampling temperature. 0 is greedy. The DTO paper uses 0.6."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling: cumulative probability to sample from. The DTO paper uses 0.95."""
    max_tokens: Positive = 768
    """Maximum length of a completion in tokens; longer ones are truncated. The DTO paper uses 8192. The default suits
    the tiny model's shorter traces."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Samples from this many of the most likely tokens; 0 disables the limit. Not from the paper."""
    min_p: Share = 0.0
    """Minimum probability of a sampled token, relative to the most likely one; 0 disables the limit. Not from the
    paper."""

    @property
    def request(self) -> dict[str, float]:
        """As parameters of a vLLM request. Limits at their neutral value are omitted."""
        neutral = {name: getattr(self, name) for name in ("top_k", "min_p") if getattr(self, name)}
        return {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, **neutral}

    @model_validator(mode="after")
    def _greedy_needs_one_sample(self) -> Sampling:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature 0 always draws the same completion: set samples to 1, not {self.samples}")
        return self
