"""Training steps: rows in, checkpoint out. Knows: jobs and artifacts. Must not know: TRL or torch."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from conf.settings import SimPO
from models.trainer import TrainJob
from reasoning.records import Pair, Usage
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.progress import Stage
from tasks.workplace import Workplace, stage_count


@step(version="1")
def train_simpo(place: Workplace, model: ArtifactRef, pairs: ArtifactRef, training: SimPO, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on preference pairs."""
    rows = place.rows(pairs, Pair)
    if not rows:
        raise ValueError("no preference pair is left to train on; the ledger says why rows were dropped")
    same_job = hashlib.sha256(f"{model.digest}{pairs.digest}{training.model_dump_json()}{seed}".encode()).hexdigest()
    tokens = training.epochs * sum(
        2 * len(row.prompt_ids) + len(row.chosen_ids) + len(row.rejected_ids) for row in rows
    )
    return run_job(
        place, f"simpo-{same_job[:16]}", rows_in=len(rows),
        usage=Usage(prompt_tokens=tokens, flops=place.checkpoint(model).shape.training_flops(tokens)),
        job=lambda scratch: TrainJob(
            method="simpo", model=place.checkpoint(model).folder, rows=place.artifacts.local_path(pairs),
            output=scratch / "model", work=scratch / "checkpoints", progress=scratch / "progress.jsonl", seed=seed,
            learning_rate=training.learning_rate, epochs=training.epochs, batch=training.batch,
            micro_batch=training.micro_batch, warmup=training.warmup, max_length=training.max_length,
            beta=training.beta, gamma=training.gamma, sft_weight=training.sft_weight,
        ),
    )  # fmt: skip


def run_job(place: Workplace, name: str, *, rows_in: int, usage: Usage, job: Callable[[Path], TrainJob]) -> ArtifactRef:
    """Runs a job in a scratch folder that a repeated task finds again, so it resumes from the last checkpoint.

    The trainer's figures are kept as `<name>.jsonl` in the run's folder.
    """
    started = time.monotonic()
    scratch = place.scratch(name)
    order = job(scratch)
    place.trainer(order, scratch, _steps(place, name))
    shutil.copy(order.progress, place.folder / f"{name}.jsonl")
    published = place.artifacts.publish_folder(
        "checkpoint", order.output, stage_count(rows_in, 1, None, usage, started)
    )
    shutil.rmtree(scratch)
    return published


def _steps(place: Workplace, name: str) -> Callable[[int, int], None]:
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
