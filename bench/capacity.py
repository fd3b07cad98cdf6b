"""What the paper presets need of a node: writes docs/capacity.md. No GPU is used, and no model's weights.

    python -m bench.capacity

Memory and disk come from the estimates of `brevity doctor`, on files that have the names and shapes of the real models'
tensors and no content. Hours are lower bounds from the data sheet of a card.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from conf.engine import Engine
from conf.load import load
from conf.pipelines import PIPELINES
from conf.sampling import Sampling
from conf.training import Training
from flows.doctor.checks import GpuUse
from flows.needs import disk_bytes, gpu_uses, model_names
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.memory_estimates import cache_bytes
from tests.models.fakes import write_safetensors

TARGET = Path(__file__).parents[1] / "docs" / "capacity.md"
TEMPLATE = Path(__file__).parent / "capacity_template.md"
H100_BYTES, H100_BANDWIDTH = 80e9, 3.35e12
"""Memory and memory bandwidth of an H100 SXM, from NVIDIA's data sheet."""
MEAN_TOKENS = 3588
"""Published mean of R1-Distill-Qwen-1.5B on MATH-500 (arXiv 2509.05226, table 2)."""
SEGMENTS_PER_1000 = 9.3
"""Of `segment_text` on 600 traces of that model (uzaymacar/understanding-reasoning-models), most of them cut off."""
CLIENT_RATES = (740, 1340)
"""Requests a second with prompts of 4,096 ids on two shared cores: bench.replicas with eight servers, bench.client."""
QWEN: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 152064, "tie_word_embeddings": False}
LLAMA: dict[str, Any] = {"model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": False}


def dimensions(kind: dict[str, Any], hidden: int, inner: int, layers: int, heads: int, shared: int) -> dict[str, Any]:
    """A model's config.json."""
    return kind | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
    }


QWEN_7B = dimensions(QWEN, 3584, 18944, 28, 28, 4)
MODELS = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": dimensions(QWEN | {"vocab_size": 151936}, 1536, 8960, 28, 12, 2),
    "agentica-org/DeepScaleR-1.5B-Preview": dimensions(QWEN | {"vocab_size": 151936}, 1536, 8960, 28, 12, 2),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct": QWEN_7B,
    "meta-llama/Llama-3.1-8B-Instruct": dimensions(LLAMA, 4096, 14336, 32, 32, 8),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": dimensions(LLAMA, 4096, 14336, 32, 32, 8),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": dimensions(QWEN, 5120, 13824, 48, 40, 8),
}
"""Published dimensions of the models that the presets name."""
PRESETS = {
    "dto": ("paper-r1-1.5b", "paper-deepscaler-1.5b"),
    "cot-distillation": ("paper-1.5b", "paper-7b"),
    "long-short": ("paper-qwen2.5-7b", "paper-llama3.1-8b"),
}


def hollow(folder: Path, config: dict[str, Any]) -> Checkpoint:
    """A checkpoint of zeros that takes no room on disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    write_safetensors(folder / "model.safetensors", {name: list(one.shape) for name, one in model.state_dict().items()})
    return Checkpoint.without_fingerprint(folder)


class Server(NamedTuple):
    """What one server can do at best."""

    sequences: int
    """Completions at a time."""
    tokens_per_second: float


def at_best(model: Checkpoint, engine: Engine, length: int) -> Server:
    """Decoding on an H100: each step reads all weights and the KV cache of all sequences of `length` tokens."""
    weights, token = 2.0 * sum(model.tensor_sizes.values()), cache_bytes(model, "bfloat16")
    room = engine.gpu_memory_utilization / engine.servers_per_gpu * H100_BYTES - weights
    sequences = min(engine.max_num_seqs, int(room / token / length))
    return Server(sequences, sequences * H100_BANDWIDTH / (weights + sequences * length * token))


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f}"


def fits(use: GpuUse) -> str:
    room = use.share * H100_BYTES
    return "yes" if use.usual <= room else "with fewer rows" if use.least <= room else "no"


def memory_rows(name: str, settings: Any, models: dict[str, Checkpoint]) -> Iterator[list[str]]:
    own = {name: models[name] for name in model_names(settings)}
    alone, node = (list(gpu_uses(settings, own, gpus)) for gpus in (1, 8))
    for one, eight in zip(alone, node, strict=True):
        needed = f"{gigabytes(one.least)} to {gigabytes(one.usual)}" if one.usual > one.least else gigabytes(one.least)
        rooms = [gigabytes(use.share * H100_BYTES) for use in (one, eight)]
        yield [name, one.what, needed, f"{rooms[0]}: {fits(one)}", f"{rooms[1]}: {fits(eight)}"]


def disk_row(name: str, settings: Any, models: dict[str, Checkpoint]) -> list[str]:
    return [name, gigabytes(disk_bytes(settings, models[settings.model]))]


def sharded_rows(models: dict[str, Checkpoint]) -> Iterator[list[str]]:
    """Training of all weights, which the presets for 7 B leave to those who have eight GPUs."""
    for name in ("dto", "cot-distillation"):
        preset = PRESETS[name][-1]
        sections = [part for part in ("training", "sft", "dpo") if hasattr(load(PIPELINES[name], preset), part)]
        for part in sections:
            settings: Any = load(PIPELINES[name], preset)
            how: Training = getattr(settings, part).model_copy(update={"lora": None, "fsdp": True})
            large = settings.model_copy(update={part: how})
            seven = {settings.model: models["Qwen/Qwen2.5-7B-Instruct"]}
            found = [next(use for use in gpu_uses(large, seven, gpus) if use.what == f"[{part}]") for gpus in (1, 4, 8)]
            yield [f"{name} [{part}]", *(f"{gigabytes(use.least)}: {fits(use)}" for use in found)]


def rate_rows(models: dict[str, Checkpoint]) -> Iterator[list[str]]:
    for kind, presets in PRESETS.items():
        for preset in presets:
            settings: Any = load(PIPELINES[kind], preset)
            sampled = getattr(settings, "teacher", settings.model)
            name = sampled if isinstance(sampled, str) else getattr(sampled, "model", "") or settings.model
            best = at_best(models[name], settings.engine, MEAN_TOKENS // 2)
            yield [f"{kind} {preset}", name.partition("/")[2], f"{best.sequences}", f"{best.tokens_per_second:,.0f}"]


def table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def dto_hours(models: dict[str, Checkpoint]) -> str:
    """Sampling and probing of 7,500 problems, which DTO's preset asks for."""
    settings: Any = load(PIPELINES["dto"], "paper-r1-1.5b")
    sampling: Sampling = settings.sampling
    traces = 7500 * sampling.samples
    best = at_best(models[settings.model], settings.engine, MEAN_TOKENS // 2)
    prefixes = traces * MEAN_TOKENS * SEGMENTS_PER_1000 / 1000
    probe = settings.probing.sampling.samples * settings.probing.sampling.max_tokens
    rows = []
    for what, tokens, requests in (
        ("sampling", traces * MEAN_TOKENS, traces / sampling.samples),
        ("probing every prefix", prefixes * probe, prefixes),
    ):
        hours = [tokens / best.tokens_per_second / gpus / 3600 for gpus in (1, 8)]
        client = " to ".join(f"{requests / rate / 3600:.2f}" for rate in reversed(CLIENT_RATES))
        rows.append(
            [what, f"{tokens / 1e6:,.0f} M", f"{requests / 1e3:,.0f} k", *(f"{one:.2f}" for one in hours), client]
        )
    head = ["stage", "tokens", "requests", "1 GPU, hours at least", "8 GPUs, hours at least", "client alone, hours"]
    return table(head, rows)


def document(models: dict[str, Checkpoint]) -> str:
    every = [
        (f"{kind} {preset}", load(PIPELINES[kind], preset)) for kind, presets in PRESETS.items() for preset in presets
    ]
    memory = [row for name, settings in every for row in memory_rows(name, settings, models)]
    disk = [disk_row(name, settings, models) for name, settings in every]
    return TEMPLATE.read_text().format(
        memory=table(["preset", "part", "GB on each GPU", "1 GPU: GB of room", "8 GPUs: GB of room on each"], memory),
        sharded=table(["training of all weights, 7 B", "1 GPU", "4 GPUs", "8 GPUs"], sharded_rows(models)),
        disk=table(["preset", "GB at most"], disk),
        rates=table(["preset", "model that samples", "sequences at once", "tokens/s at most"], rate_rows(models)),
        dto=dto_hours(models),
        mean=MEAN_TOKENS,
        segments=SEGMENTS_PER_1000,
        slow=CLIENT_RATES[0],
        fast=CLIENT_RATES[1],
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = {name: hollow(Path(folder) / name, config) for name, config in MODELS.items()}
        TARGET.write_text(document(models))
    print(TARGET.read_text())


if __name__ == "__main__":
    main()
