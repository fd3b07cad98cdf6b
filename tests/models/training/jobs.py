"""Jobs and rows for the trainer's tests."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.training.launcher import TrainJob, job_paths


def common(folder: Path) -> dict[str, Any]:
    """What the jobs of all methods share: the bundled model, in `folder`."""
    return {
        "model": TINY_MODEL,
        "rows": folder / "rows.parquet",
        **job_paths(folder),
        "seed": 0,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "log_every": 1,
        "bf16": False,
    }


def job(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> TrainJob:
    """A SimPO job in `folder`, with its rows written."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    base = TrainJob(
        **common(folder),
        method="simpo",
        num_train_epochs=1,
        global_batch_size=8,
        per_device_train_batch_size=8,
        max_length=256,
    )
    return base.model_copy(update=changes)


def pairs(count: int) -> list[dict[str, Any]]:
    tiny = Checkpoint.open(TINY_MODEL)
    return [
        {
            "prompt_ids": tiny.encode(f"<|user|>{index}<|assistant|><think>\n").tolist(),
            "chosen_ids": tiny.encode("Yes.\n</think>\nThe answer is \\boxed{1}.").tolist(),
            "rejected_ids": tiny.encode(
                "Wait, let me check.\nIt is 2 again.\n</think>\nThe answer is \\boxed{2}."
            ).tolist(),
        }
        for index in range(count)
    ]
