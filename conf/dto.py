"""Settings of DTO (arXiv 2505.21765)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from conf.base import NOT_IN_ANY_CACHE_KEY, PositiveFloat, Settings, Share, type_or
from conf.engine import Engine, Storage, validate_fits_context, validate_training_length
from conf.evaluation import Evaluated
from conf.llm import Llm, LlmRole, validate_llm_is_used
from conf.probing import Finalizing, ForwardScan, Probing, Search
from conf.problems import UNSEEN, Benchmark, Decontamination, NgramOverlap, Problems, Stories, validate_text_alone
from conf.prompts import Prompted, validate_exit_text
from conf.retries import Retries
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from conf.training import Sft, SimPO, Training


class DtoProbing(Probing):
    """How prefixes are probed, and in which order."""

    search: Search = ForwardScan()
    """How the crossing is searched: the prefix at which a trace is cut."""


class DtoFinalizing(Finalizing):
    """How shortened traces are completed, and whether premature stops are sampled."""

    premature_stop: bool = True
    """Also completes each cut trace too early, at the last prefix that did not pass. A wrong answer there becomes the
    rejected side of an additional pair, which teaches when not to stop. Not from the paper."""


class NoPruning(Settings):
    """Disables pruning."""

    type: Literal["none"] = "none"


class CheckedPruning(Settings):
    """Removes inner segments without which the answer is still reached (DTO, arXiv 2505.21765). Each removal is
    verified by probes."""

    RENAMED: ClassVar[dict[str, str]] = {"most_surprise": "max_logprob_drop"}

    max_logprob_drop: PositiveFloat = 3.0
    """Maximum drop in log-probability, in nats, of any kept token when a segment is removed; above it, the segment is
    restored. Not from the paper."""


class EmbeddedPruning(CheckedPruning):
    """Tries to remove every inner segment."""

    type: Literal["embedded"] = "embedded"


class LlmPruning(CheckedPruning, LlmRole):
    """Tries to remove the segments that an auxiliary model proposes, as in the paper."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["llm"] = "llm"
    max_invalid_fraction: Share = 0.2
    """Maximum fraction of traces without a valid reply. Those traces stay unpruned; above this fraction the run
    ends."""


Pruning = Annotated[
    Annotated[NoPruning, Tag("none")] | Annotated[EmbeddedPruning, Tag("embedded")] | Annotated[LlmPruning, Tag("llm")],
    type_or("embedded"),
]


class Pairing(Settings):
    """How preference pairs are built."""

    rejected: Literal["original", "longest"] = "original"
    """Rejected side of a pair. `original`: the trace that was shortened. `longest`: the problem's longest trace. Not
    from the paper."""


class Controls(Settings):
    """Controls to compare the method with, evaluated on the same problems in the same run."""

    trained: tuple[Literal["shortest-longest", "sft", "paper-pairs", "unpruned", "probe-pruned"], ...] = ()
    """Alternative trainings of the base model. `shortest-longest`: SimPO on each problem's shortest right trace against
    its longest. `sft`: SFT on the optimised traces. `paper-pairs`: SimPO without premature-stop pairs. `unpruned`:
    SimPO without pruning. `probe-pruned`: SimPO with pruning checked by probes only, without `max_logprob_drop`."""
    sft_learning_rate: PositiveFloat = 1e-5
    """Learning rate of the control `sft`; its other settings are those of `training`. Not from the paper."""
    early_stop: bool = False
    """Evaluates the untrained base with early stopping: a trace stops at the first prefix where more than
    `probing.threshold` of the probes agree. Stopping does not use ground truth. Probe tokens count as generated
    tokens."""
    fast_prompt: str = ""
    """Evaluates the untrained base with this instruction to be brief after each problem. Empty: not evaluated."""

    @model_validator(mode="after")
    def _effective(self) -> Controls:
        if len(set(self.trained)) < len(self.trained):
            raise ValueError(f"trained names a control twice: {', '.join(self.trained)}; name it once")
        default = type(self).model_fields["sft_learning_rate"].default
        if self.sft_learning_rate != default and "sft" not in self.trained:
            raise ValueError(
                "sft_learning_rate has no effect without 'sft' in controls.trained; add it or leave this out"
            )
        return self

    def sft(self, training: SimPO) -> Sft:
        """Training settings of the control `sft`: those of `training` with SFT's objective and its own learning
        rate."""
        shared = {name: getattr(training, name) for name in Training.model_fields if name != "learning_rate"}
        return Sft(learning_rate=self.sft_learning_rate, **shared)


class Dto(Prompted, Evaluated):
    """One run of DTO (arXiv 2505.21765): sample, segment, probe, cut, finalize, pair, train, evaluate."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = NOT_IN_ANY_CACHE_KEY | {
        "reestimated": "what is reported about the crossings; nothing is trained on it"
    }

    pipeline: Literal["dto"] = "dto"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed for problem selection and training order; part of the sample-store key."""
    model: str = "tiny"
    """A checkpoint folder, a model on the Hugging Face hub (`owner/name`), or `tiny` for the bundled one."""
    problems: Problems = Stories()
    """Training problems."""
    decontamination: Decontamination = NgramOverlap()
    """Removal of training problems that a benchmark contains."""
    sampling: Sampling = Sampling()
    """Sampling parameters of the traces to shorten."""
    segmentation: Segmentation = Segmentation()
    probing: DtoProbing = DtoProbing()
    reestimated: Share = 1.0
    """Fraction of the crossings whose p is estimated again on fresh samples, to report how many are false. The method
    does not use it. Not from the paper."""
    finalizing: DtoFinalizing = DtoFinalizing()
    pruning: Pruning = EmbeddedPruning()
    """How segments to remove are proposed. Probes verify each removal."""
    llm: Llm | None = None
    """Auxiliary model that proposes removals if `pruning.type` is `llm`."""
    pairing: Pairing = Pairing()
    training: SimPO = SimPO()
    controls: Controls = Controls()
    benchmark: Benchmark = Benchmark()
    engine: Engine = Engine()
    storage: Storage = Storage()
    retries: Retries = Retries()

    @property
    def eval_sets(self) -> Mapping[str, Problems]:
        benchmark = self.benchmark
        unseen = {UNSEEN: benchmark.unseen} if benchmark.unseen else {}
        return {benchmark.name: benchmark.problems, **unseen, **benchmark.others}

    @property
    def eval_sampling(self) -> Sampling:
        return self.benchmark.sampling

    @model_validator(mode="after")
    def _llm_is_needed(self) -> Dto:
        validate_text_alone(self.problems, *self.eval_sets.values())
        validate_llm_is_used(self.llm, ["pruning"] if self.pruning.type == "llm" else [])
        return self

    @model_validator(mode="after")
    def _controls_differ(self) -> Dto:
        same = {
            "unpruned": self.pruning.type == "none" and "pruning.type is none",
            "paper-pairs": not self.finalizing.premature_stop and "finalizing.premature_stop is false",
        }
        for name, reason in same.items():
            if reason and name in self.controls.trained:
                raise ValueError(f"controls.trained: {name!r} would be the method itself, since {reason}; leave it out")
        return self

    @property
    def max_prompt_tokens(self) -> int:
        """Maximum length of a problem's prompt in tokens, so that sampling, finalizing and evaluation fit the
        context."""
        brief = self.controls.fast_prompt
        evaluated = self.benchmark.sampling.max_tokens
        return self.engine.max_model_len - max(
            self.sampling.max_tokens + self.finalizing.max_ending_tokens,
            evaluated + self.finalizing.max_ending_tokens * self.controls.early_stop,
            evaluated + len(f" {brief}".encode()),
        )

    @model_validator(mode="after")
    def _fits_context(self) -> Dto:
        for name, section in (
            ("sampling", self.sampling),
            ("probing.sampling", self.probing.sampling),
            ("finalizing.sampling", self.finalizing.sampling),
            ("benchmark.sampling", self.benchmark.sampling),
        ):
            # Probes and completions continue a prefix that may be almost as long as the trace.
            longest = max(self.sampling.max_tokens, self.benchmark.sampling.max_tokens * self.controls.early_stop)
            trace = longest if name in ("probing.sampling", "finalizing.sampling") else 0
            validate_fits_context(name, section, self.engine, trace)
        validate_exit_text("probing.exit_text", self.probing.exit_text, self.prompt.thinking)
        validate_training_length("training", self.training, self.sampling.max_tokens)
        return self
