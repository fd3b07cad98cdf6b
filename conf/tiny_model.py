"""Settings of the flow that makes the bundled tiny model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from conf.base import Positive, PositiveFloat, Settings, Share
from conf.dto import DtoProbing
from conf.engine import Engine, Storage
from conf.problems import Benchmark, Stories
from conf.sampling import Sampling
from conf.segmentation import Segmentation


class Teacher(Settings):
    """The over-thinking teacher of the story world; see `reasoning.stories.OverThinker`."""

    RENAMED: ClassVar[dict[str, str]] = {"most_rechecks": "max_rechecks"}

    slip_first: Share = 0.50
    """A mistake at a risky step, in the first pass."""
    slip_again: Share = 0.36
    """A mistake at a risky step, in a re-check."""
    doubt_right: Share = 0.06
    """A question mark after a risky step done right."""
    doubt_slip: Share = 0.82
    """A question mark after a mistake. A pass with a question mark ends its conclusion in one, too."""
    go_on_sure: Share = 0.84
    """Another re-check after a pass without a question mark."""
    go_on_doubtful: Share = 0.95
    """Another re-check after a pass with one."""
    muse: Share = 0.20
    """An idle remark between two steps of the first pass."""
    close_plainly: Share = 0.12
    """Ending without naming the value: the form that probing uses."""
    max_rechecks: Positive = 6


class Lesson(Settings):
    """A part of the corpus: how many stories, of which levels."""

    stories: Positive
    levels: tuple[Annotated[int, Field(ge=1, le=8)], ...]


class Pretraining(Settings):
    """Training the tiny model from nothing, by SFT on the teacher's traces."""

    RENAMED: ClassVar[dict[str, str]] = {"batch": "global_batch_size", "warmup": "warmup_ratio"}

    learning_rate: PositiveFloat = 2.5e-3
    global_batch_size: Positive = 16
    warmup_ratio: Share = 0.035
    adam_beta2: Share = 0.98
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class TinyModel(Settings):
    """Making the bundled model: write the corpus, train tokenizer and weights, measure the world into the card."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "pipeline": "there is one pipeline per settings class",
        "preset": "a name; what it stands for is in the other fields",
        "engine": "speed and memory; its dtype is in the fingerprint of a checkpoint that is sampled",
        "storage": "where results live",
        "output": "where the finished model is copied to",
    }

    pipeline: Literal["tiny-model"] = "tiny-model"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    output: str = "models/tiny"
    """Folder for the weights and the card."""
    teacher: Teacher = Teacher()
    lessons: tuple[Lesson, ...] = (
        Lesson(stories=9_000, levels=(1, 2, 3)),
        Lesson(stories=11_000, levels=(1, 2, 3, 4, 5)),
        Lesson(stories=70_000, levels=(1, 2, 3, 4, 5, 6, 7, 8)),
    )
    """Taken in order; within one, stories of like length are trained on together."""
    training: Pretraining = Pretraining()
    card: Benchmark = Benchmark(
        problems=Stories(count=500, levels=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)), sampling=Sampling(samples=16)
    )
    """What the card measures on held-out stories."""
    probed: Positive = 4
    """Of each problem's samples, how many are also probed, prefix by prefix, up to their crossing."""
    segmentation: Segmentation = Segmentation()
    probing: DtoProbing = DtoProbing()
    engine: Engine = Engine()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _serves_itself(self) -> TinyModel:
        if self.engine.endpoints:
            raise ValueError("engine.endpoints has no effect here: nobody else has the model that is being made")
        return self
