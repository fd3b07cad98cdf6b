"""The trainer process: exit reasons, and one real training per method."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conf.training import Lora
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.training.launcher import TrainerCrashed, TrainingFailed, TrainJob, train
from models.training.train import last_complete_checkpoint

# Loaded only in the trainer's process: more than LIMIT rows raise torch's out-of-memory error.
OUT_OF_MEMORY = """
import sys
if sys.orig_argv[1:3] == ["-m", "models.training.train"]:
    import torch, transformers
    step = transformers.Trainer.training_step
    def limited(self, *args, **kwargs):
        if self.args.per_device_train_batch_size > LIMIT:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *args, **kwargs)
    transformers.Trainer.training_step = limited
"""


# Loaded only in the trainer's process: it dies once, right after its second checkpoint.
DYING = """
import os, signal, sys
from pathlib import Path
if sys.orig_argv[1:3] == ["-m", "models.training.train"]:
    import transformers
    save = transformers.Trainer._save_checkpoint
    def die_once(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.state.global_step == 2 and not Path("FLAG").exists():
            Path("FLAG").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    transformers.Trainer._save_checkpoint = die_once
"""


def job(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> TrainJob:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    base = TrainJob(
        method="simpo",
        model=TINY_MODEL,
        rows=folder / "rows.parquet",
        output=folder / "out",
        work=folder / "work",
        progress=folder / "progress.jsonl",
        exit_file=folder / "exit_reason",
        seed=0,
        learning_rate=1e-3,
        num_train_epochs=1,
        global_batch_size=8,
        per_device_train_batch_size=8,
        warmup_ratio=0.0,
        max_length=256,
        log_every=1,
    )
    return base.model_copy(update=changes)


def pairs(count: int) -> list[dict[str, Any]]:
    tiny = Checkpoint.open(TINY_MODEL)
    return [
        {
            "prompt_ids": tiny.encode(f"<|user|>{index}<|assistant|><think>\n"),
            "chosen_ids": tiny.encode("Yes.\n</think>\nThe answer is \\boxed{1}."),
            "rejected_ids": tiny.encode("Wait, let me check.\nIt is 2 again.\n</think>\nThe answer is \\boxed{2}."),
        }
        for index in range(count)
    ]


def limit_memory(folder: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sitecustomize.py").write_text(OUT_OF_MEMORY.replace("LIMIT", str(limit)))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_killed_training_resumes_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    complete.mkdir()
    killed.mkdir()
    train(job(complete, pairs(32), save_steps=1), complete, lambda *_: None)
    (killed / "sitecustomize.py").write_text(DYING.replace("FLAG", str(killed / "flag")))
    monkeypatch.setenv("PYTHONPATH", str(killed))
    train_job = job(killed, pairs(32), save_steps=1)
    with pytest.raises(TrainerCrashed):
        train(train_job, killed, lambda *_: None)
    assert last_complete_checkpoint(train_job.work) == str(train_job.work / "checkpoint-2")
    received: list[int] = []
    figures = train(train_job, killed, lambda step, _: received.append(step))
    assert [line["step"] for line in figures if "loss" in line] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in train_job.progress.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]  # no step was taken twice
    expected, found = (load_file(folder / "out" / "model.safetensors") for folder in (complete, killed))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)


def test_a_training_with_a_single_warmup_step_is_refused(tmp_path: Path):
    with pytest.raises(TrainingFailed, match=r"8 rows in batches of 8 are one step.*lower global_batch_size"):
        train(job(tmp_path, pairs(8), warmup_ratio=0.1), tmp_path, lambda *_: None)


def test_out_of_memory_halves_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limit_memory(tmp_path, 4, monkeypatch)
    figures = train(job(tmp_path, pairs(16)), tmp_path, lambda *_: None)
    assert figures[-1]["step"] == 2  # 16 pairs, still 8 per step
    assert TrainJob.model_validate_json((tmp_path / "job.json").read_text()).per_device_train_batch_size == 4


def test_out_of_memory_with_one_row_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limit_memory(tmp_path, 0, monkeypatch)
    with pytest.raises(TrainingFailed, match=r"lower its max_length"):
        train(job(tmp_path, pairs(2), global_batch_size=2, per_device_train_batch_size=1), tmp_path, lambda *_: None)


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
    figures = train(job(tmp_path, pairs(32)), tmp_path, lambda *_: None)
    margins = [line["rewards/margins"] for line in figures if "rewards/margins" in line]
    assert margins[-1] > margins[0]
    sync_check = json.loads((tmp_path / "out" / "sync_check.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        batch = torch.tensor([sync_check["token_ids"]])
        log_probs = model(batch).logits.log_softmax(-1)[0, :-1].gather(1, batch[0, 1:, None])[:, 0]
    assert sync_check["log_probs"] == pytest.approx(log_probs.tolist(), abs=1e-5)


def test_adapters_are_merged_into_the_saved_checkpoint(tmp_path: Path):
    train(job(tmp_path, pairs(16), lora=Lora(r=4, alpha=8)), tmp_path, lambda *_: None)
    saved, base = Checkpoint.open(tmp_path / "out"), Checkpoint.open(TINY_MODEL)
    assert saved.tensor_sizes == base.tensor_sizes
    weights = {
        name: load_file(folder / "model.safetensors") for name, folder in (("new", saved.folder), ("old", TINY_MODEL))
    }
    changed = {n for n, w in weights["new"].items() if not torch.equal(w.float(), weights["old"][n].float())}
    assert changed
    assert all("proj" in name for name in changed)  # linear layers alone; norms and embedding stay


def dpo_loss(folder: Path, rows: list[dict[str, Any]], beta: float) -> float:
    """DPO loss by hand: −log σ(β · (gain of the chosen side's log-prob over the reference − the same of the rejected
    side)), in the precision of training, since bfloat16 does not resolve the smallest weight changes."""
    models = {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for name, path in (("new", folder), ("reference", TINY_MODEL))
    }

    @torch.no_grad()
    def added(row: dict[str, Any], side: str) -> torch.Tensor:
        batch, start = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]]), len(row["prompt_ids"])
        with torch.autocast("cpu", torch.bfloat16):
            logits = {name: model(batch).logits.float() for name, model in models.items()}
        log_probs = {
            name: found.log_softmax(-1)[0, :-1].gather(1, batch[0, 1:, None]) for name, found in logits.items()
        }
        return (log_probs["new"] - log_probs["reference"])[start - 1 :].sum()

    losses = [-torch.nn.functional.logsigmoid(beta * (added(r, "chosen") - added(r, "rejected"))) for r in rows]
    return float(torch.stack(losses).mean())


def test_the_reference_of_dpo_is_the_initial_model(tmp_path: Path):
    once, twice, rows = tmp_path / "once", tmp_path / "twice", pairs(8)
    for folder in (once, twice):
        folder.mkdir()
    settings: dict[str, Any] = {"method": "dpo", "beta": 0.1, "learning_rate": 2e-5}
    train(job(once, rows, **settings), once, lambda *_: None)
    first, second = (
        line["loss"] for line in train(job(twice, rows, num_train_epochs=2, **settings), twice, lambda *_: None)[:2]
    )
    assert first == pytest.approx(math.log(2), abs=1e-3)  # policy and reference are still equal
    assert second == pytest.approx(dpo_loss(once / "out", rows, 0.1), rel=0.02)
    assert second < first - 0.01


def test_sft_learns_only_the_completion(tmp_path: Path):
    rows = [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in pairs(32)]
    figures = train(job(tmp_path, rows, method="sft"), tmp_path, lambda *_: None)
    losses = [line["loss"] for line in figures if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_non_finite_loss_stops_training(tmp_path: Path):
    with pytest.raises(TrainingFailed, match=r"lower its learning_rate"):
        train(job(tmp_path, pairs(32), learning_rate=1e30), tmp_path, lambda *_: None)
