"""What a model's work costs, and what shortening is worth: FLOPs, efficiency, AES.

Knows: token counts, a model's shape, the papers' formulas. Must not know: prices, clocks, files.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """The numbers of a transformer that its cost depends on."""

    model_config = ConfigDict(frozen=True)

    parameters: int
    """Weights that multiply activations: all but the input embedding's look-up (tied weights count once)."""
    layers: int
    attention_width: int
    """Query heads × head size."""

    def attention_flops(self, prompt: int, new: int) -> float:
        """4·L·d·Σ t over the positions t = m+1 … m+n of the n new tokens after m prompt tokens (section B)."""
        positions = (prompt + 1 + prompt + new) * new / 2
        return 4.0 * self.layers * self.attention_width * positions

    def forward_flops(self, prompt: int, cached: int, generated: int) -> float:
        """Forward pass over the prompt tokens that were not cached and over the generated ones: two per weight, and
        attention."""
        weights = 2.0 * self.parameters * (prompt - cached + generated)
        return weights + self.attention_flops(cached, prompt - cached + generated)

    def training_flops(self, tokens: int) -> float:
        """Forward and backward: six per weight and token."""
        return 6.0 * self.parameters * tokens


def efficiency(accuracy: float, tokens: float, base_accuracy: float, base_tokens: float) -> float | None:
    """(Acc/Acc₀)/(Tok/Tok₀); None where the base is never right or the model says nothing."""
    if base_accuracy == 0 or tokens == 0:
        return None
    return (accuracy / base_accuracy) / (tokens / base_tokens)


def aes(accuracy: float, tokens: float, base_accuracy: float, base_tokens: float) -> float | None:
    """η·ΔL + ς·|ΔA| with η = 1 and ς = 3 for a gain, −5 for a loss of accuracy (section C.6); None for Acc₀ = 0."""
    if base_accuracy == 0:
        return None
    shorter = (base_tokens - tokens) / base_tokens
    better = (accuracy - base_accuracy) / base_accuracy
    return shorter + (3 if better >= 0 else -5) * abs(better)
