"""Sources of problems, and decontamination."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from conf.base import Positive, Settings, Share, type_or
from conf.datasets import DATASETS, Columns
from conf.sampling import Sampling

MAX_IMAGES = 16
"""Images of one prompt, which a server is started for."""
UNSEEN = "levels that no training has seen"
"""Name of `Benchmark.unseen` in reports."""


class Stories(Settings):
    """Problems from the bundled generator of arithmetic stories."""

    type: Literal["stories"] = "stories"
    count: Positive = 800
    """Number of problems. A larger number keeps the problems of a smaller one. Not from the paper."""
    levels: tuple[Annotated[int, Field(ge=1, le=10)], ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Levels, taken in turn. A level is the number of steps. The tiny model was never trained on levels 9 and 10."""
    options: Annotated[int, Field(ge=0, le=10)] = 0
    """Options of a multiple-choice problem, whose subject is what the story counts; 0: no options. The tiny model was
    never trained on options."""

    @model_validator(mode="after")
    def _options_to_choose_from(self) -> Self:
        if self.options == 1:
            raise ValueError("options = 1 leaves nothing to choose; set 2 or more, or 0")
        return self


class Boards(Settings):
    """Problems with images from the bundled generator: boards of coloured boxes whose quantities are to be read and
    calculated with."""

    type: Literal["boards"] = "boards"
    count: Positive = 800
    """Number of problems. A larger number keeps the problems of a smaller one. Not from the paper."""
    levels: tuple[Annotated[int, Field(ge=1, le=7)], ...] = (1, 2, 3, 4, 5, 6, 7)
    """Levels, taken in turn. A level is the number of steps."""


class Images(Settings):
    """Where the images of a data set's rows are, and their limits. A row with an image beyond them is invalid."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {"folder": "the key holds the state of its files, not its path"}

    folder: Annotated[str, Field(pattern=r"^([^:]|:[^:])*:?$")] = ""
    """Folder or fsspec URL that paths in the rows are relative to. Not needed where the rows hold the images
    themselves."""
    max_count: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 8
    """Maximum number of images of a problem."""
    max_bytes: Annotated[int, Field(ge=1, le=100_000_000)] = 20_000_000
    """Maximum size of an image file in bytes."""
    max_pixels: Annotated[int, Field(ge=28 * 28, le=16_000_000)] = 1280 * 28 * 28
    """Pixels that an image has at most when it reaches a model; a larger one is scaled down, and counted. The default
    is about 1,280 tokens of Qwen2.5-VL."""


def validate_images(images: Images, columns: Columns) -> None:
    """Raises ValueError for settings of images that no column holds."""
    if images != Images() and not columns.images:
        raise ValueError("images has no effect: no column of images is named; set columns.images")


class Drawn(Settings):
    """A source of which all problems are taken, or a random draw."""

    images: Images = Images()
    """Images of the rows. Needs `columns.images`."""

    count: Positive | None = None
    """Number of problems, drawn at random with the run's seed and stratified by subset, subject and level. A larger
    number keeps the problems of a smaller one. Omit to take all, which is the same for every seed."""
    per_subject: Positive | None = None
    """Number of problems of each subject instead of `count`, drawn at random with the run's seed. The DTO paper takes
    100 of each of MMLU-Pro's domains."""

    @property
    def is_drawn(self) -> bool:
        return bool(self.count or self.per_subject)

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.count and self.per_subject:
            raise ValueError("count and per_subject both say how many problems to draw; set only one of them")
        return self


class ProblemFile(Drawn):
    """Problems from local or remote files."""

    RENAMED: ClassVar[dict[str, str]] = {"most_bad": "max_invalid_fraction"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {"path": "the key holds the file's content, not its path"}

    type: Literal["file"] = "file"
    path: str
    """Local path or fsspec URL, or a pattern such as `data/*.jsonl`. Formats: .parquet; .jsonl, .json and .csv, also
    with .gz."""
    columns: Columns = Columns()
    """Names of the columns."""
    max_invalid_fraction: Share = 0.05
    """Maximum fraction of invalid rows. Invalid rows are skipped and counted; above this fraction the file is
    rejected."""

    @model_validator(mode="after")
    def _images_are_used(self) -> Self:
        validate_images(self.images, self.columns)
        return self


class Hub(Drawn):
    """Problems from a data set on the Hugging Face hub."""

    RENAMED: ClassVar[dict[str, str]] = {"most_bad": "max_invalid_fraction"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {"revision": "the key holds the commit that it resolves to"}

    type: Literal["hub"] = "hub"
    name: str
    """Name of the data set, such as `HuggingFaceH4/MATH-500`."""
    subsets: tuple[str, ...] = ()
    """Configurations of the data set. Empty: its only one."""
    split: str = "train"
    """Split of the data set."""
    revision: str = "main"
    """Branch, tag or commit. A branch is resolved when the run starts, and the commit is part of the cache key."""
    columns: Columns = Field(default_factory=lambda known: DATASETS.get(known.get("name", ""), Columns()))
    """Names of the columns. Default: those in `conf.datasets` if the data set is known there; you can override single
    ones."""
    shuffle_buffer: Positive = 50_000
    """Rows that a random draw selects from; extended by as many rows again while they hold fewer than `count` distinct
    problems. Smaller data sets are read whole. Larger ones are streamed up to this number of rows: random row groups of
    Parquet files, 16 files in turn, or the beginning of files in other formats. Not from the paper."""
    max_invalid_fraction: Share = 0.05
    """Maximum fraction of invalid rows. Invalid rows are skipped and counted; above this fraction the data set is
    rejected."""

    @model_validator(mode="before")
    @classmethod
    def _keep_known_columns(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("columns"), dict) and values.get("name") in DATASETS:
            return values | {"columns": DATASETS[values["name"]].model_dump() | values["columns"]}
        return values

    @model_validator(mode="after")
    def _images_are_used(self) -> Self:
        validate_images(self.images, self.columns)
        return self


Problems = Annotated[
    Annotated[Boards, Tag("boards")]
    | Annotated[Stories, Tag("stories")]
    | Annotated[ProblemFile, Tag("file")]
    | Annotated[Hub, Tag("hub")],
    type_or("stories"),
]


def has_images(problems: Problems) -> bool:
    """Whether the problems have images."""
    return isinstance(problems, Boards) or (not isinstance(problems, Stories) and bool(problems.columns.images))


def validate_text_alone(*sources: Problems) -> None:
    """Raises ValueError for problems with images, in a pipeline that does not take them."""
    if any(map(has_images, sources)):
        raise ValueError("problems with images: only cot-distillation takes them; use problems of text alone here")


class NgramOverlap(Settings):
    """Removes training problems that also occur in a benchmark of the run, and duplicates within the training set. Runs
    before any sampling and lists what it removed."""

    RENAMED: ClassVar[dict[str, str]] = {"words": "ngram_size", "share": "min_overlap"}

    type: Literal["ngrams"] = "ngrams"
    ngram_size: Positive = 10
    """Words per n-gram. Numbers, operators and variables count as words; case, spacing, punctuation and notation
    (LaTeX, Unicode, plain text) are ignored. Shorter problems are compared by whole sentences. Not from the paper."""
    min_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Two problems match if they share more than this fraction of the shorter one's n-grams and have the same numbers,
    signs, operators and variables, except in an added clause. Not from the paper."""
    against: tuple[Problems, ...] = ()
    """Additional benchmarks to decontaminate against, which this run does not evaluate."""


class NoDecontamination(Settings):
    """Disables decontamination. The report starts with a warning."""

    type: Literal["off"] = "off"
    reason: Annotated[str, Field(min_length=10)]
    """Why this is acceptable; shown in the report."""


Decontamination = Annotated[
    Annotated[NgramOverlap, Tag("ngrams")] | Annotated[NoDecontamination, Tag("off")], type_or("ngrams")
]


class Benchmark(Settings):
    """Evaluation on problems that no other step reads."""

    name: Annotated[str, Field(min_length=1)] = "the benchmark"
    """Name of the main benchmark, as shown in reports."""
    problems: Problems = Stories(count=480)
    """Problems of the main benchmark."""
    others: dict[str, Problems] = Field(default_factory=dict)
    """Further benchmarks by name, as shown in reports."""
    sampling: Sampling = Sampling()
    """Sampling parameters of the evaluation."""
    unseen: Problems | None = None
    """Problems of levels that are not in the training set, evaluated separately. Omit to skip."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if twice := {self.name, UNSEEN} & self.others.keys():
            raise ValueError(f"others: {', '.join(twice)} is the name of another benchmark of this run; choose another")
        return self
