"""Settings of difficulty-aware CoT distillation (arXiv 2509.05226)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from conf.base import NOT_IN_ANY_CACHE_KEY, Positive, Settings, Share, type_or
from conf.engine import Engine, Storage, validate_fits_context, validate_training_length
from conf.evaluation import Evaluated
from conf.llm import Llm, LlmRole, validate_llm_is_used
from conf.probing import Finalizing, Probing
from conf.problems import Decontamination, NgramOverlap, Problems, Stories, has_images
from conf.prompts import Prompted, Tags, Thinking, validate_exit_text
from conf.retries import Retries
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from conf.training import Dpo, Sft

LEVELS = 10
"""Number of difficulty levels."""
PAPER_RATIOS = (79.1, 84.5, 87.0, 88.0, 88.8, 89.4, 90.5, 90.6, 90.4, 88.8)
"""Compression ratios of text traces in the paper, in percent, by level (its Table 1)."""
PAPER_IMAGE_RATIOS = (49.9, 47.6, 43.6, 40.6, 35.1, 29.7, 16.9)
"""The same of traces about images, which reach level 7."""


class LocalTeacher(Settings):
    """A model on the run's own engine writes the traces."""

    type: Literal["local"] = "local"
    model: str = ""
    """The teacher, given like the student's `model`. Empty: the student itself."""


class TeacherLlm(Llm):
    """The teacher's endpoint."""

    SECTION_NAME: ClassVar[str] = "teacher.llm"


class EndpointTeacher(Settings):
    """A model behind an OpenAI-compatible endpoint writes the traces; they are tokenized with the student's
    tokenizer."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["endpoint"] = "endpoint"
    llm: TeacherLlm
    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    """System message. Not from the paper."""
    max_invalid_fraction: Share = 0.1
    """Maximum fraction of traces that fail or have no thinking. They are skipped; above this fraction the run ends."""


class DatasetTeacher(Settings):
    """The traces are those of the data set that the problems come from, as in the paper. Rows are matched by the
    problem's text. Traces are checked against the problem's answer and tokenized with the student's tokenizer."""

    type: Literal["dataset"] = "dataset"
    column: str = "generated_solution"
    """Column of the trace: text, a list of texts, or a list of messages, whose last assistant message is used. Dots
    reach into objects and lists. Default: as in OpenMathReasoning."""
    reply_column: str = ""
    """Column of the reply, for data sets whose `column` holds the thinking alone. Empty: `column` holds both."""
    thinking: Thinking = Tags()
    """How the data set marks the thinking. The traces are rewritten with the student's own tags (`prompt.thinking`).
    With `answer_open`, what stands before the opening tag is left out, and the text between the answer's tags is the
    answer alone: it is put into \\boxed{} if it is not."""
    max_tokens: Positive = 8192
    """Maximum length of a trace in tokens; longer ones are dropped. Not from the paper."""
    max_invalid_fraction: Share = 0.1
    """Maximum fraction of the traces that cannot be read, or have no closed thinking. They are skipped; above this
    fraction the run ends."""


Teacher = Annotated[
    Annotated[LocalTeacher, Tag("local")]
    | Annotated[EndpointTeacher, Tag("endpoint")]
    | Annotated[DatasetTeacher, Tag("dataset")],
    type_or("local"),
]


class TraceSelection(Settings):
    """Which of a problem's correct traces are distilled."""

    RENAMED: ClassVar[dict[str, str]] = {"most": "max_traces"}

    order: Literal["as-drawn", "shortest", "longest"] = "as-drawn"
    """Order in which correct traces are selected. Not from the paper."""
    max_traces: Positive = 1
    """Maximum number of traces per problem. Not from the paper."""


def validate_max_traces(selection: TraceSelection, sampling: Sampling) -> None:
    """Raises ValueError if more traces are selected than sampled."""
    if selection.max_traces > sampling.samples:
        raise ValueError(
            f"selection.max_traces ({selection.max_traces}) is more than sampling.samples ({sampling.samples}); lower "
            f"the first or raise the second"
        )


class EmbeddedRater(Settings):
    """Rates problems with the model's own samples: by the tokens that a trace needs until its prefixes answer
    correctly, divided by the fraction of correct traces. Levels are deciles. A level given by the data set is not
    used."""

    type: Literal["embedded"] = "embedded"


class LlmRater(LlmRole):
    """An auxiliary model rates each problem on the AoPS difficulty scale, as in the paper."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["llm"] = "llm"
    max_invalid_fraction: Share = 0.05
    """Maximum fraction of problems without a valid rating. They are skipped; above this fraction the run ends."""


class EmbeddedCompressor(Settings):
    """Keeps the segments that raise the estimated value of the prefix most."""

    type: Literal["embedded"] = "embedded"


class LlmCompressor(LlmRole):
    """An auxiliary model rewrites the thinking within the length budget, as in the paper."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["llm"] = "llm"
    max_invalid_fraction: Share = 0.2
    """Maximum fraction of traces without a valid reply. They are skipped; above this fraction the run ends."""
    slack: Annotated[float, Field(ge=1)] = 1.25
    """Factor by which a rewritten trace may exceed its budget, because a model cannot count tokens exactly. Longer ones
    are dropped. Not from the paper."""


Rater = Annotated[Annotated[EmbeddedRater, Tag("embedded")] | Annotated[LlmRater, Tag("llm")], type_or("embedded")]
Compressor = Annotated[
    Annotated[EmbeddedCompressor, Tag("embedded")] | Annotated[LlmCompressor, Tag("llm")], type_or("embedded")
]


class LengthBudget(Settings):
    """How much of a trace's thinking is kept, by difficulty level."""

    unit: Literal["share", "tokens"] = "share"
    """Unit of `by_level`. `share`: fraction of the trace's own thinking. `tokens`: tokens, the same for every trace of
    a level. Not from the paper."""
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
    """Budget per level, level 1 first; must not decrease. Not from the paper, which reports the resulting compression
    ratios (79.1 … 90.6 %) but sets no budget. A higher level never shortens the same trace."""

    def tokens(self, level: int, thinking: int) -> float:
        """Tokens to keep of a trace with `thinking` tokens of thinking."""
        allowed = self.by_level[level - 1]
        return allowed * thinking if self.unit == "share" else allowed

    @model_validator(mode="after")
    def _valid_budget(self) -> Self:
        if list(self.by_level) != sorted(self.by_level):
            raise ValueError(
                "by_level must not fall as the level rises: harder problems keep at least as much of their thinking"
            )
        if self.unit == "share" and self.by_level[-1] > 1:
            raise ValueError(
                f"by_level holds {self.by_level[-1]:g}, more than the whole thinking; for tokens set unit = 'tokens'"
            )
        return self


class Compression(Settings):
    """How traces are compressed."""

    budget: LengthBudget = LengthBudget()
    """Length to compress to."""
    by: Compressor = EmbeddedCompressor()
    """What compresses the traces."""


class Judging(LlmRole):
    """An auxiliary model grades completions of every trained model, blind and in random order (CoT distillation, arXiv
    2509.05226)."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    problems: Positive = 50
    """Number of benchmark problems whose completions are graded. Not from the paper."""
    max_invalid_fraction: Share = 0.2
    """Maximum fraction of completions without a valid grade. They are left out; above this fraction the run ends."""


Variant = Literal["sft", "dpo", "sft-uncompressed", "shuffled-ratings"]


class CotDistillation(Prompted, Evaluated):
    """One run of CoT distillation (arXiv 2509.05226): sample, select, estimate values, rate, compress, SFT, DPO,
    evaluate."""

    RENAMED: ClassVar[dict[str, str]] = {"choosing": "selection"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = NOT_IN_ANY_CACHE_KEY

    pipeline: Literal["cot-distillation"] = "cot-distillation"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed for problem selection and training order; part of the sample-store key."""
    model: str = "tiny"
    """The student: a checkpoint folder, a model on the Hugging Face hub (`owner/name`), or `tiny` for the bundled
    one."""
    teacher: Teacher = LocalTeacher()
    """Model that writes the traces."""
    problems: Problems = Stories()
    """Training problems."""
    decontamination: Decontamination = NgramOverlap()
    """Removal of training problems that a benchmark contains."""
    sampling: Sampling = Sampling()
    """Sampling parameters of the teacher's traces. No effect with a teacher of type `dataset`."""
    selection: TraceSelection = TraceSelection()
    segmentation: Segmentation = Segmentation()
    """How traces are split into segments."""
    probing: Probing = Probing()
    """How the value of a prefix is estimated."""
    rating: Rater = EmbeddedRater()
    """How problems are rated by difficulty."""
    compression: Compression = Compression()
    finalizing: Finalizing = Finalizing()
    """How compressed thinking is completed to an answer."""
    sft: Sft = Sft()
    dpo: Dpo = Dpo()
    """Starts from the SFT checkpoint. Chosen: the compressed trace; rejected: the original trace."""
    variants: tuple[Variant, ...] = ("sft", "dpo")
    """Models to evaluate beside the method. `sft`: SFT only. `dpo`: DPO only. `sft-uncompressed`: SFT on the same
    traces without compression. `shuffled-ratings`: the method with ratings permuted among the problems."""
    benchmarks: Annotated[dict[str, Problems], Field(min_length=1)] = Field(
        default_factory=lambda: {"stories": Stories(count=480)}
    )
    """Benchmarks by name, as shown in reports. The first is the main one."""
    benchmark_sampling: Sampling = Sampling()
    """Sampling parameters of the evaluation."""
    swapped_images: bool = False
    """Also evaluates on the main benchmark's problems with each other's images: a model that looks at them is then
    right by chance alone. Not from the paper."""
    judging: Judging | None = None
    """Grading by an LLM judge. Omit to disable judging."""
    llm: Llm | None = None
    """Auxiliary model for judging and for roles of type `llm`."""
    engine: Engine = Engine()
    storage: Storage = Storage()
    retries: Retries = Retries()

    @property
    def eval_sets(self) -> Mapping[str, Problems]:
        return self.benchmarks

    @property
    def eval_sampling(self) -> Sampling:
        return self.benchmark_sampling

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
    def _valid_selection(self) -> Self:
        if self.teacher.type != "dataset":
            validate_max_traces(self.selection, self.sampling)
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants names one twice: {', '.join(self.variants)}; name it once")
        return self

    @property
    def needs_prefix_values(self) -> bool:
        """Whether rating or compression needs prefix values."""
        return "embedded" in (self.rating.type, self.compression.by.type)

    @model_validator(mode="after")
    def _no_unused_settings(self) -> Self:
        if not self.needs_prefix_values and (self.probing != Probing() or self.segmentation != Segmentation()):
            raise ValueError(
                "probing and segmentation have no effect: no role is of type 'embedded'; leave them out, or undo a "
                "preset's with probing={} and segmentation={}"
            )
        if self.rating.type == "llm" and self.probing.threshold != Probing().threshold:
            raise ValueError("probing.threshold has no effect: only the embedded rater reads it; leave it out")
        teacher = self.teacher
        if teacher.type == "dataset":
            if self.sampling != Sampling():
                raise ValueError(
                    "sampling has no effect: the traces come from the data set; leave it out, or undo a preset's with "
                    "sampling={}. teacher.max_tokens limits their length"
                )
            if self.problems.type in ("stories", "boards"):
                raise ValueError(
                    "a teacher of type 'dataset' needs problems of a data set that has traces; set problems.type to "
                    "'file' or 'hub'"
                )
        if teacher.type == "endpoint" and teacher.llm.temperature != Llm.model_fields["temperature"].default:
            raise ValueError("teacher.llm.temperature has no effect: traces are drawn as in sampling; set it there")
        if teacher.type == "endpoint" and has_images(self.problems) and not teacher.llm.images:
            raise ValueError(
                "the problems have images, and the teacher would not see them; set teacher.llm.images if its endpoint "
                "takes images, or use another teacher"
            )
        if self.swapped_images and not has_images(next(iter(self.benchmarks.values()))):
            raise ValueError("swapped_images has no effect: the main benchmark's problems have no images")
        if teacher.type == "local" and teacher.model and self.engine.endpoints:
            raise ValueError(
                "engine.endpoints serve one model, and the teacher is another; leave them out, or use a teacher of "
                "type 'endpoint'"
            )
        return self

    @property
    def max_trace_tokens(self) -> int:
        """Maximum length of the teacher's traces in tokens."""
        return self.teacher.max_tokens if self.teacher.type == "dataset" else self.sampling.max_tokens

    @property
    def max_prompt_tokens(self) -> int:
        """Maximum length of a problem's prompt in tokens, so that sampling, finalizing and evaluation fit the
        context."""
        finalized = self.max_trace_tokens + self.finalizing.max_ending_tokens
        return self.engine.max_model_len - max(finalized, self.benchmark_sampling.max_tokens)

    @model_validator(mode="after")
    def _fits_context(self) -> Self:
        trace = self.max_trace_tokens
        if self.teacher.type != "dataset":
            validate_fits_context("sampling", self.sampling, self.engine)
        validate_fits_context("benchmark_sampling", self.benchmark_sampling, self.engine)
        if self.needs_prefix_values:
            validate_fits_context("probing.sampling", self.probing.sampling, self.engine, trace)
            validate_exit_text("probing.exit_text", self.probing.exit_text, self.prompt.thinking)
        validate_fits_context("finalizing.sampling", self.finalizing.sampling, self.engine, trace)
        limit = "teacher.max_tokens" if self.teacher.type == "dataset" else "sampling.max_tokens"
        validate_training_length("sft", self.sft, trace, limit)
        validate_training_length("dpo", self.dpo, trace, limit)
        return self
