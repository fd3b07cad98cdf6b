"""One real training per method, in this process, and the exit reasons it writes."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conf.training import Lora
from models.checkpoints.adapters import base_fingerprint, read_adapter_config
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.training import train as training
from models.training.launcher import TrainJob
from models.training.train import (
    NoGpu,
    NoOptimizerStep,
    NotFinite,
    UnevenBatch,
    last_complete_checkpoint,
    main,
    record_exit_reason,
    split_batch,
    validate_trains,
)
from models.training.weights import log_probs
from tests.models.training.jobs import job, pairs


def train(train_job: TrainJob) -> list[dict[str, Any]]:
    """Trains in this process; returns the lines with a loss."""
    record_exit_reason(train_job, main)
    lines = [json.loads(line) for line in train_job.progress.read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_a_training_with_a_single_warmup_step_is_refused(tmp_path: Path):
    train_job = job(tmp_path, pairs(8), warmup_ratio=0.1)
    with pytest.raises(NoOptimizerStep):
        train(train_job)
    reason, _, detail = train_job.exit_file.read_text().partition("\n")
    assert reason == "given-up"
    assert detail.startswith("8 rows in batches of 8 are one step")
    assert "lower global_batch_size" in detail


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8))
def test_a_batch_is_split_exactly_or_refused(rows: int, per_device: int, processes: int):
    if rows % processes:
        with pytest.raises(UnevenBatch, match=f"{rows}.*multiple of the number of processes .{processes}"):
            split_batch(rows, per_device, processes)
        return
    rows_each, accumulation = split_batch(rows, per_device, processes)
    assert rows_each <= per_device
    assert rows_each * accumulation * processes == rows


@pytest.mark.parametrize(("rows", "per_device", "split"), [(24, 8, (6, 2)), (48, 16, (12, 2)), (16, 16, (8, 1))])
def test_two_processes_take_the_batch_that_was_asked_for(rows: int, per_device: int, split: tuple[int, int]):
    assert split_batch(rows, per_device, 2) == split


def test_an_environment_for_gpus_does_not_train_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "on_cpu", lambda: False)
    train_job = job(tmp_path, pairs(8))
    with pytest.raises(NoGpu):
        train(train_job)
    assert train_job.exit_file.read_text().startswith("given-up\nno GPU is visible to torch")


def test_a_smaller_per_device_batch_takes_the_same_steps(tmp_path: Path):
    whole, halved = (train(job(tmp_path / str(rows), pairs(16), per_device_train_batch_size=rows)) for rows in (8, 4))
    assert [line["step"] for line in whole] == [line["step"] for line in halved] == [1, 2]
    assert [line["loss"] for line in halved] == pytest.approx([line["loss"] for line in whole], rel=0.01)


def test_out_of_memory_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers.Trainer, "training_step", full)
    train_job = job(tmp_path, pairs(2), global_batch_size=2)
    with pytest.raises(torch.OutOfMemoryError):
        train(train_job)
    assert train_job.exit_file.read_text() == "out-of-memory"


def test_a_non_finite_gradient_is_recorded(tmp_path: Path):
    train_job = job(tmp_path, pairs(32), learning_rate=1e30)
    with pytest.raises(NotFinite):
        train(train_job)
    assert train_job.exit_file.read_text() == "not-finite"


@pytest.mark.parametrize(
    ("rows", "processes", "message"),
    [
        (63, 8, "32 rows in batches of 32 are one step"),  # 31 are left out, and 32 are one step
        (20, 8, "fewer rows than the 32 that 8 processes take together"),
        (96, 8, None),
        (63, 1, None),
    ],
)
def test_rows_that_several_processes_leave_out_do_not_count_as_steps(
    rows: int, processes: int, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    changes = {"global_batch_size": 32, "per_device_train_batch_size": 4, "warmup_ratio": 0.1}
    train_job = job(tmp_path, pairs(1), **changes)
    with pytest.raises(NoOptimizerStep, match=message) if message else nullcontext():
        validate_trains(train_job, rows)


def test_a_checkpoint_of_the_other_kind_is_not_resumed(tmp_path: Path):
    """Sharded or not is not part of the cache key, and neither trainer can read the other's."""
    whole, sharded = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    for folder, names in (
        (whole, ("optimizer.pt", "model.safetensors")),
        (sharded, ("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata")),
    ):
        for name in ("trainer_state.json", *names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
    (sharded / "optimizer_0" / ".metadata").rename(sharded / "kept")
    assert last_complete_checkpoint(tmp_path) == str(whole)
    assert not sharded.exists()
    assert last_complete_checkpoint(tmp_path, sharded=True) is None
    assert not whole.exists()


def test_incomplete_checkpoints_are_not_resumed(tmp_path: Path):
    complete = {"trainer_state.json": "{}", "optimizer.pt": "", "model.safetensors": ""}
    broken = [{"trainer_state.json": ""}, {"optimizer.pt": None}, {"model.safetensors": None}, dict.fromkeys(complete)]
    for step, change in enumerate([{}, {}, *broken]):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name, content in {**complete, **change}.items():
            if content is not None:
                (tmp_path / f"checkpoint-{step}" / name).write_text(content)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-0", "checkpoint-1"]
    assert last_complete_checkpoint(tmp_path / "none") is None


def test_simpo_widens_the_margin_and_writes_a_sync_check(tmp_path: Path):
    train_job = job(tmp_path, pairs(32))
    margins = [line["rewards/margins"] for line in train(train_job)]
    assert margins[-1] > margins[0]
    sync_check = json.loads((train_job.output / "sync_check.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(train_job.output, dtype=torch.float32)
    with torch.no_grad():
        batch = torch.tensor([sync_check["token_ids"]])
        log_probs = model(batch).logits.log_softmax(-1)[0, :-1].gather(1, batch[0, 1:, None])[:, 0]
    assert sync_check["log_probs"] == pytest.approx(log_probs.tolist(), abs=1e-5)


def sft_rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in pairs(count)]


def test_adapters_are_merged_into_the_saved_checkpoint(tmp_path: Path):
    """Where no base model is named."""
    train_job = job(tmp_path, pairs(16), lora=Lora(r=4, alpha=8))
    train(train_job)
    saved, base = Checkpoint.open(train_job.output), Checkpoint.open(TINY_MODEL)
    assert saved.tensor_sizes == base.tensor_sizes
    weights = {
        name: load_file(folder / "model.safetensors") for name, folder in (("new", saved.folder), ("old", TINY_MODEL))
    }
    changed = {n for n, w in weights["new"].items() if not torch.equal(w.float(), weights["old"][n].float())}
    assert changed
    assert all("proj" in name for name in changed)  # linear layers alone; norms and embedding stay


def test_adapters_on_adapters_are_saved_as_the_sum_of_both(tmp_path: Path):
    """And come to the same model as merging after each training."""
    lora, settings = (
        Lora(r=4, alpha=8),
        {"base_fingerprint": "that of tiny", "method": "dpo", "beta": 0.1, "learning_rate": 1e-4},
    )
    outputs: dict[str, Path] = {}
    for base in ("tiny", ""):
        folder = tmp_path / (base or "merged")
        folder.mkdir()
        first = job(folder / "sft", sft_rows(16), method="sft", lora=lora, base_model=base)
        train(first)
        start = {"adapter": first.output} if base else {"model": first.output}
        train(job(folder / "dpo", pairs(16), lora=Lora(r=2), base_model=base, **start, **settings))
        outputs[base] = folder / "dpo" / "model"
    saved = Checkpoint.open(outputs["tiny"])
    assert base_fingerprint(saved.path) == "that of tiny"
    assert (saved.folder, saved.adapter, saved.name) == (TINY_MODEL, outputs["tiny"], "tiny")
    assert read_adapter_config(outputs["tiny"]).r == 6
    assert not list(outputs["tiny"].glob("model*"))
    sync_check = json.loads((outputs["tiny"] / "sync_check.json").read_text())
    assert sync_check["log_probs"] == pytest.approx(log_probs(outputs[""], sync_check["token_ids"]), abs=1e-4)
    after_sft = log_probs(TINY_MODEL, sync_check["token_ids"], tmp_path / "tiny" / "sft" / "model")
    assert sync_check["log_probs"] != pytest.approx(after_sft, abs=1e-3)


def dpo_loss(folder: Path, rows: list[dict[str, Any]], beta: float) -> float:
    """DPO loss by hand: −log σ(β · (gain of the chosen side's log-prob over the reference − the same of the rejected
    side))."""
    models = {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for name, path in (("new", folder), ("reference", TINY_MODEL))
    }

    @torch.no_grad()
    def added(row: dict[str, Any], side: str) -> torch.Tensor:
        batch, start = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]]), len(row["prompt_ids"])
        logits = {name: model(batch).logits for name, model in models.items()}
        log_probs = {
            name: found.log_softmax(-1)[0, :-1].gather(1, batch[0, 1:, None]) for name, found in logits.items()
        }
        return (log_probs["new"] - log_probs["reference"])[start - 1 :].sum()

    losses = [-torch.nn.functional.logsigmoid(beta * (added(r, "chosen") - added(r, "rejected"))) for r in rows]
    return float(torch.stack(losses).mean())


def test_the_reference_of_dpo_is_the_initial_model(tmp_path: Path):
    rows = pairs(8)
    settings: dict[str, Any] = {"method": "dpo", "beta": 0.1, "learning_rate": 2e-5}
    once = job(tmp_path / "once", rows, **settings)
    train(once)
    first, second = (line["loss"] for line in train(job(tmp_path / "twice", rows, num_train_epochs=2, **settings)))
    assert first == pytest.approx(math.log(2), abs=1e-3)  # policy and reference are still equal
    assert second == pytest.approx(dpo_loss(once.output, rows, 0.1), rel=0.02)
    assert second < first - 0.01


def test_sft_learns_only_the_completion(tmp_path: Path):
    losses = [line["loss"] for line in train(job(tmp_path, sft_rows(32), method="sft"))]
    assert losses[-1] < losses[0]
