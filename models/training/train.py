"""SFT, DPO and SimPO in their own process, one for each GPU: a job file in, a checkpoint folder out.

Rows hold token ids, so training uses exactly the sampled tokens; nothing is tokenized again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import TrainerCallback
from trl.experimental.cpo import CPOConfig
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from conf.errors import ReadableError
from models.checkpoints.files import read_json
from models.checkpoints.images import ImageProcessor, PromptImages, takes_images
from models.checkpoints.tokenizer import load_tokenizer
from models.files import make_readable
from models.inference.devices import on_cpu
from models.inference.engine import ScorableText
from models.inference.sync_check import SyncCheck, write_sync_check
from models.training.images import WithImages, read_images
from models.training.launcher import (
    GRADIENT_CHECKPOINTING,
    ROWS_LEFT_OVER,
    ExitReason,
    TrainerJob,
    TrainJob,
    largest_divisor,
)
from models.training.simpo import IdsSimPOTrainer
from models.training.weights import load_model, log_probs, save_adapters, save_processing
from reasoning.token_ids import TokenIds

SYNC_CHECK_TOKENS = 64
SHARDED_PARTS = ("pytorch_model_fsdp_0", "optimizer_0")
"""Folders of a checkpoint of FSDP: one file of each process, and their metadata."""
VISION_TOWER = r".*\bvisual\b.*"
"""Names of the modules that process images."""
J = TypeVar("J", bound=TrainerJob)


class NotFinite(RuntimeError):
    """Loss or gradient is not finite."""


class CannotTrain(ReadableError):
    """The job cannot be trained as it was asked for; the message says what to change."""


class NoOptimizerStep(CannotTrain):
    """The only step would have learning rate 0."""


class UnevenBatch(CannotTrain):
    """The batch cannot be split evenly among the processes."""


class NoGpu(CannotTrain):
    """No GPU is visible on a machine that is set up for one."""


class ProgressCallback(TrainerCallback):
    """Writes progress lines for the launcher. Raises NotFinite at the first non-finite loss or gradient."""

    def __init__(self, progress: Path, extra: Callable[[], dict[str, float]] = dict):
        """`extra`: figures that the trainer does not log."""
        self._progress, self._extra = progress, extra

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        logged = {**(logs or {}), **self._extra()}
        figures = {name: value for name, value in logged.items() if isinstance(value, int | float)}
        line = {
            "step": state.global_step,
            "steps": state.max_steps,
            "time": time.time(),
            GRADIENT_CHECKPOINTING: uses_gradient_checkpointing(),
            **figures,
        }
        if state.is_world_process_zero:
            with self._progress.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if not all(math.isfinite(figures.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise NotFinite(f"step {state.global_step}: {figures}")


def main(job: TrainJob) -> None:
    validate_device()
    torch.manual_seed(job.seed)
    rows = Dataset.from_parquet(str(job.rows))
    validate_trains(job, len(rows))
    tokenizer = load_tokenizer(job.model)
    model = load_model(job.model, job.adapter)
    left_over = len(rows) % rows_together(job)
    build = {"simpo": _simpo, "sft": _sft, "dpo": _dpo}[job.method]
    trainer = build(job, model, tokenizer, rows)
    images = read_images(job.problems, set(rows["problem_id"])) if job.problems else {}
    if images:
        trainer.data_collator = WithImages(trainer.data_collator, ImageProcessor(job.model), images)
    trainer.add_callback(ProgressCallback(job.progress, lambda: {ROWS_LEFT_OVER: left_over}))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(job.work, is_sharded(job)))
    save(job, trainer, tokenizer, sync_check_text(job, rows[0], images))


def sync_check_text(job: TrainJob, row: dict[str, Any], images: Mapping[str, Sequence[bytes]]) -> ScorableText:
    """The beginning of a row; with images, all of its prompt."""
    prompt, completion = row["prompt_ids"], row["completion_ids" if job.method == "sft" else "chosen_ids"]
    files = tuple(images[row["problem_id"]]) if images else ()
    if not files:
        return ScorableText(TokenIds((prompt + completion)[:SYNC_CHECK_TOKENS]))
    return ScorableText(
        TokenIds(prompt + completion[:SYNC_CHECK_TOKENS]), PromptImages(files, ImageProcessor(job.model).token_id)
    )


def validate_device() -> None:
    """Raises NoGpu where the GPU build of vLLM is installed and torch sees no GPU: training would take weeks on the
    CPU."""
    if not on_cpu() and not torch.cuda.is_available():
        raise NoGpu(
            "no GPU is visible to torch, but this environment is for GPUs; check nvidia-smi, CUDA_VISIBLE_DEVICES and "
            "the driver (brevity doctor), or install the CPU environment (make setup ACCELERATOR=cpu)"
        )


def processes() -> int:
    """How many train together, as their launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded(job: TrainerJob) -> bool:
    return job.fsdp and processes() > 1


def split_batch(global_batch_size: int, per_device: int, processes: int) -> tuple[int, int]:
    """Rows of a forward pass, at most `per_device`, and gradient accumulation steps: over all processes, exactly
    `global_batch_size` rows. Raises UnevenBatch."""
    rows, left = divmod(global_batch_size, processes)
    if left:
        raise UnevenBatch(
            f"global_batch_size ({global_batch_size}) must be a multiple of the number of processes ({processes})"
        )
    rows_each = largest_divisor(rows, per_device)
    return rows_each, rows // rows_each


def rows_together(job: TrainJob) -> int:
    """Rows that several processes can only train on together, since each takes as many; 1 for one process."""
    rows_each, _ = split_batch(job.global_batch_size, job.per_device_train_batch_size, processes())
    return rows_each * processes() if processes() > 1 else 1


def uses_gradient_checkpointing() -> bool:
    """Whether activations are recomputed in the backward pass, to save GPU memory."""
    return torch.cuda.is_available()


def validate_trains(job: TrainJob, rows: int) -> None:
    """Raises NoOptimizerStep without a full forward pass, and for a training of one step with warmup, whose learning
    rate would be 0."""
    together = rows_together(job)
    rows -= rows % together
    if not rows:
        raise NoOptimizerStep(
            f"fewer rows than the {together} that {processes()} processes take together; lower "
            f"per_device_train_batch_size or global_batch_size, or provide more rows"
        )
    if job.warmup_ratio and job.num_train_epochs * math.ceil(rows / job.global_batch_size) == 1:
        raise NoOptimizerStep(
            f"{rows} rows in batches of {job.global_batch_size} are one step, and with warmup its learning rate is "
            f"0, so nothing would be "
            f"learnt; lower global_batch_size, raise num_train_epochs, or set warmup_ratio = 0"
        )


def last_complete_checkpoint(work: Path, sharded: bool = False) -> str | None:
    """The newest complete checkpoint, sharded or whole; others are deleted, by whichever process is first."""
    checkpoints = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    complete = [path for path in checkpoints if _is_complete(path, sharded)]
    for path in checkpoints:
        if path not in complete:
            shutil.rmtree(path, ignore_errors=True)
    return str(complete[-1]) if complete else None


def _is_complete(checkpoint: Path, sharded: bool) -> bool:
    """Whether all files exist. trainer_state.json is written last, but a checkpoint that is being deleted may still
    have it."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    if sharded:  # the metadata is written when all processes have finished
        return all((checkpoint / part / ".metadata").exists() for part in SHARDED_PARTS)
    return (checkpoint / "optimizer.pt").exists() and any(checkpoint.glob("*.safetensors"))


def _arguments(job: TrainJob) -> dict[str, Any]:
    on_cpu = not torch.cuda.is_available()
    rows_each, accumulation = split_batch(job.global_batch_size, job.per_device_train_batch_size, processes())
    return {
        # With several processes, a last batch that is not full would be filled up with rows that the epoch has had.
        "dataloader_drop_last": processes() > 1,
        "logging_nan_inf_filter": False,
        "output_dir": str(job.work),
        "seed": job.seed,
        "data_seed": job.seed,
        "num_train_epochs": job.num_train_epochs,
        "per_device_train_batch_size": rows_each,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": job.learning_rate,
        "warmup_steps": job.warmup_ratio,
        "lr_scheduler_type": "cosine",
        "bf16": job.bf16 and not on_cpu,
        "use_cpu": on_cpu,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": job.log_every,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": job.save_steps,
        "save_total_limit": 1,
        **_sharding(job),
        "adam_beta2": job.adam_beta2,
        "weight_decay": job.weight_decay,
        "train_sampling_strategy": "random" if job.shuffle else "sequential",
        "max_length": job.max_length,
        "remove_unused_columns": False,
    }


def _sharding(job: TrainJob) -> dict[str, Any]:
    """Arguments for FSDP2. Its own activation checkpointing is not used: it draws other dropout masks the second
    time."""
    arguments: dict[str, Any] = {"gradient_checkpointing": uses_gradient_checkpointing()}
    if is_sharded(job):
        arguments |= {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
    return arguments


def _simpo(job: TrainJob, model: Any, tokenizer: Any, rows: Dataset) -> IdsSimPOTrainer:
    config = CPOConfig(
        **_arguments(job),
        loss_type="simpo",
        beta=job.beta,
        simpo_gamma=job.simpo_gamma,
        cpo_alpha=job.cpo_alpha,
    )
    return IdsSimPOTrainer(
        model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora_config(job)
    )


def _sft(job: TrainJob, model: Any, tokenizer: Any, rows: Dataset) -> SFTTrainer:
    def joined(row: dict[str, Any]) -> dict[str, Any]:
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}

    data = rows.map(joined, remove_columns=[name for name in rows.column_names if name != "problem_id"])
    config = SFTConfig(**_arguments(job), completion_only_loss=True)
    return SFTTrainer(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora_config(job)
    )


class IdsDPOTrainer(DPOTrainer):
    """TRL's DPO on rows that already hold token ids."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def _dpo(job: TrainJob, model: Any, tokenizer: Any, rows: Dataset) -> IdsDPOTrainer:
    config = DPOConfig(**_arguments(job), beta=job.beta)
    # With a LoRA adapter, the reference is the model without it.
    reference = None if job.lora else load_model(job.model, job.adapter)
    return IdsDPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(job),
    )


def lora_config(job: TrainerJob) -> LoraConfig | None:
    if job.lora is None:
        return None
    return LoraConfig(
        r=job.lora.r,
        lora_alpha=job.lora.alpha,
        lora_dropout=job.lora.dropout,
        target_modules="all-linear",
        # vLLM serves adapters of the language model alone.
        exclude_modules=VISION_TOWER if takes_images(read_json(job.model / "config.json")) else None,
        task_type="CAUSAL_LM",
    )


def save(job: TrainerJob, trainer: Any, tokenizer: Any, text: ScorableText) -> None:
    """Saves the checkpoint with its sync check: the log-probs of `text`. A server verifies its weights by them.

    Every process has to call it, since each may hold a part of the weights; the first one writes.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.accelerator.is_main_process:
        return
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(trained, PeftModel) and job.base_model:
        adapters = get_peft_model_state_dict(trained, state_dict=weights, save_embedding_layers=False)
        save_adapters(adapters, trained.peft_config["default"], job.adapter, job.base_model, job.output)  # type: ignore[arg-type]
        saved: tuple[Path, Path | None] = job.model, job.output
    else:
        model = whole_model(job, trained, weights)
        if job.dtype == "bfloat16":
            model.to(torch.bfloat16)
        model.save_pretrained(job.output)
        save_processing(job.model, tokenizer, job.output)
        del model
        saved = job.output, None
    del weights  # the check loads another copy into host memory
    found = log_probs(saved[0], text.token_ids.tolist(), saved[1], text.images)
    write_sync_check(job.output, SyncCheck.of(text, found, job.base_fingerprint if saved[1] else None))
    make_readable(job.output)


def whole_model(job: TrainerJob, trained: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The trained model in this process's memory, adapters merged. `weights`: all of `trained`, which may have only a
    part of them."""
    model = load_model(job.model, job.adapter)
    if not isinstance(trained, PeftModel):
        model.load_state_dict(weights)
        return model
    adapted = get_peft_model(model, trained.peft_config["default"])  # type: ignore[arg-type]
    adapters = get_peft_model_state_dict(trained, state_dict=weights, save_embedding_layers=False)
    loaded = set_peft_model_state_dict(adapted, adapters)
    if missed := [*loaded.unexpected_keys, *(name for name in loaded.missing_keys if ".lora_" in name)]:
        raise RuntimeError(f"adapters were not merged: {', '.join(missed[:3])}")
    return adapted.merge_and_unload()


def record_exit_reason(job: J, do: Callable[[J], None]) -> None:
    """Runs `job` with `do`; writes the reason to the exit file when it ends for a known one."""
    try:
        do(job)
    except torch.OutOfMemoryError:
        job.exit_file.write_text(ExitReason.OUT_OF_MEMORY)
        raise
    except NotFinite:
        job.exit_file.write_text(ExitReason.NOT_FINITE)
        raise
    except CannotTrain as error:
        job.exit_file.write_text(f"{ExitReason.GIVEN_UP}\n{error}")
        raise


def run(job_file: Path) -> None:
    record_exit_reason(TrainJob.model_validate_json(job_file.read_text()), main)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
