"""Training as a guarded subprocess: job file, log file, progress, exit code.

Knows: how to launch `models.train` and what its exit codes mean. Must not know: TRL, torch, pipelines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from models.processes import GuardedProcess

OUT_OF_MEMORY_EXIT = 75
NON_FINITE_EXIT = 76


class TrainJob(BaseModel):
    """Everything the trainer's process needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["sft", "simpo"]
    model: Path
    rows: Path
    """Parquet of token ids: prompt_ids, and completion_ids (sft) or chosen_ids and rejected_ids (simpo)."""
    output: Path
    work: Path
    """Folder for the trainer's own checkpoints; a repeated job resumes from the last."""
    progress: Path
    seed: int
    learning_rate: float
    epochs: int
    batch: int
    micro_batch: int
    warmup: float
    max_length: int | None
    beta: float = 2.0
    gamma: float = 0.3
    sft_weight: float = 0.0
    adam_beta2: float = 0.999
    weight_decay: float = 0.0
    shuffle: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 5
    save_every: int = 50


class TrainingFailed(RuntimeError):
    """The trainer ended with an error; the message says what to do or holds the end of its log."""


def train(job: TrainJob, folder: Path, progress: Callable[[int, int], None], poll: float = 0.5) -> list[dict[str, Any]]:
    """Runs `job`; `progress` hears (step, steps). Returns the logged figures.

    A micro-batch that does not fit into memory is halved and the job resumes, down to one row. Raises TrainingFailed.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--module", "models.train"]
    return run_halving(command, job, folder, progress, poll)


def run_halving(
    command: Sequence[str], job: TrainJob, folder: Path, progress: Callable[[int, int], None], poll: float = 0.5
) -> list[dict[str, Any]]:
    """As `train`, with any command that takes a job file."""
    while True:
        code, tail = _run(command, job, folder, progress, poll)
        if code == 0:
            return _figures(job.progress)
        if code == OUT_OF_MEMORY_EXIT and job.micro_batch > 1:
            job = job.model_copy(update={"micro_batch": _next_divisor(job.batch, job.micro_batch)})
            continue
        if code == OUT_OF_MEMORY_EXIT:
            raise TrainingFailed(f"one row does not fit into memory; lower training.max_length ({job.max_length})")
        if code == NON_FINITE_EXIT:
            raise TrainingFailed(f"the loss is no longer finite; lower training.learning_rate ({job.learning_rate:g})")
        raise TrainingFailed(f"the trainer ended with code {code}; end of {folder / 'train.log'}:\n{tail}")


def _run(
    command: Sequence[str], job: TrainJob, folder: Path, progress: Callable[[int, int], None], poll: float
) -> tuple[int, str]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.json"
    file.write_text(job.model_dump_json(indent=2))
    environment = {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with GuardedProcess([*command, str(file)], folder / "train.log", environment) as process:
        while (code := process.poll()) is None:
            figures = _figures(job.progress)
            if figures:
                progress(figures[-1]["step"], figures[-1]["steps"])
            time.sleep(poll)
        return code, process.log_tail()


def _figures(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _next_divisor(batch: int, micro_batch: int) -> int:
    """The largest divisor of `batch` that is at most half of `micro_batch`."""
    return next(size for size in range(micro_batch // 2, 0, -1) if batch % size == 0)
