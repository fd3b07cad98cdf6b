"""Training steps: rows in, checkpoint out. Knows: jobs and artifacts. Must not know: TRL or torch."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from conf.training import Dpo, Sft, SimPO, Training
from models.training.launcher import LOG, RECOMPUTES, Job, TrainingFailed, TrainJob
from reasoning.records import Demonstration, Pair, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, upstream_steps, stage_count
from tasks.runtime.progress import Stage


@step
def train_simpo(place: RunContext, model: ArtifactRef, pairs: ArtifactRef, training: SimPO, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on preference pairs."""
    return _fit(
        place, "simpo", model, pairs, _texts(place, pairs), training, seed,
        beta=training.beta, gamma=training.gamma, sft_weight=training.sft_weight,
    )  # fmt: skip


@step
def train_dpo(place: RunContext, model: ArtifactRef, pairs: ArtifactRef, training: Dpo, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on preference pairs, with `model` itself as the reference."""
    return _fit(place, "dpo", model, pairs, _texts(place, pairs), training, seed, beta=training.beta)


def _texts(place: RunContext, pairs: ArtifactRef) -> list[int]:
    """Tokens of both sides of all pairs, each with its prompt."""
    rows = place.rows(pairs, Pair)
    if not rows:
        raise _nothing_left(place, pairs, "preference pair")
    return [len(row.prompt_ids) + len(side) for row in rows for side in (row.chosen_ids, row.rejected_ids)]


def _nothing_left(place: RunContext, rows: ArtifactRef, name: str) -> TrainingFailed:
    reasons = [
        f"{entry.step}: {', '.join(f'{number:,} {why}' for why, number in entry.artifact.count.dropped.items())}"
        for entry in reversed(upstream_steps(rows, place.ledger)) if entry.artifact.count and entry.artifact.count.dropped
    ]  # fmt: skip
    return TrainingFailed(f"no {name} is left to train on; dropped on the way: {'; '.join(reasons) or 'nothing'}")


@step
def train_sft(place: RunContext, model: ArtifactRef, rows: ArtifactRef, training: Sft, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on demonstrations."""
    found = place.rows(rows, Demonstration)
    if not found:
        raise _nothing_left(place, rows, "demonstration")
    texts = [len(row.prompt_ids) + len(row.completion_ids) for row in found]
    return _fit(place, "sft", model, rows, texts, training, seed)


def _fit(
    place: RunContext, method: Literal["simpo", "dpo", "sft"], model: ArtifactRef, rows: ArtifactRef,
    texts: Sequence[int], training: Training, seed: int, **objective: Any,
) -> ArtifactRef:  # fmt: skip
    """Trains `model` on `rows`; `texts` are the lengths of all that an epoch reads, `objective` is what only `method`
    knows."""
    shape = place.checkpoint(model).shape

    def usage(figures: Sequence[dict[str, Any]]) -> Usage:
        flops = training.epochs * shape.training_flops(
            texts, are_weights_frozen=bool(training.lora), is_recomputed=any(line.get(RECOMPUTES) for line in figures),
            with_reference=method == "dpo",
        )  # fmt: skip
        return Usage(prompt_tokens=training.epochs * sum(texts), flops=flops)

    return run_job(
        place, method, rows_in=rows.rows, usage=usage,
        job=lambda scratch: TrainJob(
            method=method, model=place.checkpoint(model).folder, rows=place.artifacts.local_path(rows),
            output=scratch / "model", work=scratch / "checkpoints", progress=scratch / "progress.jsonl",
            outcome=scratch / "outcome", seed=seed,
            learning_rate=training.learning_rate, epochs=training.epochs, batch=training.batch,
            micro_batch=training.micro_batch, warmup=training.warmup, max_length=training.max_length,
            bf16=training.bf16, lora=training.lora, **objective,
        ),
    )  # fmt: skip


def run_job(
    place: RunContext, name: str, *, rows_in: int, usage: Callable[[Sequence[dict[str, Any]]], Usage],
    job: Callable[[Path], Job], counts: Callable[[Sequence[dict[str, Any]]], dict[str, int]] = lambda _: {},
) -> ArtifactRef:  # fmt: skip
    """Runs a job in a scratch folder named by the step's key: a repeated step resumes, another one never does.

    `usage`: what it cost, from the trainer's figures, one line a logged step; `counts`: what else the ledger tells of
    it. Log and figures are kept in the run's folder, named by the end of the key: a run may train several.
    """
    started = time.monotonic()
    scratch = place.scratch(place.step_key)
    shutil.rmtree(scratch / "model", ignore_errors=True)
    order = job(scratch)
    place.progress.note(f"{name}: log in {scratch / LOG}")
    place.make_room_for_training()
    figures = place.trainer(order, scratch, _steps(place, name))
    _tell_start(place, name, figures[0] if figures else {})
    kept_as = f"{name}-{place.step_key[-8:]}"
    (place.folder / f"{kept_as}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in figures))
    if (scratch / LOG).exists():
        shutil.copy(scratch / LOG, place.folder / f"{kept_as}.log")
    count = stage_count(rows_in, 1, None, usage(figures), started)
    published = place.artifacts.publish_folder(
        "checkpoint", order.output, count.model_copy(update={"counts": counts(figures)})
    )
    done = scratch.rename(scratch.with_name(f".done-{scratch.name}"))  # never again half a folder under its name
    shutil.rmtree(done)
    return published


def _tell_start(place: RunContext, name: str, first: dict[str, Any]) -> None:
    """How likely both sides of the pairs were before training: a chosen side far less likely than the rejected one
    means closing texts that are unnatural for this model."""
    if "logps/chosen" in first:
        chosen, rejected = first["logps/chosen"], first["logps/rejected"]
        unit = "per token" if name == "simpo" else "of a completion"
        place.progress.note(f"{name}: log-prob {unit} before training: chosen {chosen:.3f}, rejected {rejected:.3f}")


def _steps(place: RunContext, name: str) -> Callable[[int, int], None]:
    """Turns the trainer's (step, steps) into progress."""
    advance: Stage | None = None
    at = 0

    def progress(done: int, steps: int) -> None:
        nonlocal advance, at
        advance = advance or place.progress.stage(name, steps, "steps")
        if done > at:
            advance(done - at)
            at = done

    return progress
