"""Training steps: rows in, checkpoint out. The trainer runs in a subprocess."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from conf.training import Dpo, Sft, SimPO, Training
from models.training.launcher import (
    GRADIENT_CHECKPOINTING,
    LOG,
    ROWS_LEFT_OVER,
    TrainerJob,
    TrainingFailed,
    TrainJob,
    job_paths,
    start_of,
)
from reasoning.records import Demonstration, Pair, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.progress import Stage


@step("training")
def train_simpo(ctx: StepContext, model: ArtifactRef, pairs: ArtifactRef, training: SimPO, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on preference pairs. Raises TrainingFailed."""
    return _fit(
        ctx,
        "simpo",
        model,
        pairs,
        _pair_lengths(ctx, pairs),
        training,
        seed,
        beta=training.beta,
        simpo_gamma=training.simpo_gamma,
        cpo_alpha=training.cpo_alpha,
    )


@step("training")
def train_dpo(
    ctx: StepContext,
    model: ArtifactRef,
    pairs: ArtifactRef,
    training: Dpo,
    seed: int,
    images: ArtifactRef | None = None,
) -> ArtifactRef:
    """A checkpoint trained from `model` on preference pairs; the reference is `model`. `images`: rows of Problem with
    the images of the pairs. Raises TrainingFailed."""
    lengths = _pair_lengths(ctx, pairs)
    return _fit(ctx, "dpo", model, pairs, lengths, training, seed, problems=_local(ctx, images), beta=training.beta)


def _local(ctx: RunContext, problems: ArtifactRef | None) -> Path | None:
    return ctx.artifacts.local_path(problems) if problems else None


def _pair_lengths(ctx: RunContext, pairs: ArtifactRef) -> list[int]:
    """Tokens of prompt and completion, for both sides of each pair. Raises TrainingFailed without pairs."""
    if not pairs.rows:
        raise _no_rows(ctx, pairs, "preference pair")
    rows = ctx.artifacts.stream(pairs, Pair)
    return [len(row.prompt_ids) + len(side) for row in rows for side in (row.chosen_ids, row.rejected_ids)]


def _no_rows(ctx: RunContext, rows: ArtifactRef, name: str) -> TrainingFailed:
    """An error that lists what the upstream steps dropped."""
    reasons = [
        f"{entry.step}: {', '.join(f'{number:,} {why}' for why, number in entry.artifact.count.dropped.items())}"
        for entry in reversed(ctx.ledger.upstream_steps(rows))
        if entry.artifact.count and entry.artifact.count.dropped
    ]
    return TrainingFailed(f"no {name} is left to train on; dropped on the way: {'; '.join(reasons) or 'nothing'}")


@step("training")
def train_sft(
    ctx: StepContext, model: ArtifactRef, rows: ArtifactRef, training: Sft, seed: int, images: ArtifactRef | None = None
) -> ArtifactRef:
    """A checkpoint trained from `model` on demonstrations. `images`: rows of Problem with the images of the
    demonstrations. Raises TrainingFailed."""
    if not rows.rows:
        raise _no_rows(ctx, rows, "demonstration")
    demonstrations = ctx.artifacts.stream(rows, Demonstration)
    lengths = [len(row.prompt_ids) + len(row.completion_ids) for row in demonstrations]
    return _fit(ctx, "sft", model, rows, lengths, training, seed, problems=_local(ctx, images))


def _fit(
    ctx: StepContext,
    method: Literal["simpo", "dpo", "sft"],
    model: ArtifactRef,
    rows: ArtifactRef,
    lengths: Sequence[int],
    training: Training,
    seed: int,
    **objective: Any,
) -> ArtifactRef:
    """Trains `model` on `rows`. `lengths`: tokens of each text of an epoch. `objective`: further fields of the job."""
    start = ctx.resources.checkpoint(model)

    def usage(figures: Sequence[dict[str, Any]]) -> Usage:
        flops = training.num_train_epochs * start.shape.training_flops(
            lengths,
            are_weights_frozen=bool(training.lora),
            gradient_checkpointing=any(line.get(GRADIENT_CHECKPOINTING) for line in figures),
            with_reference=method == "dpo",
        )
        return Usage(prompt_tokens=training.num_train_epochs * sum(lengths), flops=flops)

    def left_over(figures: Sequence[dict[str, Any]]) -> dict[str, int]:
        rows = max((line.get(ROWS_LEFT_OVER, 0) for line in figures), default=0)
        return {ROWS_LEFT_OVER: rows} if rows else {}

    return run_job(
        ctx,
        method,
        rows_in=rows.rows,
        usage=usage,
        counts=left_over,
        make_job=lambda scratch: TrainJob(
            method=method,
            **start_of(start, training.lora),
            rows=ctx.artifacts.local_path(rows),
            **job_paths(scratch),
            seed=seed,
            learning_rate=training.learning_rate,
            num_train_epochs=training.num_train_epochs,
            global_batch_size=training.global_batch_size,
            per_device_train_batch_size=training.per_device_train_batch_size,
            warmup_ratio=training.warmup_ratio,
            max_length=training.max_length,
            bf16=training.bf16,
            lora=training.lora,
            fsdp=training.fsdp,
            **objective,
        ),
    )


def run_job(
    ctx: StepContext,
    name: str,
    *,
    rows_in: int,
    usage: Callable[[Sequence[dict[str, Any]]], Usage],
    make_job: Callable[[Path], TrainerJob],
    counts: Callable[[Sequence[dict[str, Any]]], dict[str, int]] = lambda _: {},
) -> ArtifactRef:
    """Runs a training job and returns the checkpoint. Raises TrainingFailed.

    The scratch folder is named by the step's cache key, so only a repetition of the same step resumes from it.
    `usage` and `counts` compute the cost and other ledger counts from the trainer's figures (one dict per logged step).
    Log and figures are copied to the run's folder; their names end in the key's last characters, because a run may
    train several models by one method.
    """
    scratch = ctx.directory.scratch(ctx.key, ctx.lease.owner)
    shutil.rmtree(scratch / "model", ignore_errors=True)
    job = make_job(scratch)
    processes = f"{job.processes} processes, " * (job.processes > 1)
    ctx.progress.note(f"{name}: {processes}log in {scratch / LOG}")
    ctx.resources.release_gpu()
    ctx.resources.gpu_slot.take()
    figures = ctx.resources.trainer(job, scratch, _step_progress(ctx, name))
    _note_initial_log_probs(ctx, name, figures[0] if figures else {})
    file_name = f"{name}-{ctx.key[-8:]}"
    (ctx.directory.path / f"{file_name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in figures))
    if (scratch / LOG).exists():
        shutil.copy(scratch / LOG, ctx.directory.path / f"{file_name}.log")
    ctx.lease.check()
    count = ctx.count(rows_in, 1, usage=usage(figures))
    checkpoint = ctx.artifacts.publish_folder(
        "checkpoint", job.output, count.model_copy(update={"counts": counts(figures)}), move=True
    )
    # Renamed first: a removal that is interrupted must not leave a partial folder that a later run would resume from.
    shutil.rmtree(scratch.rename(scratch.parent.with_name(f".done-{ctx.key}-{scratch.name}")))
    with suppress(OSError):  # another run that has taken over works there
        scratch.parent.rmdir()
    return checkpoint


def _note_initial_log_probs(ctx: RunContext, name: str, first: dict[str, Any]) -> None:
    """Notes the log-probs of both sides before training. A chosen side that is far less likely than the rejected one
    means that the closing text is unnatural for this model."""
    if "logps/chosen" in first:
        chosen, rejected = first["logps/chosen"], first["logps/rejected"]
        unit = "per token" if name == "simpo" else "of a completion"
        ctx.progress.note(f"{name}: log-prob {unit} before training: chosen {chosen:.3f}, rejected {rejected:.3f}")


def _step_progress(ctx: StepContext, name: str) -> Callable[[int, int], None]:
    """A callback that turns the trainer's (step, steps) into progress. Raises LeaseLost, which ends the trainer."""
    advance: Stage | None = None
    at = 0

    def progress(done: int, steps: int) -> None:
        nonlocal advance, at
        ctx.lease.check()
        if not steps:
            return
        advance = advance or ctx.progress.stage(name, steps, "steps")
        if done > at:
            advance(done - at)
            at = done

    return progress
