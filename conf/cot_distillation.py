"""Settings of difficulty-aware CoT distillation (papers, section A).

Knows: names, bounds, where a default comes from. Must not know: what the settings are used for.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from conf.base import Positive, Settings, Share, type_or
from conf.dto import Dto
from conf.engine import Engine, Storage, validate_fits_context, validate_training_length
from conf.llm import Llm, LlmRole, validate_llm_is_used
from conf.probing import Finalizing, Probing
from conf.problems import Decontamination, NgramOverlap, Problems, Stories
from conf.prompts import Prompted, validate_exit_text
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from conf.training import Dpo, Sft

LEVELS = 10
PAPER_RATIOS = (79.1, 84.5, 87.0, 88.0, 88.8, 89.4, 90.5, 90.6, 90.4, 88.8)
"""Percent by which the paper's text traces get shorter, by level (its Table 1)."""


class LocalTeacher(Settings):
    """A model on the run's own engine writes the traces."""

    type: Literal["local"] = "local"
    model: str = ""
    """As the student's. Empty: the student itself."""


class TeacherLlm(Llm):
    """The teacher's own endpoint."""

    STANDS_AT: ClassVar[str] = "teacher.llm"


class EndpointTeacher(Settings):
    """A model behind an OpenAI-compatible endpoint writes the traces; the student's tokenizer reads them."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["endpoint"] = "endpoint"
    llm: TeacherLlm
    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    """The system message. Not from the paper."""
    max_invalid_fraction: Share = 0.1
    """Traces that do not come, or come without thinking, are set aside; above this share the run ends."""


Teacher = Annotated[
    Annotated[LocalTeacher, Tag("local")] | Annotated[EndpointTeacher, Tag("endpoint")], type_or("local")
]


class TraceSelection(Settings):
    """Which of a problem's right traces are distilled."""

    RENAMED: ClassVar[dict[str, str]] = {"most": "max_traces"}

    order: Literal["as-drawn", "shortest", "longest"] = "as-drawn"
    """Who comes first. Not from the paper."""
    max_traces: Positive = 1
    """Traces per problem. Not from the paper."""


def validate_max_traces(selection: TraceSelection, sampling: Sampling) -> None:
    """Raises ValueError where more traces are to be chosen than are drawn."""
    if selection.max_traces > sampling.samples:
        raise ValueError(
            f"selection.max_traces ({selection.max_traces}) is more than sampling.samples ({sampling.samples}); lower "
            f"the first or "
            f"raise the second"
        )


class EmbeddedRater(Settings):
    """Tenths of the problems in the order of the tokens that a right answer takes the model: how many a trace needs
    until its prefixes answer right, over the share of right traces. The level that a data set gives is not read."""

    type: Literal["embedded"] = "embedded"


class LlmRater(LlmRole):
    """An auxiliary model rates each problem on the AoPS ladder, as in the paper."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["llm"] = "llm"
    max_invalid_fraction: Share = 0.05
    """Problems without a usable rating are set aside; above this share the run ends."""


class EmbeddedCompressor(Settings):
    """The segments that bring the thinking nearer to the answer, by the values of its prefixes."""

    type: Literal["embedded"] = "embedded"


class LlmCompressor(LlmRole):
    """An auxiliary model rewrites the thinking within the budget, as in the paper."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["llm"] = "llm"
    max_invalid_fraction: Share = 0.2
    """Traces without a usable reply are set aside; above this share the run ends."""
    slack: Annotated[float, Field(ge=1)] = 1.25
    """How many times its budget a rewritten trace may hold, since a model does not count tokens; longer ones are set
    aside. Not from the paper."""


Rater = Annotated[Annotated[EmbeddedRater, Tag("embedded")] | Annotated[LlmRater, Tag("llm")], type_or("embedded")]
Compressor = Annotated[
    Annotated[EmbeddedCompressor, Tag("embedded")] | Annotated[LlmCompressor, Tag("llm")], type_or("embedded")
]


class LengthBudget(Settings):
    """How much of a trace's thinking may stay, by the problem's level (section A.3)."""

    unit: Literal["share", "tokens"] = "share"
    """Of the trace's own thinking, or tokens: as many for every trace of a level. Not from the paper."""
    by_level: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=LEVELS, max_length=LEVELS)] = (
        0.21,
        0.22,
        0.23,
        0.24,
        0.25,
        0.26,
        0.27,
        0.28,
        0.29,
        0.30,
    )
    """Level 1 first. Not from the paper: its ratios by level (79.1 … 90.6 % shorter) were not chosen, and do not rise;
    here the same trace never gets shorter as its level rises."""

    def tokens(self, level: int, thinking: int) -> float:
        """Of a trace with so many tokens of thinking, those that may stay."""
        allowed = self.by_level[level - 1]
        return allowed * thinking if self.unit == "share" else allowed

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if list(self.by_level) != sorted(self.by_level):
            raise ValueError("by_level must not fall as the level rises: harder problems keep more of their thinking")
        if self.unit == "share" and self.by_level[-1] > 1:
            raise ValueError(f"by_level holds {self.by_level[-1]:g}, more than the whole thinking; set unit = 'tokens'")
        return self


class Compression(Settings):
    budget: LengthBudget = LengthBudget()
    by: Compressor = EmbeddedCompressor()


class Judging(LlmRole):
    """An auxiliary model grades completions of every trained model, blind and in shuffled order (section A.5)."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    problems: Positive = 50
    """Benchmark problems whose completions are judged. Not from the paper."""
    max_invalid_fraction: Share = 0.2
    """Completions without a usable grade are left out; above this share the run ends."""


Variant = Literal["sft", "dpo", "sft-uncompressed", "shuffled-ratings"]


class CotDistillation(Prompted):
    """One run: sample, choose, value, rate, compress, SFT, DPO, examine (papers, section A)."""

    RENAMED: ClassVar[dict[str, str]] = {"choosing": "selection"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = Dto.NOT_IN_CACHE_KEY

    pipeline: Literal["cot-distillation"] = "cot-distillation"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds problems, sampling purposes and training order."""
    model: str = "tiny"
    """The student: a checkpoint folder, a model on the Hugging Face hub (`owner/name`), or `tiny`."""
    teacher: Teacher = LocalTeacher()
    """Who writes the traces."""
    problems: Problems = Stories()
    decontamination: Decontamination = NgramOverlap()
    sampling: Sampling = Sampling()
    """Of the teacher's traces."""
    selection: TraceSelection = TraceSelection()
    segmentation: Segmentation = Segmentation()
    probing: Probing = Probing()
    """How the value of a prefix is measured."""
    rating: Rater = EmbeddedRater()
    compression: Compression = Compression()
    finalizing: Finalizing = Finalizing()
    """How kept thinking is brought to its answer."""
    sft: Sft = Sft()
    dpo: Dpo = Dpo()
    """From the SFT checkpoint: chosen is the compressed trace, rejected the trace as it was."""
    variants: tuple[Variant, ...] = ("sft", "dpo")
    """Examined beside the method: SFT alone; DPO alone; the control SFT on the same traces, uncompressed; the method
    with the ratings of the problems exchanged at random."""
    benchmarks: Annotated[dict[str, Problems], Field(min_length=1)] = Field(
        default_factory=lambda: {"stories": Stories(count=480)}
    )
    """By the name that reports use; the first is the main one."""
    benchmark_sampling: Sampling = Sampling()
    judging: Judging | None = None
    """Not given: nobody judges."""
    llm: Llm | None = None
    """Who plays the roles of type `llm`, and the judge."""
    engine: Engine = Engine()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _llm_is_needed(self) -> Self:
        roles = [
            name
            for name, role in (("rating", self.rating), ("compression.by", self.compression.by))
            if role.type == "llm"
        ] + ["judging"] * (self.judging is not None)
        validate_llm_is_used(self.llm, roles)
        return self

    @model_validator(mode="after")
    def _effective(self) -> Self:
        validate_max_traces(self.selection, self.sampling)
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants names one twice: {', '.join(self.variants)}; name it once")
        return self

    @property
    def reads_values(self) -> bool:
        """Whether a role needs to know how good prefixes are."""
        return "embedded" in (self.rating.type, self.compression.by.type)

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        if not self.reads_values and (self.probing != Probing() or self.segmentation != Segmentation()):
            raise ValueError(
                "probing and segmentation have no effect: no role is of type 'embedded'; leave them out, or undo a "
                "preset's with probing={} and segmentation={}"
            )
        if self.rating.type == "llm" and self.probing.threshold != Probing().threshold:
            raise ValueError("probing.threshold has no effect: only the embedded rater reads it; leave it out")
        teacher = self.teacher
        if teacher.type == "endpoint" and teacher.llm.temperature != Llm.model_fields["temperature"].default:
            raise ValueError("teacher.llm.temperature has no effect: traces are drawn as in sampling; set it there")
        if teacher.type == "local" and teacher.model and self.engine.endpoints:
            raise ValueError(
                "engine.endpoints serve one model, and the teacher is another; leave them out, or take a teacher of "
                "type 'endpoint'"
            )
        return self

    @property
    def room_for_prompt(self) -> int:
        """Tokens of the longest problem that can be sampled, brought to its end and examined."""
        curated = self.sampling.max_tokens + self.finalizing.longest
        return self.engine.max_model_len - max(curated, self.benchmark_sampling.max_tokens)

    @model_validator(mode="after")
    def _fits_context(self) -> Self:
        trace = self.sampling.max_tokens
        validate_fits_context("sampling", self.sampling, self.engine)
        validate_fits_context("benchmark_sampling", self.benchmark_sampling, self.engine)
        if self.reads_values:
            validate_fits_context("probing.sampling", self.probing.sampling, self.engine, trace)
            validate_exit_text("probing.exit_text", self.probing.exit_text, self.prompt.thinking)
        validate_fits_context("finalizing.sampling", self.finalizing.sampling, self.engine, trace)
        validate_training_length("sft", self.sft, self.sampling)
        validate_training_length("dpo", self.dpo, self.sampling)
        return self
