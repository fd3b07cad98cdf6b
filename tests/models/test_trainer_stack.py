"""The trainer's process: what its exit codes lead to, and one real training each."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from models.checkpoint import Checkpoint
from models.tiny_model import TINY_MODEL
from models.trainer import TrainingFailed, TrainJob, run_halving, train

# A trainer that fits only two rows at once; it fails as the real one does, by torch's own exception.
CROWDED = """
import sys, torch
from pathlib import Path
from models import train
from models.trainer import TrainJob

def crowded(job):
    if job.micro_batch > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    job.progress.write_text('{"step": 1, "steps": 1, "micro_batch": %d}' % job.micro_batch)

train.main = crowded
train.run(Path(sys.argv[1]))
"""


def job(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> TrainJob:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    base = TrainJob(
        method="simpo", model=TINY_MODEL, rows=folder / "rows.parquet", output=folder / "out", work=folder / "work",
        progress=folder / "progress.jsonl", seed=0, learning_rate=1e-3, epochs=1, batch=8, micro_batch=8, warmup=0.0,
        max_length=256, log_every=1,
    )  # fmt: skip
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


def test_when_memory_runs_out_the_micro_batch_is_halved(tmp_path: Path):
    figures = run_halving([sys.executable, "-c", CROWDED], job(tmp_path, pairs(1)), tmp_path, lambda *_: None)
    assert figures[-1]["micro_batch"] == 2


def test_when_one_row_is_too_much_the_remedy_is_named(tmp_path: Path):
    too_small = CROWDED.replace("> 2", "> 0")
    with pytest.raises(TrainingFailed, match=r"lower training\.max_length"):
        run_halving([sys.executable, "-c", too_small], job(tmp_path, pairs(1)), tmp_path, lambda *_: None)


def test_simpo_widens_the_margin_and_leaves_a_proof(tmp_path: Path):
    figures = train(job(tmp_path, pairs(32)), tmp_path, lambda *_: None)
    margins = [line["rewards/margins"] for line in figures if "rewards/margins" in line]
    assert margins[-1] > margins[0]
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        batch = torch.tensor([proof["token_ids"]])
        log_probs = model(batch).logits.log_softmax(-1)[0, :-1].gather(1, batch[0, 1:, None])[:, 0]
    assert proof["log_probs"] == pytest.approx(log_probs.tolist(), abs=1e-5)


def test_sft_learns_the_completion_alone(tmp_path: Path):
    rows = [{"prompt_ids": row["prompt_ids"], "completion_ids": row["chosen_ids"]} for row in pairs(32)]
    figures = train(job(tmp_path, rows, method="sft"), tmp_path, lambda *_: None)
    losses = [line["loss"] for line in figures if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path):
    with pytest.raises(TrainingFailed, match=r"lower training\.learning_rate"):
        train(job(tmp_path, pairs(32), learning_rate=1e30), tmp_path, lambda *_: None)
