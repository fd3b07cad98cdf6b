"""Training steps: rows in, checkpoint out. Knows: jobs and artifacts. Must not know: TRL or torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from conf.training import Dpo, Sft, SimPO, Training
from models.training.launcher import LOG, RECOMPUTES, Job, TrainingFailed, TrainJob
from reasoning.records import Demonstration, Pair, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.progress import Stage


@step
def train_simpo(ctx: StepContext, model: ArtifactRef, pairs: ArtifactRef, training: SimPO, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on preference pairs."""
    return _fit(
        ctx,
        "simpo",
        model,
        pairs,
        _texts(ctx, pairs),
        training,
        seed,
        beta=training.beta,
        simpo_gamma=training.simpo_gamma,
        cpo_alpha=training.cpo_alpha,
    )


@step
def train_dpo(ctx: StepContext, model: ArtifactRef, pairs: ArtifactRef, training: Dpo, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on preference pairs, with `model` itself as the reference."""
    return _fit(ctx, "dpo", model, pairs, _texts(ctx, pairs), training, seed, beta=training.beta)


def _texts(ctx: RunContext, pairs: ArtifactRef) -> list[int]:
    """Tokens of both sides of all pairs, each with its prompt."""
    rows = ctx.artifacts.rows(pairs, Pair)
    if not rows:
        raise _nothing_left(ctx, pairs, "preference pair")
    return [len(row.prompt_ids) + len(side) for row in rows for side in (row.chosen_ids, row.rejected_ids)]


def _nothing_left(ctx: RunContext, rows: ArtifactRef, name: str) -> TrainingFailed:
    reasons = [
        f"{entry.step}: {', '.join(f'{number:,} {why}' for why, number in entry.artifact.count.dropped.items())}"
        for entry in reversed(ctx.ledger.upstream_steps(rows))
        if entry.artifact.count and entry.artifact.count.dropped
    ]
    return TrainingFailed(f"no {name} is left to train on; dropped on the way: {'; '.join(reasons) or 'nothing'}")


@step
def train_sft(ctx: StepContext, model: ArtifactRef, rows: ArtifactRef, training: Sft, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on demonstrations."""
    found = ctx.artifacts.rows(rows, Demonstration)
    if not found:
        raise _nothing_left(ctx, rows, "demonstration")
    texts = [len(row.prompt_ids) + len(row.completion_ids) for row in found]
    return _fit(ctx, "sft", model, rows, texts, training, seed)


def _fit(
    ctx: StepContext,
    method: Literal["simpo", "dpo", "sft"],
    model: ArtifactRef,
    rows: ArtifactRef,
    texts: Sequence[int],
    training: Training,
    seed: int,
    **objective: Any,
) -> ArtifactRef:
    """Trains `model` on `rows`; `texts` are the lengths of all that an epoch reads, `objective` is what only `method`
    knows."""
    shape = ctx.resources.checkpoint(model).shape

    def usage(figures: Sequence[dict[str, Any]]) -> Usage:
        flops = training.num_train_epochs * shape.training_flops(
            texts,
            are_weights_frozen=bool(training.lora),
            is_recomputed=any(line.get(RECOMPUTES) for line in figures),
            with_reference=method == "dpo",
        )
        return Usage(prompt_tokens=training.num_train_epochs * sum(texts), flops=flops)

    return run_job(
        ctx,
        method,
        rows_in=rows.rows,
        usage=usage,
        job=lambda scratch: TrainJob(
            method=method,
            model=ctx.resources.checkpoint(model).folder,
            rows=ctx.artifacts.local_path(rows),
            output=scratch / "model",
            work=scratch / "checkpoints",
            progress=scratch / "progress.jsonl",
            exit_file=scratch / "exit_reason",
            seed=seed,
            learning_rate=training.learning_rate,
            num_train_epochs=training.num_train_epochs,
            global_batch_size=training.global_batch_size,
            per_device_train_batch_size=training.per_device_train_batch_size,
            warmup_ratio=training.warmup_ratio,
            max_length=training.max_length,
            bf16=training.bf16,
            lora=training.lora,
            **objective,
        ),
    )


def run_job(
    ctx: StepContext,
    name: str,
    *,
    rows_in: int,
    usage: Callable[[Sequence[dict[str, Any]]], Usage],
    job: Callable[[Path], Job],
    counts: Callable[[Sequence[dict[str, Any]]], dict[str, int]] = lambda _: {},
) -> ArtifactRef:
    """Runs a job in a scratch folder named by the step's key: a repeated step resumes, another one never does.

    `usage`: what it cost, from the trainer's figures, one line a logged step; `counts`: what else the ledger tells of
    it. Log and figures are kept in the run's folder, named by the end of the key: a run may train several.
    """
    scratch = ctx.directory.scratch(ctx.key)
    shutil.rmtree(scratch / "model", ignore_errors=True)
    order = job(scratch)
    ctx.progress.note(f"{name}: log in {scratch / LOG}")
    ctx.resources.release_gpu()
    figures = ctx.resources.trainer(order, scratch, _steps(ctx, name))
    _tell_start(ctx, name, figures[0] if figures else {})
    kept_as = f"{name}-{ctx.key[-8:]}"
    (ctx.directory.path / f"{kept_as}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in figures))
    if (scratch / LOG).exists():
        shutil.copy(scratch / LOG, ctx.directory.path / f"{kept_as}.log")
    count = ctx.count(rows_in, 1, usage=usage(figures))
    published = ctx.artifacts.publish_folder(
        "checkpoint", order.output, count.model_copy(update={"counts": counts(figures)})
    )
    done = scratch.rename(scratch.with_name(f".done-{scratch.name}"))  # never again half a folder under its name
    shutil.rmtree(done)
    return published


def _tell_start(ctx: RunContext, name: str, first: dict[str, Any]) -> None:
    """How likely both sides of the pairs were before training: a chosen side far less likely than the rejected one
    means closing texts that are unnatural for this model."""
    if "logps/chosen" in first:
        chosen, rejected = first["logps/chosen"], first["logps/rejected"]
        unit = "per token" if name == "simpo" else "of a completion"
        ctx.progress.note(f"{name}: log-prob {unit} before training: chosen {chosen:.3f}, rejected {rejected:.3f}")


def _steps(ctx: RunContext, name: str) -> Callable[[int, int], None]:
    """Turns the trainer's (step, steps) into progress."""
    advance: Stage | None = None
    at = 0

    def progress(done: int, steps: int) -> None:
        nonlocal advance, at
        advance = advance or ctx.progress.stage(name, steps, "steps")
        if done > at:
            advance(done - at)
            at = done

    return progress
