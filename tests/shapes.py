"""Shape models: a real architecture with a real tokenizer and template, two layers of hidden size 64, random weights.

They test ids, templates, stop tokens, vocabulary-sized tensors and file sizes. Their texts mean nothing.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Array = np.ndarray[Any, np.dtype[np.float32]]
HIDDEN, INNER, LAYERS = 64, 128, 2
HEAD = 32
"""Head size; the smallest that vLLM's CPU attention supports."""
SPREAD = 0.02
"""Standard deviation of the random weights, as `initializer_range`."""
R1_THINKS = ("{{'<｜Assistant｜>'}}{% endif %}", "{{'<｜Assistant｜><think>\\n'}}{% endif %}")
"""End of DeepSeek-V3's template, and that of DeepSeek-R1's distilled models, which opens the thinking."""


@dataclass(frozen=True)
class Shape:
    """The files of a real model, with small sizes."""

    vocabulary: str
    """Folder of the real tokenizers with its tokenizer.json."""
    config: dict[str, Any]
    generation: dict[str, Any]
    renamed: dict[str, str] = field(default_factory=dict)
    """Added tokens of the vocabulary, and their names in this model."""
    is_r1: bool = False
    """Whether its tokenizer configuration is DeepSeek's."""


COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": SPREAD,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "max_position_embeddings": 131072,
    "transformers_version": "4.51.0",
}
QWEN2: dict[str, Any] = COMMON | {
    # Qwen2 has no setting for the head size.
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 151936,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": LAYERS,
}
GROUPED: dict[str, Any] = COMMON | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HEAD}
QWEN3: dict[str, Any] = GROUPED | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "rope_theta": 1000000,
    "attention_bias": False,
    "max_window_layers": LAYERS,
    "rope_scaling": None,
    "sliding_window": None,
    "use_sliding_window": False,
}
LLAMA: dict[str, Any] = GROUPED | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
R1_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
SHAPES = {
    "r1-distill-qwen": Shape(
        "qwen3",
        QWEN2 | {"bos_token_id": 151643, "eos_token_id": 151643},
        {"bos_token_id": 151646, "eos_token_id": 151643, **R1_SAMPLING},
        {
            "<|endoftext|>": "<｜end▁of▁sentence｜>",
            "<|im_start|>": "<｜User｜>",
            "<|im_end|>": "<｜Assistant｜>",
            "<|object_ref_start|>": "<｜begin▁of▁sentence｜>",
        },
        is_r1=True,
    ),
    "qwen3": Shape(
        "qwen3",
        QWEN3 | {"bos_token_id": 151643, "eos_token_id": 151645},
        {
            "bos_token_id": 151643,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "do_sample": True,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
        },
    ),
    "llama3.1": Shape(
        "llama3_1",
        LLAMA | {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]},
        {
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.9,
        },
    ),
    "r1-distill-llama": Shape(
        "llama3_1",
        LLAMA | {"bos_token_id": 128000, "eos_token_id": 128001},
        {"bos_token_id": 128000, "eos_token_id": 128001, **R1_SAMPLING},
        {
            "<|begin_of_text|>": "<｜begin▁of▁sentence｜>",
            "<|end_of_text|>": "<｜end▁of▁sentence｜>",
            "<|reserved_special_token_3|>": "<｜User｜>",
            "<|reserved_special_token_4|>": "<｜Assistant｜>",
            "<|reserved_special_token_5|>": "<think>",
            "<|reserved_special_token_6|>": "</think>",
        },
        is_r1=True,
    ),
}


def make_shape(folder: Path, name: str, tokenizers: Path) -> Path:
    """Writes the checkpoint of shape `name` to `folder / name`. `tokenizers`: folder of the real tokenizers."""
    shape, path = SHAPES[name], folder / name
    path.mkdir(parents=True)
    files = {
        "config.json": shape.config,
        "generation_config.json": shape.generation,
        "tokenizer.json": _tokenizer(shape, tokenizers),
        "tokenizer_config.json": _tokenizer_config(shape, tokenizers),
    }
    for file, content in files.items():
        (path / file).write_text(json.dumps(content))
    save_file(_weights(shape.config), path / "model.safetensors", {"format": "pt"})
    return path


def make_shapes(folder: Path, tokenizers: Path) -> dict[str, Path]:
    return {name: make_shape(folder, name, tokenizers) for name in SHAPES}


def _tokenizer(shape: Shape, tokenizers: Path) -> dict[str, Any]:
    with gzip.open(tokenizers / shape.vocabulary / "tokenizer.json.gz", "rt", encoding="utf-8") as file:
        tokenizer = json.load(file)
    for token in tokenizer["added_tokens"]:
        if token["content"] in shape.renamed:
            token["content"] = shape.renamed[token["content"]]
            token["special"] = (
                "sentence" in token["content"]
            )  # in DeepSeek's tokenizers, roles and tags are not special
    return tokenizer


def _tokenizer_config(shape: Shape, tokenizers: Path) -> dict[str, Any]:
    source = "deepseek_v3" if shape.is_r1 else shape.vocabulary
    config = json.loads((tokenizers / source / "tokenizer_config.json").read_text())
    if shape.is_r1:
        assert config["chat_template"].endswith(R1_THINKS[0])
        config["chat_template"] = config["chat_template"].removesuffix(R1_THINKS[0]) + R1_THINKS[1]
    return config


def _weights(config: dict[str, Any]) -> dict[str, Array]:
    rng = np.random.default_rng(0)

    def random(*extents: int) -> Array:
        return rng.standard_normal(extents, dtype=np.float32) * np.float32(SPREAD)

    weights = {"model.embed_tokens.weight": random(config["vocab_size"], HIDDEN), "model.norm.weight": _ones(HIDDEN)}
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = random(config["vocab_size"], HIDDEN)
    queries, keys = (HEAD * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    matrices = {
        "self_attn.q_proj": (queries, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, queries),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    for layer in range(LAYERS):
        own = {f"{name}.weight": random(*extents) for name, extents in matrices.items()}
        own |= {f"{name}_layernorm.weight": _ones(HIDDEN) for name in ("input", "post_attention")}
        if config["model_type"] == "qwen2":
            own |= {f"{name}.bias": random(matrices[name][0]) for name in list(matrices)[:3]}
        if config["model_type"] == "qwen3":
            own |= {f"self_attn.{name}_norm.weight": _ones(HEAD) for name in "qk"}
        weights |= {f"model.layers.{layer}.{name}": tensor for name, tensor in own.items()}
    return weights


def _ones(size: int) -> Array:
    return np.ones(size, dtype=np.float32)
