"""What a model's work costs, and what shortening is worth: FLOPs, efficiency, AES.

Knows: token counts, a model's shape, the papers' formulas. Must not know: prices, clocks, files.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def training_flops(
        self,
        texts: Sequence[int],
        *,
        are_weights_frozen: bool = False,
        is_recomputed: bool = False,
        with_reference: bool = False,
    ) -> float:
        """Of one step's, or epoch's, texts of so many tokens each (of a pair: both sides).

        With N weights, F = 2·N·Σ t the forward pass through them and A = 4·L·d·Σ t·(t+1)/2 that through attention:
        forward F + A; backward to the activations F + 2·A (attention's forward is two products of two variable
        matrices, and each has two gradients); backward to the weights F, unless only adapters learn beside
        `are_weights_frozen`; once more F + A each where activations are computed again on the way back, and where a
        reference model reads the texts, too. Left out: adapters themselves, padding, the optimizer, and that the
        memory-safe SimPO loss reads the output head twice.
        """
        forwards = 1 + is_recomputed + with_reference
        weights = 2.0 * self.parameters * sum(texts) * (forwards + (1 if are_weights_frozen else 2))
        return weights + sum(self.attention_flops(0, tokens) for tokens in texts) * (forwards + 2)


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
