"""Training as a guarded subprocess: job file, log file, progress, exit code.

Knows: how to launch `models.training.train` and what the word it leaves means. Must not know: TRL, torch, pipelines.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from conf.engine import Engine
from conf.errors import ReadableError
from conf.long_short import Protocol, Reinforcement, Who
from conf.prompts import Prompt
from conf.training import Lora
from models.processes import GuardedProcess

LOG = "train.log"
STORE_VARIABLE = "BREVITY_ROLLOUTS"
RECOMPUTES = "recomputes"
"""The figure that says whether training computed activations a second time."""
FAILED = "failed: "
"""Begins the names of a step's figures that say for how many problems there were no dialogues, and why."""


class ExitReason(StrEnum):
    """Why the trainer ended, where a remedy is known; exit codes do not survive `accelerate launch`."""

    OUT_OF_MEMORY = "out-of-memory"
    NOT_FINITE = "not-finite"
    GIVEN_UP = "given-up"
    """For a reason that the next lines tell a person."""


class Job(BaseModel):
    """What every trainer's process needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    MODULE: ClassVar[str]
    """Which program does it."""
    LAUNCH: ClassVar[tuple[str, ...]] = ()
    """What accelerate must know of it."""

    model: Path
    rows: Path
    """Parquet."""
    output: Path
    work: Path
    """Folder for the trainer's own checkpoints; a repeated job resumes from the last."""
    progress: Path
    exit_file: Path
    """Holds an `Outcome` when the trainer gave up for a known reason, and what else there is to say of it."""
    seed: int
    learning_rate: float
    global_batch_size: int
    per_device_train_batch_size: int
    warmup_ratio: float
    max_length: int | None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that are kept."""
    bf16: bool = True
    lora: Lora | None = None
    log_every: int = 5
    save_steps: int = 50

    @property
    def too_long_message(self) -> str:
        """The setting that says how long a row may be."""
        return f"its max_length ({self.max_length})"

    @property
    def environment(self) -> dict[str, str]:
        """What must not stand in a file."""
        return {}


class TrainJob(Job):
    """Training on rows of token ids: prompt_ids, and completion_ids (sft) or chosen_ids and rejected_ids (others)."""

    MODULE = "models.training.train"

    method: Literal["sft", "simpo", "dpo"]
    num_train_epochs: int
    beta: float = 2.0
    simpo_gamma: float = 0.3
    cpo_alpha: float = 0.0
    adam_beta2: float = 0.999
    weight_decay: float = 0.0
    shuffle: bool = True


class RlJob(Job):
    """Reinforcement on rows of Problem (Long⊗Short, section C.5)."""

    MODULE = "models.training.grpo"
    LAUNCH = ("--num_processes", "1")

    trains: Who | None
    """Which of two models `model` is; None: it works alone."""
    partner: Path | None
    """The other one, which stays as it is."""
    protocol: Protocol | None
    rl: Reinforcement
    max_tokens: int
    """Of a completion where the model works alone."""
    engine: Engine
    prompt: Prompt = Prompt()
    store: str = Field("", exclude=True)
    """URL of the rollout store. It may hold a password, and so travels in the environment."""

    @property
    def too_long(self) -> str:
        return "protocol.max_turn_tokens or protocol.max_rounds"

    @property
    def environment(self) -> dict[str, str]:
        # Where a host has several GPUs, a single process would spread its batch over all, and count it so often.
        return {STORE_VARIABLE: self.store, "CUDA_VISIBLE_DEVICES": first_gpu()}


def first_gpu() -> str:
    """Of those that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


class TrainingFailed(ReadableError):
    """The trainer cannot do this job; the message says what to change."""


class TrainerCrashed(ReadableError):
    """The trainer ended for an unknown reason; the message holds the end of its log. A repeated job resumes."""


def train(job: Job, folder: Path, progress: Callable[[int, int], None], poll: float = 0.5) -> list[dict[str, Any]]:
    """Runs `job`; `progress` hears (step, steps). Returns the logged figures, one line per logged step.

    A micro-batch that does not fit into memory is halved and the job resumes, down to one row. Raises TrainingFailed
    with the remedy, or TrainerCrashed.
    """
    while True:
        code, outcome, tail = _run(job, folder, progress, poll)
        outcome, _, detail = outcome.partition("\n")
        if code == 0:
            steps: dict[int, dict[str, Any]] = {}
            for line in _figures(job.progress):
                steps[line["step"]] = steps.get(line["step"], {}) | line
            return list(steps.values())
        if outcome == ExitReason.OUT_OF_MEMORY and job.per_device_train_batch_size > 1:
            job = job.model_copy(
                update={
                    "per_device_train_batch_size": _next_divisor(job.global_batch_size, job.per_device_train_batch_size)
                }
            )
        elif outcome == ExitReason.OUT_OF_MEMORY:
            raise TrainingFailed(f"one row does not fit into memory; lower {job.too_long_message}")
        elif outcome == ExitReason.NOT_FINITE:
            raise TrainingFailed(f"the loss is no longer finite; lower its learning_rate ({job.learning_rate:g})")
        elif outcome == ExitReason.GIVEN_UP:
            raise TrainingFailed(detail)
        else:
            raise TrainerCrashed(f"the trainer ended with code {code}; end of {folder / LOG}:\n{tail}")


def _run(job: Job, folder: Path, progress: Callable[[int, int], None], poll: float) -> tuple[int, str, str]:
    """Exit code, outcome and the end of the log."""
    folder.mkdir(parents=True, exist_ok=True)
    job.exit_file.unlink(missing_ok=True)
    file = folder / "job.json"
    file.write_text(job.model_dump_json(indent=2))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", *job.LAUNCH]
    environment = {
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        # accelerate would leave a CPU trainer one thread.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        **job.environment,
    }
    with GuardedProcess([*launch, "--module", job.MODULE, str(file)], folder / LOG, environment) as process:
        while (code := process.poll()) is None:
            figures = _figures(job.progress)
            if figures:
                progress(figures[-1]["step"], figures[-1]["steps"])
            time.sleep(poll)
        return code, job.exit_file.read_text() if job.exit_file.exists() else "", process.log_tail()


def _figures(path: Path) -> list[dict[str, Any]]:
    """The whole lines; the last may be half-written, or have been cut short by a kill."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]


def _next_divisor(batch: int, per_device: int) -> int:
    """The largest divisor of `batch` that is at most half of `per_device_train_batch_size`."""
    return next(size for size in range(per_device // 2, 0, -1) if batch % size == 0)
