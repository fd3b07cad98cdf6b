"""Folders of LoRA adapters, as PEFT writes them.

It knows their files. It must not know the model that they belong to, nor load a weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from models.checkpoints.files import SYNC_CHECK_FILE, CheckpointError, read_json, tensor_shapes

BASE_FINGERPRINT = "base_fingerprint"
"""Field of this file beside adapters: the fingerprint of the weights that they belong to."""
MAX_RANK = 512
"""The largest that vLLM serves."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class AdapterConfig(BaseModel):
    """What is used of adapter_config.json. The fields with a single value are kinds of adapters that are not read."""

    base_model_name_or_path: str
    """The model that they belong to: a folder, `owner/name` on the hub, or `tiny`."""
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    target_modules: list[str]
    peft_type: Literal["LORA"]
    bias: Literal["none"] = "none"
    use_dora: Literal[False] = False
    use_rslora: Literal[False] = False
    modules_to_save: list[str] | None = Field(default=None, max_length=0)
    lora_bias: Literal[False] = False
    init_lora_weights: Literal[True, False, "gaussian", "orthogonal", "eva"] | None = True
    """Others change the model's weights when they are made."""
    target_parameters: list[str] | None = Field(default=None, max_length=0)
    trainable_token_indices: list[int] | None = Field(default=None, max_length=0)
    layer_replication: list[Any] | None = Field(default=None, max_length=0)
    rank_pattern: dict[str, int] = Field(default={}, max_length=0)
    alpha_pattern: dict[str, float] = Field(default={}, max_length=0)

    @property
    def scale(self) -> float:
        """Of the product of their two matrices, which is added to the model's matrix."""
        return self.lora_alpha / self.r


def holds_adapters(folder: Path) -> bool:
    """Whether the folder holds adapters and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Raises CheckpointError for adapters that cannot be used, or are incomplete."""
    path, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{folder}: no {ADAPTER_WEIGHTS}; adapters need it beside {ADAPTER_CONFIG}")
    tensor_shapes(weights)
    try:
        return AdapterConfig.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: {field}: {first['msg']}; merge these adapters with the program that made them, and name the "
            f"whole model"
        ) from None


def base_fingerprint(folder: Path) -> str:
    """Of the weights that the adapters belong to, if a training of this suite has made them; else empty."""
    path = folder / SYNC_CHECK_FILE
    return str(read_json(path).get(BASE_FINGERPRINT, "")) if path.is_file() else ""
