"""Estimates of the device memory that a model needs, each with its formula."""

from __future__ import annotations

from typing import NamedTuple

from conf.engine import Engine
from conf.long_short import Grpo
from conf.training import Dpo, Lora, SimPO, Training
from models.checkpoints.checkpoint import NOT_LANGUAGE, Checkpoint
from models.checkpoints.files import all_shapes

ENDS = ("embed_tokens.weight", "lm_head.weight")
"""Embedding and output head."""
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


def least_serving_bytes(model: Checkpoint, engine: Engine) -> float:
    """Device memory without which vLLM does not start: the weights, and the KV cache of one sequence as long as can
    be."""
    weights, token, _ = serving(model, engine)
    return weights.bytes + token.bytes * engine.max_model_len


def training(model: Checkpoint, how: Training) -> list[Need]:
    """What each kind of training takes; `training_bytes` adds those that a section asks for."""
    return [
        _all_weights(model),
        _adapters(model, how.lora or Lora()),
        _reference(model),
        _activations(model, how.per_device_train_batch_size, how.max_length),
        _logits(model, how.per_device_train_batch_size, how.max_length),
    ]


def training_bytes(model: Checkpoint, how: Training, gpus: int = 1) -> float:
    """Device memory of the training that section `how` asks for, with a batch of its longest rows, on each of `gpus`
    GPUs."""
    rows, length, has_reference = how.per_device_train_batch_size, how.max_length, isinstance(how, Dpo)
    kept = sum(need.bytes for need in _kept(model, how.lora, has_reference))
    if how.fsdp and gpus > 1:
        kept = kept / gpus + _gathered_bytes(model, has_reference and how.lora is None)
    needs = [_activations(model, rows, length)]
    needs += [] if isinstance(how, SimPO) else [_logits(model, rows, length)]
    return kept + sum(need.bytes for need in needs)


def _gathered_bytes(model: Checkpoint, has_reference: bool) -> float:
    """What FSDP gathers on each GPU at once, in float32: embedding and output head, with their gradients; TRL shards
    DPO's reference as one piece, and gathers all of it."""
    ends = sum(
        size for name, size in model.tensor_sizes.items() if name.endswith(("embed_tokens.weight", "lm_head.weight"))
    )
    return 8.0 * ends + (_reference(model).bytes if has_reference else 0.0)


def grpo_bytes(model: Checkpoint, how: Grpo, dialogue_tokens: int) -> float:
    """Device memory of GRPO beside its servers, with one dialogue of `dialogue_tokens` tokens, which may be 0."""
    per_token = [_activations(model, 1, dialogue_tokens), _logits(model, 1, dialogue_tokens)]
    return sum(need.bytes for need in [*_kept(model, how.lora, how.beta > 0), *per_token])


def trained_parameters(model: Checkpoint, lora: Lora | None) -> int:
    return adapter_size(model, lora) if lora else sum(model.tensor_sizes.values())


def _kept(model: Checkpoint, lora: Lora | None, has_reference: bool) -> list[Need]:
    """What stays in memory for the whole training. With adapters, the reference is the model without them."""
    if lora:
        return [_adapters(model, lora)]
    return [_all_weights(model), *([_reference(model)] if has_reference else [])]


def _all_weights(model: Checkpoint) -> Need:
    formula = "16 × parameters: weights, gradient and two moments in float32"
    return Need("training of all weights", 16.0 * sum(model.tensor_sizes.values()), formula)


def _adapters(model: Checkpoint, lora: Lora) -> Need:
    weights, adapters = sum(model.tensor_sizes.values()), adapter_size(model, lora)
    return Need(
        f"training of adapters of rank {lora.r}",
        4.0 * weights + 16.0 * adapters,
        f"4 × parameters + 16 × {adapters:,} adapter parameters",
    )


def _reference(model: Checkpoint) -> Need:
    weights = 4.0 * sum(model.tensor_sizes.values())
    return Need("DPO's reference, beside training of all weights", weights, "4 × parameters")


def _activations(model: Checkpoint, rows: int, length: int) -> Need:
    return Need(
        "activations, kept between layers",
        2.0 * model.number("num_hidden_layers") * rows * length * model.number("hidden_size"),
        f"2 × layers × rows {rows} × max_length {length:,} × hidden size",
    )


def _logits(model: Checkpoint, rows: int, length: int) -> Need:
    return Need(
        "logits of SFT and DPO",
        8.0 * rows * length * model.vocabulary,
        "8 × rows × max_length × vocabulary: float32, with their gradient; SimPO keeps none",
    )


def adapter_size(model: Checkpoint, lora: Lora) -> int:
    """Parameters of adapters on all matrices except embedding and output head."""
    matrices = [
        shape
        for name, shape in all_shapes(model.folder).items()
        if len(shape) == 2 and not name.endswith(ENDS) and not NOT_LANGUAGE.search(name)
    ]
    return sum(lora.r * sum(shape) for shape in matrices)
