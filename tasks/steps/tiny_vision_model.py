"""Steps that make the bundled vision-language model: warm start and corpus."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.tiny_model import Teacher
from conf.tiny_vision_model import VisionLesson, WarmStart
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.images import ImageProcessor
from models.tiny_model import in_batches
from models.tiny_vision_model import (
    LessonRow,
    lesson_rows,
    problem_of,
    train_vision_tokenizer,
    untrained_image_processor,
    untrained_vision_model,
    warm_start,
)
from reasoning.records import Verdict
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.rows import RowFile
from tasks.steps.tiny_model import PROBLEMS_FILE, ROWS_FILE, TOKENIZER_TEXTS


@step("training")
def write_vision_corpus(
    ctx: StepContext, lessons: tuple[VisionLesson, ...], teacher: Teacher, warm: WarmStart, batch: int, seed: int
) -> ArtifactRef:
    """A folder with the model, whose vision tower alone is trained, its tokenizer, and rows in training order with
    their pictures."""
    rows = lesson_rows(lessons, teacher, seed)
    with tempfile.TemporaryDirectory() as scratch, RowFile() as problems:
        folder = Path(scratch)
        seen = _save_warm_started(folder, rows, warm, seed)
        ctx.progress.note(f"the vision tower tells {seen:.1%} of the quantities after its warm start")
        checkpoint, ordered = Checkpoint.open(folder), list[dict[str, Any]]()
        for number, lesson in enumerate(rows):
            ordered += in_batches(_tokenized(checkpoint, lesson, number, problems), batch, seed)
        pq.write_table(pa.Table.from_pylist(ordered), folder / ROWS_FILE)
        shutil.copy(problems.finish(), folder / PROBLEMS_FILE)
        total = sum(map(len, rows))
        count = ctx.count(total, len(ordered), {"incomplete-batch": total - len(ordered)})
        return ctx.artifacts.publish_folder("corpus", folder, count)


def _save_warm_started(folder: Path, rows: Sequence[Sequence[LessonRow]], warm: WarmStart, seed: int) -> float:
    """Writes the model, whose vision tower alone is trained, with tokenizer and image processor. Returns the share of
    quantities that the tower tells."""
    tokenizer = train_vision_tokenizer(f"{row.text} {row.completion}" for row in rows[-1][:TOKENIZER_TEXTS])
    tokenizer.save_pretrained(folder)
    untrained_image_processor().save_pretrained(folder)
    model = untrained_vision_model(tokenizer, seed)
    model.config.save_pretrained(folder)
    seen = warm_start(model, ImageProcessor(folder), warm, seed)
    model.save_pretrained(folder)
    return seen


def _tokenized(
    checkpoint: Checkpoint, lesson: Sequence[LessonRow], number: int, problems: RowFile
) -> list[dict[str, Any]]:
    """Rows of a lesson in token ids. Their problems, which hold the pictures, are appended to `problems`."""
    tokenized = []
    for index, row in enumerate(lesson):
        problem = problem_of(row, f"{number}-{index}")
        problems.append(problem)
        prompt, completion = checkpoint.prompt_ids(problem), checkpoint.encode(row.completion)
        tokenized.append(
            {"problem_id": problem.id, "prompt_ids": prompt.tolist(), "completion_ids": completion.tolist()}
        )
    return tokenized


def blind_figures(ctx: RunContext, model: ArtifactRef, blind: ArtifactRef) -> dict[str, float]:
    """Figures of the card that only a model with a vision tower has. `blind`: traces of problems with other problems'
    images."""
    verdicts = [verdict for (verdict,) in ctx.artifacts.columns(blind, "verdict")]
    checkpoint = ctx.resources.checkpoint(model)
    return {
        "blind_accuracy": verdicts.count(Verdict.RIGHT) / len(verdicts),
        "vision_parameters": sum(checkpoint.tensor_sizes.values()) - checkpoint.shape.parameters,
    }
