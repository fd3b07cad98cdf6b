"""The weight checksum, which detects stale weights where log-probs cannot."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.engine import Engine
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.files import SYNC_CHECK_FILE
from models.checkpoints.weight_checksum import checksum_of_folder, same_checksum, weight_checksum
from models.inference.vllm_server import VllmServer

NOISE = [-1.05, -2.05]
"""Log-probs served in bfloat16, before and after a small update; the trainer has −1 and −2 in float32."""


def checkpoint(folder: Path, shift: float) -> Checkpoint:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator)
        for name, shape in {"model.embed_tokens.weight": (5, 8), "q": (8, 8), "k": (4, 8), "norm": (8,)}.items()
    }
    weights["q"][3, 3] += shift
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "tie_word_embeddings": True}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / SYNC_CHECK_FILE).write_text(json.dumps({"token_ids": [1, 2, 3], "log_probs": [-1.0, -2.0]}))
    return Checkpoint.open(folder, "bfloat16")


def as_served(model: Checkpoint) -> list[torch.Tensor]:
    """The weights as a server lays them out: half precision, two matrices joined, the embedding padded, the output
    matrix tied."""
    weights = {name: weight.bfloat16() for name, weight in load_file(model.folder / "model.safetensors").items()}
    embedding = torch.cat([weights["model.embed_tokens.weight"], torch.zeros(3, 8, dtype=torch.bfloat16)])
    return [embedding, torch.cat([weights["q"], weights["k"]]), weights["norm"]]


class FakeServer(VllmServer):
    """A fake server on a GPU that answers what a weight swap asks."""

    def __init__(self, weights: list[torch.Tensor]):
        super().__init__(Engine(dtype="bfloat16"), Path("unused"))
        self.weights = weights

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        entries = [{str(token): {"logprob": value}} for token, value in zip([2, 3], NOISE, strict=True)]
        replies = {
            "/v1/completions": {"model": "policy", "choices": [{"prompt_logprobs": [None, *entries]}]},
            "/collective_rpc": {
                "results": [weight_checksum(self.weights) if body.get("method") == "served_checksum" else None]
            },
            "/reset_prefix_cache": {},
        }
        return httpx.Response(200, json=replies[path])


def test_the_checksum_does_not_depend_on_layout(tmp_path: Path):
    model = checkpoint(tmp_path / "model", 0)
    assert same_checksum(weight_checksum(as_served(model)), checksum_of_folder(model.folder, "bfloat16"))
    assert not same_checksum(weight_checksum(as_served(model)), checksum_of_folder(model.folder, "float32"))


def test_the_smallest_change_of_one_weight_is_detected():
    weights = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = weight_checksum([weights])
    weights[500, 500] = torch.nextafter(weights[500, 500], torch.tensor(9.0, dtype=torch.bfloat16))
    assert not same_checksum(before, weight_checksum([weights]))


def test_a_small_update_in_half_precision_is_verified_by_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = checkpoint(tmp_path / "old", 0), checkpoint(tmp_path / "new", 0.02)
    monkeypatch.setattr("models.inference.vllm_server.on_cpu", lambda: False)
    assert FakeServer(as_served(new))._replace(old, new)
    assert not FakeServer(as_served(old))._replace(old, new)
    monkeypatch.setattr("models.inference.vllm_server.on_cpu", lambda: True)
    assert not FakeServer(as_served(new))._replace(
        old, new
    )  # no checksum on a CPU, and the log-probs are not conclusive
