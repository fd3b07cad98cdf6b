"""Training settings: common fields, SFT, DPO, SimPO, LoRA."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from conf.base import Positive, PositiveFloat, Settings, Share


class Lora(Settings):
    """LoRA adapters on all linear layers. They are saved and served as adapters; `brevity export` merges them."""

    RENAMED: ClassVar[dict[str, str]] = {"rank": "r"}

    r: Annotated[int, Field(ge=1, le=512)] = 32
    """Rank of the adapters. Not from the paper, which trains all weights."""
    alpha: Positive = 64
    """Scaling of the adapters (PEFT's `lora_alpha`). Not from the paper."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in the adapters. Not from the paper."""
    merge: bool = False
    """Saves the whole model with the adapters merged, for an architecture whose adapters vLLM cannot serve, or for
    faster sampling: many gigabytes instead of some megabytes. While GRPO trains, it serves adapters in any case. Not
    from the paper."""


class Training(Settings):
    """Settings that all TRL trainers share."""

    RENAMED: ClassVar[dict[str, str]] = {
        "batch": "global_batch_size",
        "micro_batch": "per_device_train_batch_size",
        "epochs": "num_train_epochs",
        "warmup": "warmup_ratio",
    }

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "per_device_train_batch_size": "splits the same step into smaller pieces; on several GPUs, other rows "
        "may be left over at the end of an epoch",
        "fsdp": "computes the same step on parts of the weights",
    }

    learning_rate: PositiveFloat
    """Peak learning rate."""
    num_train_epochs: Positive = 1
    """Passes over the training set."""
    global_batch_size: Positive = 16
    """Rows per optimizer step. Not from the paper."""
    per_device_train_batch_size: Positive = 16
    """Rows per forward pass. Halved automatically when memory runs out."""
    max_length: Positive = 2048
    """Maximum prompt + completion length in tokens. Longer rows are dropped and counted, never truncated."""
    warmup_ratio: Share = 0.1
    """Fraction of steps with linear warmup; cosine decay follows. Not from the paper."""
    bf16: bool = True
    """On a GPU: computes in bfloat16 where that is safe; weights stay in float32. A CPU always computes in float32,
    which was ten times as fast there. Not from the paper."""
    lora: Lora | None = None
    """LoRA settings. Omit to train all weights, as in the papers."""
    fsdp: bool = False
    """Shards weights, gradients and optimizer states over all visible GPUs (PyTorch's FSDP2), for a model whose
    training one GPU cannot hold. Otherwise each GPU holds everything. No effect with one GPU. Not from the paper."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.global_batch_size % self.per_device_train_batch_size:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of per_device_train_batch_size "
                f"({self.per_device_train_batch_size})"
            )
        return self


class SimPO(Training):
    """SimPO on preference pairs (DTO, arXiv 2505.21765)."""

    RENAMED: ClassVar[dict[str, str]] = {"gamma": "simpo_gamma", "sft_weight": "cpo_alpha"}

    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate. Not from the paper. Real models need 3e-7 to 1e-6, the tiny model far more."""
    beta: PositiveFloat = 2.0
    """β, scale of the length-normalised log-probabilities. Not from the paper but from its closest published
    relative."""
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.3
    """γ, the target reward margin itself, not γ/β. Not from the paper but from its closest published relative."""
    cpo_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an additional cross-entropy term on the chosen side (TRL's `cpo_alpha`). Not from the paper."""


class Sft(Training):
    """Supervised fine-tuning on completions (CoT distillation, arXiv 2509.05226)."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate. Not from the paper. The tiny model needs far more."""
    num_train_epochs: Positive = 2
    """Passes over the training set. Not from the paper."""


class Dpo(Training):
    """DPO on preference pairs; the reference is the model that training starts from (CoT distillation, arXiv
    2509.05226)."""

    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate. Not from the paper. The tiny model needs far more."""
    beta: PositiveFloat = 0.1
    """β, strength of the implicit KL penalty. Not from the paper."""
