"""Runs training in a guarded subprocess: job file, log file, progress, exit reason."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from conf.engine import Engine
from conf.errors import ReadableError
from conf.long_short import Grpo, Who
from conf.long_short import Protocol as DialogueProtocol
from conf.prompts import Prompt
from conf.training import Lora
from models.checkpoints.adapters import MAX_RANK
from models.checkpoints.checkpoint import Checkpoint
from models.inference.devices import SERVERS_VARIABLE, VISIBLE, beside_trainer, visible_gpus
from models.processes import GuardedProcess, threads

LOG, JOB = "train.log", "job.json"
STORE_VARIABLE = "BREVITY_ROLLOUTS"
GRADIENT_CHECKPOINTING = "gradient_checkpointing"
"""Name of the progress figure that says whether activations were recomputed."""
ROWS_LEFT_OVER = "rows left over"
"""Name of the progress figure that counts the rows of each epoch that fill no forward pass of all processes."""
FAILED = "failed: "
"""Prefix of progress figures that count problems without dialogues, by reason."""


class ExitReason(StrEnum):
    """Why the trainer stopped, where a remedy is known. Needed because the launcher of several processes does not pass
    on exit codes."""

    OUT_OF_MEMORY = "out-of-memory"
    NOT_FINITE = "not-finite"
    GIVEN_UP = "given-up"
    """The following lines of the file give the reason."""


class JobPaths(TypedDict):
    """Where a training process writes."""

    output: Path
    work: Path
    progress: Path
    exit_file: Path


class NodeOfMany(NamedTuple):
    """One of several nodes that train together. All meet at `address` and `port` of the first."""

    nodes: int = 1
    rank: int = 0
    address: str = ""
    port: int = 0


class Trainer(Protocol):
    """A training that is running. A context manager, which ends it."""

    @property
    def processes(self) -> int:
        """That it runs in."""
        ...

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        ...

    def log_tail(self) -> str: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


Launch = Callable[["TrainerJob", Path], Trainer]
"""Starts a job that is written in a folder."""


def job_paths(folder: Path) -> JobPaths:
    """The paths of a job that works in `folder`."""
    return {
        "output": folder / "model",
        "work": folder / "checkpoints",
        "progress": folder / "progress.jsonl",
        "exit_file": folder / "exit_reason",
    }


class TrainerJob(BaseModel):
    """Parameters of all training processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    MODULE: ClassVar[str]
    """The module to launch."""
    SPANS_NODES: ClassVar[bool] = False
    """Whether several nodes can train together."""

    model: Path
    """Folder of the weights to train."""
    adapter: Path | None = None
    """Folder of adapters that are merged into them first."""
    base_model: str = ""
    """The name under which adapters are saved for `model`. If empty, a whole model is saved, with adapters merged."""
    base_fingerprint: str = ""
    """Of the weights in `model`, with `base_model`."""
    rows: Path
    """Parquet."""
    output: Path
    work: Path
    """Folder for the trainer's checkpoints; a repeated job resumes from the last."""
    progress: Path
    exit_file: Path
    """Contains an `ExitReason`, and details in further lines, if the trainer stopped for a known reason."""
    seed: int
    learning_rate: float
    global_batch_size: int
    per_device_train_batch_size: int
    warmup_ratio: float
    max_length: int | None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the saved weights."""
    bf16: bool = True
    lora: Lora | None = None
    fsdp: bool = False
    nodes: int = 1
    """That train together."""
    log_every: int = 5
    save_steps: int = 50

    @property
    def too_long_message(self) -> str:
        """The setting that limits the length of a row."""
        return f"its max_length ({self.max_length})"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables, for GPUs, and for values that must not be written to a file."""
        gpus = visible_gpus()[: self.processes]
        return {VISIBLE: ",".join(gpus)} if gpus else {}

    @property
    def processes(self) -> int:
        """On each node, one for each GPU, or fewer where the batch cannot be split evenly among them."""
        return largest_divisor(self.global_batch_size // self.nodes, max(1, len(visible_gpus())))


class TrainJob(TrainerJob):
    """Training on rows of token ids: prompt_ids, with completion_ids (sft) or chosen_ids and rejected_ids (simpo,
    dpo)."""

    MODULE = "models.training.train"
    SPANS_NODES = True

    method: Literal["sft", "simpo", "dpo"]
    num_train_epochs: int
    problems: Path | None = None
    """Rows of Problem with the images of `rows`, by problem id. None: their prompts hold no images."""
    beta: float = 2.0
    simpo_gamma: float = 0.3
    cpo_alpha: float = 0.0
    adam_beta2: float = 0.999
    weight_decay: float = 0.0
    shuffle: bool = True


class GrpoJob(TrainerJob):
    """Multi-turn GRPO on rows of Problem (Long⊗Short, arXiv 2505.11827)."""

    MODULE = "models.training.grpo"

    trains: Who | None
    """Which of the two models is trained; None: a single model."""
    partner: Path | None
    """Weights of the other model, which is frozen."""
    partner_adapter: Path | None = None
    protocol: DialogueProtocol | None
    rl: Grpo
    max_tokens: int
    """Of a completion of a single model."""
    engine: Engine
    prompt: Prompt = Prompt()
    store: str = Field("", exclude=True)
    """URL of the rollout store. Passed by environment, since it may contain a password."""

    @property
    def too_long_message(self) -> str:
        return "protocol.max_turn_tokens or protocol.max_rounds"

    @property
    def environment(self) -> dict[str, str]:
        # With several GPUs, a single process would use DataParallel and multiply its batch.
        split = beside_trainer(visible_gpus())
        gpus = {VISIBLE: ",".join(split.trainer), SERVERS_VARIABLE: ",".join(split.servers)} if split.trainer else {}
        return {STORE_VARIABLE: self.store, **gpus}

    @property
    def processes(self) -> int:
        return 1


def saved_on(start: Checkpoint, lora: Lora | None) -> str:
    """The model that adapters are saved for; empty where a whole model is saved: without adapters, if they are to be
    merged or joined to more than MAX_RANK, and on weights that a run has trained, which have no name."""
    if lora is None or lora.merge or start.rank + lora.r > MAX_RANK:
        return ""
    return start.name


class Start(TypedDict):
    """The model that a training starts from, and what its adapters are saved for."""

    model: Path
    adapter: Path | None
    base_model: str
    base_fingerprint: str


def start_of(start: Checkpoint, lora: Lora | None) -> Start:
    """The fields of a job that trains `start`."""
    name = saved_on(start, lora)
    return {
        "model": start.folder,
        "adapter": start.adapter,
        "base_model": name,
        "base_fingerprint": start.weights_fingerprint if name else "",
    }


class TrainingFailed(ReadableError):
    """The job cannot be trained; the message says what to change."""


class TrainerCrashed(ReadableError):
    """The trainer stopped for an unknown reason; the message contains the end of its log. A repeated job resumes."""


class LocalTrainer:
    """A `Trainer` on this machine."""

    def __init__(self, job: TrainerJob, folder: Path):
        self.processes, self._process = job.processes, start(job, folder)

    def poll(self) -> int | None:
        return self._process.poll()

    def log_tail(self) -> str:
        return self._process.log_tail()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.end()


def train(
    job: TrainerJob,
    folder: Path,
    progress: Callable[[int, int], None],
    poll: float = 0.5,
    launch: Launch = LocalTrainer,
) -> list[dict[str, Any]]:
    """Runs `job`. Returns the logged figures, one dict per step.

    `progress` receives (step, steps) every `poll` seconds, (0, 0) before the first; the trainer ends if it raises.
    `launch`: starts it, here or elsewhere.

    When memory runs out, the per-device batch is halved, down to one row, and the job resumes. Raises TrainingFailed,
    whose message names the remedy, or TrainerCrashed.
    """
    while True:
        code, reason, tail, processes = _run(job, folder, progress, poll, launch)
        reason, _, detail = reason.partition("\n")
        if code == 0:
            steps: dict[int, dict[str, Any]] = {}
            for line in _figures(job.progress):
                steps[line["step"]] = steps.get(line["step"], {}) | line
            return list(steps.values())
        if reason == ExitReason.OUT_OF_MEMORY and (smaller := _smaller_batch(job, processes)):
            job = job.model_copy(update={"per_device_train_batch_size": smaller})
        elif reason == ExitReason.OUT_OF_MEMORY:
            raise TrainingFailed(f"one row does not fit into memory; lower {job.too_long_message}")
        elif reason == ExitReason.NOT_FINITE:
            raise TrainingFailed(f"the loss is no longer finite; lower its learning_rate ({job.learning_rate:g})")
        elif reason == ExitReason.GIVEN_UP:
            raise TrainingFailed(detail)
        else:
            raise TrainerCrashed(f"the trainer ended with code {code}; end of {folder / LOG}:\n{tail}")


def _run(
    job: TrainerJob, folder: Path, progress: Callable[[int, int], None], poll: float, launch: Launch
) -> tuple[int, str, str, int]:
    """Exit code, content of the exit file, the end of the log, and the number of processes."""
    folder.mkdir(parents=True, exist_ok=True)
    job.exit_file.unlink(missing_ok=True)
    (folder / JOB).write_text(job.model_dump_json(indent=2))
    with launch(job, folder) as trainer:
        while (code := trainer.poll()) is None:
            figures = _figures(job.progress)
            progress(figures[-1]["step"], figures[-1]["steps"]) if figures else progress(0, 0)
            time.sleep(poll)
        reason = job.exit_file.read_text() if job.exit_file.exists() else ""
        return code, reason, trainer.log_tail(), trainer.processes


def start(job: TrainerJob, folder: Path, node: NodeOfMany | None = None) -> GuardedProcess:
    """Starts the job that is written in `folder` on this machine: all of it, or the part of a `node`."""
    node = node or NodeOfMany()
    environment = {
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        # The launcher of several processes would set one thread.
        "OMP_NUM_THREADS": str(max(1, threads() // job.processes)),
        **job.environment,
    }
    log = folder / (LOG if node.rank == 0 else f"train-{node.rank}.log")
    return GuardedProcess(_command(job, folder / JOB, node), log, environment)


def _command(job: TrainerJob, file: Path, node: NodeOfMany) -> list[str]:
    """PyTorch's launcher for several processes. accelerate's would also obey a file that this machine's user has made
    for other purposes."""
    several = []
    if node.nodes > 1:
        meeting = ["--master_addr", node.address, "--master_port", str(node.port)]
        several = ["--nnodes", str(node.nodes), "--node_rank", str(node.rank), *meeting]
    elif job.processes > 1:
        several = ["--standalone"]
    launcher = ["-m", "torch.distributed.run", *several, "--nproc_per_node", str(job.processes)] if several else []
    return [sys.executable, *launcher, "-m", job.MODULE, str(file)]


def _figures(path: Path) -> list[dict[str, Any]]:
    """The complete lines; the last may be incomplete, being written or cut short by a kill."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]


def _smaller_batch(job: TrainerJob, processes: int) -> int:
    """The largest number of rows for a forward pass that is at most half of those in use; 0 where that is one row."""
    rows = job.global_batch_size // processes
    in_use = largest_divisor(rows, job.per_device_train_batch_size)
    return largest_divisor(rows, in_use // 2) if in_use > 1 else 0


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is no larger than `at_most`."""
    return next(size for size in range(min(number, at_most), 0, -1) if number % size == 0)
