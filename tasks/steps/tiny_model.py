"""Steps that make the bundled model: corpus, pretraining, model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from conf.tiny_model import BundledModel, Lesson, Pretraining, Teacher, TinyModel
from conf.tiny_vision_model import TinyVisionModel
from models.checkpoints.files import SYNC_CHECK_FILE
from models.tiny_model import CONTEXT, teacher_texts, train_tokenizer, training_rows, untrained_model
from models.training.launcher import GRADIENT_CHECKPOINTING, TrainJob, job_paths
from reasoning.model_card import card_figures
from reasoning.records import Problem, Scan, Trace, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.training import run_job

ROWS_FILE, PROBLEMS_FILE = "rows.parquet", "problems.parquet"
"""Of a corpus: rows in training order, and, where they have images, the problems that hold those."""
TOKENIZER_TEXTS = 8_000
"""Texts of the last lesson that the tokenizer is trained on."""


@step()
def write_corpus(ctx: StepContext, lessons: tuple[Lesson, ...], teacher: Teacher, batch: int, seed: int) -> ArtifactRef:
    """A folder with the untrained model, its tokenizer, and `rows.parquet` in training order."""
    texts = teacher_texts(lessons, teacher, seed)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = train_tokenizer([f"{problem} {trace}" for problem, trace in texts[-1][:TOKENIZER_TEXTS]])
        tokenizer.save_pretrained(scratch)
        untrained_model(tokenizer, seed).save_pretrained(scratch)
        rows = [row for lesson in texts for row in training_rows(tokenizer, lesson, batch, seed)]
        pq.write_table(pa.Table.from_pylist(rows), Path(scratch) / ROWS_FILE)
        total = sum(map(len, texts))
        count = ctx.count(total, len(rows), {"incomplete-batch": total - len(rows)})
        return ctx.artifacts.publish_folder("corpus", Path(scratch), count)


@step("training")
def pretrain(ctx: StepContext, corpus: ArtifactRef, training: Pretraining, seed: int) -> ArtifactRef:
    """The trained checkpoint, in bfloat16."""
    folder = ctx.artifacts.local_path(corpus)
    rows = pq.read_table(folder / ROWS_FILE, columns=["prompt_ids", "completion_ids"])
    problems = folder / PROBLEMS_FILE
    lengths = [len(p) + len(c) for p, c in zip(*(column.to_pylist() for column in rows.columns), strict=True)]
    shape = ctx.resources.checkpoint(corpus).shape

    def usage(figures: Sequence[dict[str, Any]]) -> Usage:
        flops = shape.training_flops(
            lengths, gradient_checkpointing=any(line.get(GRADIENT_CHECKPOINTING) for line in figures)
        )
        return Usage(prompt_tokens=sum(lengths), flops=flops)

    return run_job(
        ctx,
        "pretrain",
        rows_in=rows.num_rows,
        usage=usage,
        make_job=lambda scratch: TrainJob(
            method="sft",
            model=folder,
            rows=folder / ROWS_FILE,
            problems=problems if problems.exists() else None,
            **job_paths(scratch),
            seed=seed,
            learning_rate=training.learning_rate,
            num_train_epochs=1,
            global_batch_size=training.global_batch_size,
            per_device_train_batch_size=training.global_batch_size,
            warmup_ratio=training.warmup_ratio,
            max_length=None,
            adam_beta2=training.adam_beta2,
            weight_decay=training.weight_decay,
            shuffle=False,
            dtype="bfloat16",
            log_every=20,
            save_steps=500,
        ),
    )


@step()
def first_samples(ctx: StepContext, traces: ArtifactRef, count: int) -> ArtifactRef:
    """Rows of Trace: each problem's first `count` traces, the ones that are probed."""
    rows = ctx.artifacts.rows(traces, Trace)
    kept = [row for row in rows if row.sample < count]
    return ctx.publish("traces", kept, rows_in=len(rows), dropped={"not-probed": len(rows) - len(kept)})


class Trained(NamedTuple):
    """A bundled model, and what its card is made of."""

    model: ArtifactRef
    problems: ArtifactRef
    """Held-out problems."""
    traces: ArtifactRef
    """The model's traces of them."""
    scans: ArtifactRef
    """The scans of some traces."""


def figures_of(ctx: RunContext, settings: BundledModel, trained: Trained) -> dict[str, Any]:
    """The figures of the card."""
    checkpoint = ctx.resources.checkpoint(trained.model)
    return card_figures(
        ctx.artifacts.rows(trained.problems, Problem),
        ctx.artifacts.rows(trained.traces, Trace),
        ctx.artifacts.rows(trained.scans, Scan),
        len(checkpoint.encode(settings.probing.exit_text)) + settings.probing.sampling.max_tokens // 2,
    )


def write_card(
    ctx: RunContext,
    settings: TinyModel | TinyVisionModel,
    model: ArtifactRef,
    figures: dict[str, Any],
    card: Callable[[dict[str, Any], int, int], str],
) -> Path:
    """Writes the weights and the card (README.md, figures.json) to a scratch folder, then moves them to
    `settings.output`. Returns the path of the card. `card`: its text from figures, number of parameters and context."""
    checkpoint, output = ctx.resources.checkpoint(model), Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        folder = Path(scratch) / "model"
        shutil.copytree(checkpoint.folder, folder, ignore=shutil.ignore_patterns(SYNC_CHECK_FILE))
        recorded = settings.model_dump(mode="json", exclude=set(settings.NOT_IN_CACHE_KEY))
        body: dict[str, Any] = {"figures": figures, "settings": recorded}
        (folder / "figures.json").write_text(json.dumps(body, indent=2) + "\n")
        (folder / "README.md").write_text(card(figures, checkpoint.shape.parameters, CONTEXT))
        for path in folder.iterdir():
            path.replace(output / path.name)
    return output / "README.md"
