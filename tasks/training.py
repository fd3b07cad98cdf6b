"""Training steps: rows in, checkpoint out. Knows: jobs and artifacts. Must not know: TRL or torch."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from conf.settings import SimPO
from models.trainer import TrainJob
from reasoning.records import Pair, Usage
from tasks.artifacts import ArtifactRef
from tasks.caching import step
from tasks.workplace import Workplace, remove, stage_count


@step(version="1")
def train_simpo(place: Workplace, model: ArtifactRef, pairs: ArtifactRef, training: SimPO, seed: int) -> ArtifactRef:
    """A checkpoint trained from `model` on preference pairs, with the proof by which a server shows it serves it.

    A repeated task resumes from the trainer's last checkpoint.
    """
    started = time.monotonic()
    rows = place.rows(pairs, Pair)
    if not rows:
        raise ValueError("no preference pair is left to train on; the ledger says why rows were dropped")
    same_job = hashlib.sha256(f"{model.digest}{pairs.digest}{training.model_dump_json()}{seed}".encode()).hexdigest()
    folder = place.scratch(f"simpo-{same_job[:16]}")
    job = TrainJob(
        method="simpo", model=place.checkpoint(model).folder, rows=place.artifacts.local_path(pairs),
        output=folder / "model", work=folder / "checkpoints", progress=folder / "progress.jsonl", seed=seed,
        learning_rate=training.learning_rate, epochs=training.epochs, batch=training.batch,
        micro_batch=training.micro_batch, warmup=training.warmup, max_length=training.max_length, beta=training.beta,
        gamma=training.gamma, sft_weight=training.sft_weight,
    )  # fmt: skip
    figures = place.trainer(job, folder, _steps(place))
    tokens = training.epochs * sum(
        2 * len(row.prompt_ids) + len(row.chosen_ids) + len(row.rejected_ids) for row in rows
    )
    usage = Usage(prompt_tokens=tokens, flops=place.checkpoint(model).shape.training_flops(tokens))
    _keep_figures(place.folder / "training.jsonl", folder / "progress.jsonl")
    count = stage_count("train", len(rows), len(figures), None, usage, started)
    published = place.artifacts.publish_folder("checkpoint", job.output, count)
    remove(folder)
    return published


def _steps(place: Workplace):
    advance, at = None, 0

    def progress(done: int, steps: int) -> None:
        nonlocal advance, at
        advance = advance or place.progress.stage("train", steps, "steps")
        if done > at:
            advance(done - at, 0)
            at = done

    return progress


def _keep_figures(target: Path, source: Path) -> None:
    if source.exists():
        target.write_text(source.read_text())
