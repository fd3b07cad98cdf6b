"""Cost of training and inference in FLOPs, and the papers' efficiency metrics."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """Dimensions of a transformer that determine its FLOPs."""

    model_config = ConfigDict(frozen=True)

    parameters: int
    """Weights used in matrix products: all except the input embedding (tied weights count once)."""
    layers: int
    attention_width: int
    """Query heads × head size."""

    def attention_flops(self, prompt: int, new: int) -> float:
        """4·L·d·Σ t over the positions t = m+1 … m+n of the n new tokens after m prompt tokens. DTO reports
        attention FLOPs without printing a formula."""
        positions = (prompt + 1 + prompt + new) * new / 2
        return 4.0 * self.layers * self.attention_width * positions

    def forward_flops(self, prompt: int, cached: int, generated: int) -> float:
        """Forward pass over uncached prompt tokens and generated tokens: two FLOPs per weight and token, plus
        attention."""
        weights = 2.0 * self.parameters * (prompt - cached + generated)
        return weights + self.attention_flops(cached, prompt - cached + generated)

    def training_flops(
        self,
        texts: Sequence[int],
        *,
        are_weights_frozen: bool = False,
        gradient_checkpointing: bool = False,
        with_reference: bool = False,
    ) -> float:
        """FLOPs of training on `texts`, given as token counts (of a pair: both sides).

        With N weights, F = 2·N·Σ t is the forward pass through the weights, and A = 4·L·d·Σ t·(t+1)/2 through
        attention. Training takes:

        - forward: F + A
        - backward to activations: F + 2·A (both operands of attention's products need gradients)
        - backward to weights: F, unless `are_weights_frozen` (adapters only)
        - `gradient_checkpointing`, which recomputes activations: F + A more; a reference model: F + A more

        Not counted: adapters, padding, the optimizer, and the second pass through the output head in the
        memory-efficient SimPO loss.
        """
        forwards = 1 + gradient_checkpointing + with_reference
        weights = 2.0 * self.parameters * sum(texts) * (forwards + (1 if are_weights_frozen else 2))
        return weights + sum(self.attention_flops(0, tokens) for tokens in texts) * (forwards + 2)


def efficiency(accuracy: float, tokens: float, base_accuracy: float, base_tokens: float) -> float | None:
    """(Acc/Acc₀)/(Tok/Tok₀) (DTO, arXiv 2505.21765). None if Acc₀ or Tok is 0."""
    if base_accuracy == 0 or tokens == 0:
        return None
    return (accuracy / base_accuracy) / (tokens / base_tokens)


def aes(accuracy: float, tokens: float, base_accuracy: float, base_tokens: float) -> float | None:
    """η·ΔL + ς·|ΔA| with η = 1, and ς = 3 if ΔA ≥ 0, else −5 (Long⊗Short, arXiv 2505.11827). None if Acc₀ = 0."""
    if base_accuracy == 0:
        return None
    shorter = (base_tokens - tokens) / base_tokens
    better = (accuracy - base_accuracy) / base_accuracy
    return shorter + (3 if better >= 0 else -5) * abs(better)
