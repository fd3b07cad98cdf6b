"""Settings of the pipeline that trains the bundled vision-language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from conf.base import Positive, PositiveFloat, Settings
from conf.problems import Benchmark, Boards
from conf.sampling import Sampling
from conf.tiny_model import BundledModel, Teacher

LEVELS = (1, 2, 3, 4, 5, 6, 7)


class WarmStart(Settings):
    """Training of the vision tower alone, to tell each box's colour and quantity."""

    steps: Positive = 300
    """Optimizer steps."""
    boards_per_step: Positive = 64
    """Boards per optimizer step."""
    learning_rate: PositiveFloat = 3e-3
    """Peak learning rate."""


class VisionLesson(Settings):
    """One part of the training corpus."""

    boards: Positive
    """Number of boards."""
    levels: tuple[Annotated[int, Field(ge=1, le=7)], ...] = ()
    """Levels of the questions, taken in turn. Empty: all six boxes are to be read, and nothing is calculated."""
    rechecks: bool = False
    """Whether the teacher thinks too long; otherwise it goes through each calculation once."""

    @property
    def reads(self) -> bool:
        return not self.levels

    @model_validator(mode="after")
    def _nothing_to_check(self) -> VisionLesson:
        if self.reads and self.rechecks:
            raise ValueError("rechecks has no effect without levels: a reading is not checked")
        return self


class TinyVisionModel(BundledModel):
    """The bundled vision-language model."""

    pipeline: Literal["tiny-vision-model"] = "tiny-vision-model"
    preset: str = "tiny"
    output: str = "models/tiny_vision"
    """Folder that the weights and the model card are copied to."""
    teacher: Teacher = Teacher(max_rechecks=5)
    warm_start: WarmStart = WarmStart()
    lessons: tuple[VisionLesson, ...] = (
        VisionLesson(boards=9_600),
        VisionLesson(boards=9_600, levels=(1, 2)),
        VisionLesson(boards=14_000, levels=(1, 2, 3, 4)),
        VisionLesson(boards=20_000, levels=LEVELS),
        VisionLesson(boards=26_000, levels=LEVELS, rechecks=True),
    )
    """Parts of the corpus, trained on in order. Within a part, boards with completions of similar length are batched
    together."""
    card: Benchmark = Benchmark(problems=Boards(count=420), sampling=Sampling(samples=8))
    """Evaluation on held-out boards, for the model card."""
