"""Where problems come from, and what is done about overlap with benchmarks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from conf.base import Positive, Settings, Share, type_or
from conf.datasets import DATASETS, Columns
from conf.sampling import Sampling


class Stories(Settings):
    """Problems from the bundled world of arithmetic stories."""

    type: Literal["stories"] = "stories"
    count: Positive = 800
    """How many problems. More problems keep the ones already drawn. Not from the paper."""
    levels: tuple[Annotated[int, Field(ge=1, le=10)], ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Levels (numbers of steps) drawn in turn. Levels 9 and 10 were never seen by the tiny model."""


class ProblemFile(Settings):
    """Problems from files."""

    RENAMED: ClassVar[dict[str, str]] = {"most_bad": "max_invalid_fraction"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {"path": "the file's content is in the key, not its place"}

    type: Literal["file"] = "file"
    path: str
    """A local path or an fsspec URL, also a pattern such as `data/*.jsonl`. Kinds: .parquet; .jsonl, .json and .csv,
    also with .gz."""
    columns: Columns = Columns()
    count: Positive | None = None
    """So many, drawn at random by the run's seed, in the shares that subjects and levels have in the whole. More keep
    the ones already drawn. Not given: all, the same for every seed."""
    max_invalid_fraction: Share = 0.05
    """Bad rows are set aside and counted; above this share of bad rows the file is refused."""


class Hub(Settings):
    """Problems from the Hugging Face hub."""

    RENAMED: ClassVar[dict[str, str]] = {"most_bad": "max_invalid_fraction"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {"revision": "the commit that it names is in the key"}

    type: Literal["hub"] = "hub"
    name: str
    subsets: tuple[str, ...] = ()
    """Configurations of the data set. Empty: its only one."""
    split: str = "train"
    revision: str = "main"
    """A branch, tag or commit. A branch is looked up when the run starts; the commit found is what counts."""
    columns: Columns = Field(default_factory=lambda known: DATASETS.get(known.get("name", ""), Columns()))
    """What is not given is as in `conf.datasets`, where the data set is known there."""
    count: Positive | None = None
    """So many, drawn at random by the run's seed, in the shares that subsets, subjects and levels have in the rows that
    are drawn from. More keep the ones already drawn. Not given: all, the same for every seed."""
    shuffle_buffer: Positive = 50_000
    """A draw is from this many rows, and only where they do not hold `count` different problems from the next so many,
    too. A set of no more rows is drawn from whole. Of a larger one as many rows are read, streamed: of Parquet files
    row groups chosen at random, 16 files in turn; files of other kinds from their beginning. Not from the paper."""
    max_invalid_fraction: Share = 0.05
    """Bad rows are set aside and counted; above this share of bad rows the data set is refused."""

    @model_validator(mode="before")
    @classmethod
    def _keep_known_columns(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("columns"), dict) and values.get("name") in DATASETS:
            return values | {"columns": DATASETS[values["name"]].model_dump() | values["columns"]}
        return values


Problems = Annotated[
    Annotated[Stories, Tag("stories")] | Annotated[ProblemFile, Tag("file")] | Annotated[Hub, Tag("hub")],
    type_or("stories"),
]


class NgramOverlap(Settings):
    """Problems that a benchmark of the run holds, too, are removed and listed before anything is sampled; so are
    problems that stand in the training set twice."""

    RENAMED: ClassVar[dict[str, str]] = {"words": "ngram_size", "share": "min_overlap"}

    type: Literal["ngrams"] = "ngrams"
    ngram_size: Positive = 10
    """Words of a run that are compared; numbers, operators and variables count as words, case, spacing, punctuation
    and spelling (LaTeX, Unicode, plain) do not. Shorter problems are found as whole sentences. Not from the paper."""
    min_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Two problems are the same when more than this share of the shorter one's runs are in the other, and they differ
    in no number, sign, operator or variable but those of an added clause. Not from the paper."""
    against: tuple[Problems, ...] = ()
    """Further benchmarks that are not examined in this run, but some day."""


class NoDecontamination(Settings):
    """Nothing is compared: the report begins with a warning."""

    type: Literal["off"] = "off"
    reason: Annotated[str, Field(min_length=10)]
    """Why that is right; told in the report."""


Decontamination = Annotated[
    Annotated[NgramOverlap, Tag("ngrams")] | Annotated[NoDecontamination, Tag("off")], type_or("ngrams")
]


class Benchmark(Settings):
    """The examination: fresh problems that nothing else has read."""

    problems: Problems = Stories(count=480)
    sampling: Sampling = Sampling()
    unseen: Problems | None = None
    """Problems of levels that no training has seen, examined on their own."""
