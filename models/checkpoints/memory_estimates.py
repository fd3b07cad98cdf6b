"""Estimates of the device memory that a model needs, each with its formula."""

from __future__ import annotations

from typing import NamedTuple

from conf.engine import Engine
from conf.training import Lora, Training
from models.checkpoints.checkpoint import NOT_LANGUAGE, Checkpoint
from models.checkpoints.files import all_shapes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Need(NamedTuple):
    what: str
    bytes: float
    formula: str


def cache_bytes(model: Checkpoint, dtype: str) -> int:
    """Bytes of the KV cache per token, over all layers."""
    layers = model.number("num_hidden_layers")
    if "kv_lora_rank" in model.config:  # DeepSeek's compressed attention
        return layers * (model.number("kv_lora_rank") + model.number("qk_rope_head_dim")) * BYTES[dtype]
    heads = model.config.get("num_key_value_heads") or model.number("num_attention_heads")
    return 2 * layers * heads * model.head_size * BYTES[dtype]


def serving(model: Checkpoint, engine: Engine) -> list[Need]:
    weights, each = sum(model.tensor_sizes.values()), cache_bytes(model, engine.dtype)
    size = BYTES[engine.dtype]
    return [
        Need(f"weights, served in {engine.dtype}", weights * size, f"{weights:,} parameters × {size}"),
        Need("KV cache of a token", each, "2 × layers × key-value heads × head size × bytes, at most"),
        Need(
            "KV cache, every sequence as long as can be",
            each * engine.max_model_len * engine.max_num_seqs,
            f"{each:,} × engine.max_model_len {engine.max_model_len:,} × engine.max_num_seqs {engine.max_num_seqs}; "
            f"with less, vLLM "
            f"runs fewer sequences at once",
        ),
    ]


def training(model: Checkpoint, how: Training) -> list[Need]:
    weights, adapters = sum(model.tensor_sizes.values()), adapter_size(model, how.lora or Lora())
    tokens = how.per_device_train_batch_size * how.max_length
    hidden, layers = model.number("hidden_size"), model.number("num_hidden_layers")
    return [
        Need(
            "training of all weights", 16.0 * weights, "16 × parameters: weights, gradient and two moments in float32"
        ),
        Need(
            f"training of adapters of rank {(how.lora or Lora()).r}",
            4.0 * weights + 16.0 * adapters,
            f"4 × parameters + 16 × {adapters:,} adapter parameters",
        ),
        Need("DPO's reference, beside training of all weights", 4.0 * weights, "4 × parameters"),
        Need(
            "activations, kept between layers",
            2.0 * layers * tokens * hidden,
            f"2 × layers × rows {how.per_device_train_batch_size} × max_length {how.max_length:,} × hidden size",
        ),
        Need(
            "logits of SFT and DPO",
            8.0 * tokens * model.vocabulary,
            "8 × rows × max_length × vocabulary: float32, with their gradient; SimPO keeps none",
        ),
    ]


def adapter_size(model: Checkpoint, lora: Lora) -> int:
    """Parameters of adapters on all matrices except embedding and output head."""
    matrices = [
        shape
        for name, shape in all_shapes(model.folder).items()
        if len(shape) == 2
        and not name.endswith(("embed_tokens.weight", "lm_head.weight"))
        and not NOT_LANGUAGE.search(name)
    ]
    return sum(lora.r * sum(shape) for shape in matrices)
