"""Settings of the pipelines that train the bundled models: what they share, and the language model's own."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from conf.base import Positive, PositiveFloat, Settings, Share
from conf.dto import DtoProbing
from conf.engine import Engine, Storage
from conf.problems import Benchmark, Stories
from conf.retries import Retries
from conf.sampling import Sampling
from conf.segmentation import Segmentation


class Teacher(Settings):
    """Scripted teacher that overthinks arithmetic stories; see `reasoning.stories.OverThinker`. Values are
    probabilities."""

    RENAMED: ClassVar[dict[str, str]] = {"most_rechecks": "max_rechecks"}

    slip_first: Share = 0.50
    """Mistake at a risky step in the first pass."""
    slip_again: Share = 0.36
    """Mistake at a risky step in a re-check."""
    doubt_right: Share = 0.06
    """Question mark after a correct risky step."""
    doubt_slip: Share = 0.82
    """Question mark after a mistake. If a pass contains a question mark, its conclusion ends in one too."""
    go_on_sure: Share = 0.84
    """Another re-check after a pass without a question mark."""
    go_on_doubtful: Share = 0.95
    """Another re-check after a pass with a question mark."""
    muse: Share = 0.20
    """Idle remark between two steps of the first pass."""
    close_plainly: Share = 0.12
    """Ending that does not name the value. Probing uses this form."""
    max_rechecks: Positive = 6
    """Maximum number of re-checks per trace. A count, not a probability."""


class Lesson(Settings):
    """One part of the training corpus."""

    stories: Positive
    """Number of stories."""
    levels: tuple[Annotated[int, Field(ge=1, le=8)], ...]
    """Levels of the stories, taken in turn."""


class Pretraining(Settings):
    """Trains the tiny model from scratch, by SFT on the teacher's traces."""

    RENAMED: ClassVar[dict[str, str]] = {"batch": "global_batch_size", "warmup": "warmup_ratio"}

    learning_rate: PositiveFloat = 2.5e-3
    """Peak learning rate."""
    global_batch_size: Positive = 16
    """Rows per optimizer step."""
    warmup_ratio: Share = 0.035
    """Fraction of steps with linear warmup."""
    adam_beta2: Share = 0.98
    """Adam's β₂."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay."""


class BundledModel(Settings):
    """What the pipelines of the bundled models share: write the corpus, train from scratch, measure the figures of the
    model card."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "pipeline": "there is one pipeline per settings class",
        "preset": "a name; its content is in the other fields",
        "engine": "speed and memory; its dtype is in the fingerprint of a checkpoint that is sampled",
        "storage": "where results live",
        "retries": "what happens after a failure",
        "output": "where the finished model is copied to",
    }

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the corpus, the initial weights and sampling."""
    teacher: Teacher = Teacher()
    training: Pretraining = Pretraining()
    card: Benchmark
    """Evaluation on held-out problems, for the model card."""
    probed: Positive = 4
    """Samples per problem that are also probed, prefix by prefix up to their crossing."""
    segmentation: Segmentation = Segmentation()
    probing: DtoProbing = DtoProbing()
    engine: Engine = Engine()
    storage: Storage = Storage()
    retries: Retries = Retries()

    @model_validator(mode="after")
    def _no_remote_servers(self) -> Self:
        if self.engine.endpoints:
            raise ValueError("engine.endpoints has no effect here: no other server has the model that is being trained")
        return self


class TinyModel(BundledModel):
    """The bundled language model."""

    pipeline: Literal["tiny-model"] = "tiny-model"
    preset: str = "tiny"
    output: str = "models/tiny"
    """Folder that the weights and the model card are copied to."""
    lessons: tuple[Lesson, ...] = (
        Lesson(stories=9_000, levels=(1, 2, 3)),
        Lesson(stories=11_000, levels=(1, 2, 3, 4, 5)),
        Lesson(stories=70_000, levels=(1, 2, 3, 4, 5, 6, 7, 8)),
    )
    """Parts of the corpus, trained on in order. Within a part, stories of similar length are batched together."""
    card: Benchmark = Benchmark(
        problems=Stories(count=500, levels=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)), sampling=Sampling(samples=16)
    )
    """Evaluation on held-out stories, for the model card."""
