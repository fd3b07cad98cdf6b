"""Training: the shared settings, SFT, DPO, SimPO, LoRA."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from conf.base import Positive, PositiveFloat, Settings, Share


class Lora(Settings):
    """Training of low-rank adapters on all linear layers; they are merged into the saved checkpoint."""

    RENAMED: ClassVar[dict[str, str]] = {"rank": "r"}

    r: Positive = 32
    """Not from the paper, which trains all weights."""
    alpha: Positive = 64
    """Not from the paper."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Not from the paper."""


class Training(Settings):
    """What all trainings through TRL share."""

    RENAMED: ClassVar[dict[str, str]] = {
        "batch": "global_batch_size",
        "micro_batch": "per_device_train_batch_size",
        "epochs": "num_train_epochs",
        "warmup": "warmup_ratio",
    }

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "per_device_train_batch_size": "splits the same step into smaller pieces; the gradient is the same"
    }

    learning_rate: PositiveFloat
    num_train_epochs: Positive = 1
    global_batch_size: Positive = 16
    """Rows per optimizer step. Not from the paper."""
    per_device_train_batch_size: Positive = 16
    """Rows per forward pass; halved by itself when memory runs out."""
    max_length: Positive = 2048
    """Longest prompt + completion in tokens; must hold whole traces. Longer rows are set aside and
    counted, never cut."""
    warmup_ratio: Share = 0.1
    """Share of the steps with a rising learning rate; a cosine follows. Not from the paper."""
    bf16: bool = True
    """Computes in bfloat16 where that is safe; weights stay in float32. Off on processors without such arithmetic,
    where a large vocabulary trains far slower with it. Not from the paper."""
    lora: Lora | None = None
    """Not given: all weights are trained, as in the papers."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.global_batch_size % self.per_device_train_batch_size:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of per_device_train_batch_size "
                f"({self.per_device_train_batch_size})"
            )
        return self


class SimPO(Training):
    """SimPO (section B.8) on preference pairs."""

    RENAMED: ClassVar[dict[str, str]] = {"gamma": "simpo_gamma", "sft_weight": "cpo_alpha"}

    learning_rate: PositiveFloat = 5e-7
    """Not from the paper; 3e-7 … 1e-6 on real models, far larger on the tiny one."""
    beta: PositiveFloat = 2.0
    """Not from the paper, but from its closest published relative."""
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.3
    """The target margin γ itself, not γ/β. Not from the paper, but from its closest published relative."""
    cpo_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an added cross-entropy term on the chosen side (TRL's `cpo_alpha`). Not from the paper."""


class Sft(Training):
    """Supervised fine-tuning on whole completions (section A.4)."""

    learning_rate: PositiveFloat = 1e-5
    """Not from the paper; far larger on the tiny model."""
    epochs: Positive = 2
    """Not from the paper."""


class Dpo(Training):
    """DPO on preference pairs, against the model that it starts from (section A.4)."""

    learning_rate: PositiveFloat = 5e-7
    """Not from the paper; far larger on the tiny model."""
    beta: PositiveFloat = 0.1
    """Not from the paper."""
