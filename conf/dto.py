"""Settings of DTO."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from conf.base import PositiveFloat, Settings, Share, type_or
from conf.engine import Engine, Storage, validate_fits_context, validate_training_length
from conf.llm import Llm, LlmRole, validate_llm_is_used
from conf.probing import Finalizing, ForwardScan, Probing, Search
from conf.problems import Benchmark, Decontamination, NgramOverlap, Problems, Stories
from conf.prompts import Prompted, validate_exit_text
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from conf.training import Sft, SimPO, Training


class DtoProbing(Probing):
    """… and which prefixes are."""

    search: Search = ForwardScan()
    """How the prefix is found at which a trace is cut."""


class DtoFinalizing(Finalizing):
    """… and to ends that came too early."""

    premature_stop: bool = True
    """Also ends each cut trace too early, at the last prefix that did not pass: a wrong answer there makes one more
    pair, which teaches when not to stop. Not from the paper."""


class NoPruning(Settings):
    """Shortened traces stay as they were cut."""

    type: Literal["none"] = "none"


class CheckedPruning(Settings):
    """Inner segments without which the answer is still reached are taken out (section B.6), by `reasoning.pruning`."""

    RENAMED: ClassVar[dict[str, str]] = {"most_surprise": "max_logprob_drop"}

    max_logprob_drop: PositiveFloat = 3.0
    """Nats: where leaving a segment out makes a kept token less likely by more than this, it comes back. Not from the
    paper."""


class EmbeddedPruning(CheckedPruning):
    """Every inner segment is tried."""

    type: Literal["embedded"] = "embedded"


class LlmPruning(CheckedPruning, LlmRole):
    """Those are tried that an auxiliary model proposes, as in the paper."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["llm"] = "llm"
    max_invalid_fraction: Share = 0.2
    """Traces without a usable reply stay as they were cut; above this share the run ends."""


Pruning = Annotated[
    Annotated[NoPruning, Tag("none")] | Annotated[EmbeddedPruning, Tag("embedded")] | Annotated[LlmPruning, Tag("llm")],
    type_or("embedded"),
]


class Pairing(Settings):
    """Which preference pairs are made (section B.7)."""

    rejected: Literal["original", "longest"] = "original"
    """The rejected side: the trace that was shortened, or the longest of the problem's traces. Not from the
    paper."""


class Controls(Settings):
    """What is examined beside the method, in the same run and on the same problems."""

    trained: tuple[Literal["shortest-longest", "sft", "paper-pairs", "unpruned", "probe-pruned"], ...] = ()
    """Other trainings of the same base: SimPO on each problem's shortest right trace against its longest, SFT on the
    optimised traces, SimPO without premature-stop pairs, without pruning, and with pruning by probes alone, however
    unnatural the text becomes."""
    sft_learning_rate: PositiveFloat = 1e-5
    """Of the control `sft`; all else is as in `training`. Not from the paper."""
    early_stop: bool = False
    """No training: each trace of the base stops at the first prefix where more than `probing.threshold` of the probes
    agree with one another. Its probes count as generated tokens."""
    fast_prompt: str = ""
    """No training: an instruction to be brief, put after each problem. Empty: not examined."""

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
        """The control's training: the method's own but for the objective and its rate."""
        shared = {name: getattr(training, name) for name in Training.model_fields if name != "learning_rate"}
        return Sft(learning_rate=self.sft_learning_rate, **shared)


class Dto(Prompted):
    """One run of DTO: sample, segment, probe, cut, finalize, pair, train, examine (papers, section B)."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "pipeline": "there is one pipeline per settings class",
        "preset": "a name; what it stands for is in the other fields",
        "engine": "speed, memory, and which of all possible samples are drawn; its dtype is in a sampled checkpoint's "
        "fingerprint, its context an input where it decides",
        "storage": "where results live",
    }

    pipeline: Literal["dto"] = "dto"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds problems, sampling purposes and training order."""
    model: str = "tiny"
    """A checkpoint folder, a model on the Hugging Face hub (`owner/name`), or `tiny` for the bundled one."""
    problems: Problems = Stories()
    decontamination: Decontamination = NgramOverlap()
    sampling: Sampling = Sampling()
    segmentation: Segmentation = Segmentation()
    probing: DtoProbing = DtoProbing()
    finalizing: DtoFinalizing = DtoFinalizing()
    pruning: Pruning = EmbeddedPruning()
    """Who proposes what to take out; the probes decide."""
    llm: Llm | None = None
    """Who proposes where pruning is of type `llm`."""
    pairing: Pairing = Pairing()
    training: SimPO = SimPO()
    controls: Controls = Controls()
    benchmark: Benchmark = Benchmark()
    engine: Engine = Engine()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _llm_is_needed(self) -> Dto:
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
    def room_for_prompt(self) -> int:
        """Tokens of the longest problem that can be sampled, brought to its end and examined."""
        brief = self.controls.fast_prompt
        examined = self.benchmark.sampling.max_tokens
        return self.engine.max_model_len - max(
            self.sampling.max_tokens + self.finalizing.longest,
            examined + self.finalizing.longest * self.controls.early_stop,
            examined + len(f" {brief}".encode()),
        )

    @model_validator(mode="after")
    def _fits_context(self) -> Dto:
        for name, section in (
            ("sampling", self.sampling),
            ("probing.sampling", self.probing.sampling),
            ("finalizing.sampling", self.finalizing.sampling),
            ("benchmark.sampling", self.benchmark.sampling),
        ):
            # Probes and endings go on from a prefix that may be almost a whole trace.
            longest = max(self.sampling.max_tokens, self.benchmark.sampling.max_tokens * self.controls.early_stop)
            trace = longest if name in ("probing.sampling", "finalizing.sampling") else 0
            validate_fits_context(name, section, self.engine, trace)
        validate_exit_text("probing.exit_text", self.probing.exit_text, self.prompt.thinking)
        validate_training_length("training", self.training, self.sampling)
        return self
