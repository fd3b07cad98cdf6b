"""What a step of reinforcement writes and waits for until its weights are served and proven: adapters against merged
weights, which were written before.

    BREVITY_TEST_TOKENIZERS=… python -m bench.adapters      # writes bench/results/adapters.json

A shape model with the widths and the vocabulary of Qwen2.5-1.5B and two of its 28 layers, random weights, adapters of
rank 32 on all linear layers; vLLM on the CPU in float32. Each round trains nothing: it changes the adapters at random.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from bench.rollouts import machine
from conf.engine import Engine
from models.checkpoints.checkpoint import Checkpoint
from models.inference.sync_check import SyncCheck
from models.inference.vllm_server import VllmServer
from models.training.grpo import RL_SYNC_CHECK_TOKENS, write_weights
from models.training.weights import log_probs_of
from reasoning.token_ids import TokenIds
from tests.shapes import make_shape

RESULT = Path(__file__).parent / "results" / "adapters.json"
ROUNDS, RANK = 3, 32
WIDTHS: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}


def make_model(folder: Path) -> Checkpoint:
    """The shape model, with wider layers than those of the tests."""
    made = make_shape(folder, "r1-distill-qwen", Path(os.environ["BREVITY_TEST_TOKENIZERS"]))
    config = Qwen2Config.from_pretrained(made, **WIDTHS)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(made)
    return Checkpoint.open(made)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def as_merged(model: Any, start: Checkpoint, folder: Path, ids: list[int]) -> Checkpoint:
    """As it was done before: the adapters are merged into a copy of all weights, which is written."""
    merged = AutoModelForCausalLM.from_pretrained(start.folder, dtype=torch.float32)
    weights = {name: weight.clone() for name, weight in merged.state_dict().items()}
    for name, layer in model.get_base_model().named_modules():
        if f"{name}.weight" in weights and hasattr(layer, "get_delta_weight"):
            weights[f"{name}.weight"] += layer.get_delta_weight("default").detach()
    merged.load_state_dict(weights)
    write_weights(merged, start, folder, ids)
    return Checkpoint.open(folder)


def as_adapters(model: Any, start: Checkpoint, folder: Path, ids: list[int]) -> Checkpoint:
    write_weights(model, start, folder, ids)
    return start.with_adapter(folder)


def sync(
    write: Callable[..., Checkpoint], model: Any, start: Checkpoint, folder: Path, ids: list[int], server: VllmServer
) -> dict[str, float]:
    """Bytes and seconds of one sync, and the largest difference of log-probs between trainer and server."""
    began, pid = time.perf_counter(), server.pid
    policy = write(model, start, folder, ids)
    written = time.perf_counter()
    server.serve(policy)
    served = time.perf_counter()
    assert server.pid == pid, "the server was started again"
    expected = log_probs_of(model.get_base_model(), ids)
    found = server._sync_check_log_probs(SyncCheck(token_ids=TokenIds(ids)))
    bytes_written = size(folder)
    shutil.rmtree(folder)
    return {
        "bytes": bytes_written,
        "seconds_write": written - began,
        "seconds_serve": served - written,
        "difference": max(abs(one - other) for one, other in zip(expected, found, strict=True)),
    }


def change(model: Any) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight += 0.002 * torch.randn_like(weight)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start = make_model(folder)
        model: Any = get_peft_model(
            AutoModelForCausalLM.from_pretrained(start.folder, dtype=torch.float32),
            LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        text = "Ann has 12 coins and finds 3 more. " * 40
        ids = list(TokenIds(start.encode(text)[:RL_SYNC_CHECK_TOKENS]))
        settings = Engine(max_num_seqs=8, max_model_len=1024)
        servers = {
            as_merged: VllmServer(settings, folder / "merged.log"),
            as_adapters: VllmServer(settings, folder / "adapters.log", lora_rank=RANK),
        }
        found: dict[str, list[dict[str, float]]] = {"as_merged": [], "as_adapters": []}
        for write, server in servers.items():
            server.serve(start)
            for number in range(ROUNDS):
                change(model)
                found[write.__name__].append(sync(write, model, start, folder / str(number), ids, server))
                print(write.__name__, found[write.__name__][-1], flush=True)
            server.close()
    middle = {name: {key: median(one[key] for one in rounds) for key in rounds[0]} for name, rounds in found.items()}
    ratio = middle["as_merged"]["bytes"] / middle["as_adapters"]["bytes"]
    RESULT.write_text(
        json.dumps({"rounds": found, "median": middle, "bytes_ratio": ratio} | machine(), indent=2) + "\n"
    )
    print(f"{ratio:.0f} × fewer bytes")


if __name__ == "__main__":
    main()
