"""Settings of Long⊗Short (arXiv 2505.11827): what can be chosen, its bounds and its defaults.

Knows: names, bounds, where a default comes from. Must not know: what the settings are used for.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from conf.base import Positive, PositiveFloat, Settings, Share, type_or
from conf.cot_distillation import TraceSelection, validate_max_traces
from conf.dto import Dto
from conf.engine import MIN_PROMPT_TOKENS, Engine, Storage, validate_fits_context
from conf.llm import Llm, LlmRole, validate_llm_is_used
from conf.probing import Finalizing, Probing
from conf.problems import Decontamination, NgramOverlap, Problems, Stories
from conf.prompts import Prompted, validate_exit_text
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from conf.training import Lora, Sft

Who = Literal["long", "short"]
MIN_DIALOGUE_TOKENS = 64
"""Tokens of a problem with its role, for which a context must have room at least."""
TAGS = len("<answer></rethink>") + 1
"""Tokens of a turn's tags, at most, and of what ends it."""


class MarkerChunker(Settings):
    """Thoughts begin at linguistic cues, as DTO's segments do."""

    type: Literal["markers"] = "markers"
    segmentation: Segmentation = Segmentation()


class LlmChunker(LlmRole):
    """An auxiliary model groups the numbered steps of a trace into thoughts, as in the paper."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["llm"] = "llm"
    max_invalid_fraction: Share = 0.2
    """Traces without a usable reply are set aside; above this share the run ends."""


Chunking = Annotated[Annotated[MarkerChunker, Tag("markers")] | Annotated[LlmChunker, Tag("llm")], type_or("markers")]


class Importance(Settings):
    """The joint metric of a thought (section C.2), whose formula the paper does not print."""

    form: Literal["gain", "level"] = "gain"
    """What is praised: by how much a thought raises the value, since the paper speaks of improvement, or the value that
    is reached. Not from the paper. By level, late thoughts that repeat what is settled outrank what settled it."""
    length_weight: Annotated[float, Field(ge=0)] = 0.25
    """λ, of the thought's share of the trace's tokens. Not from the paper."""
    decay: Annotated[float, Field(ge=0)] = 0.25
    """δ, for a thought that raises nothing. The paper's value."""


class Protocol(Settings):
    """How the two models talk (section C.4)."""

    RENAMED: ClassVar[dict[str, str]] = {
        "turn_tokens": "max_turn_tokens",
        "most_rounds": "max_rounds",
        "lead": "forced_answer_prefix",
    }

    long_role: str = (
        "You solve problems together with another model. You are the thinker: think through what the dialogue needs "
        "next, between <think> and </think>."
    )
    """The system message of the long-thought model. Not from the paper."""
    short_role: str = (
        "You solve problems together with another model. You are the answerer: after <answer> write what follows from "
        "the thinking so far. End with </rethink> to have the thinker go on, or put the final answer into \\boxed{} "
        "and end with </answer>."
    )
    """That of the short-thought model. Not from the paper."""
    max_turn_tokens: Positive = 2048
    """A turn is cut here. The authors' value."""
    max_rounds: Positive = 4
    """Times that the long-thought model may speak; a short-thought model that asks for more then is made to answer. Not
    from the paper, which has no limit."""
    forced_answer_prefix: Annotated[str, Field(pattern=r"\\boxed\{$")] = "\nThe answer is \\boxed{"
    """How a forced answer begins. Must be natural for the model. Not from the paper."""

    @property
    def roles(self) -> tuple[str, str]:
        return self.long_role, self.short_role

    @property
    def most_turns(self) -> int:
        return 2 * self.max_rounds + 1

    @property
    def longest(self) -> int:
        """Tokens of a dialogue in which every turn runs into its limit, at most: no token of the lead is shorter than a
        byte."""
        return self.most_turns * (self.max_turn_tokens + TAGS) + len(self.forced_answer_prefix.encode())


class CollapseLimits(Settings):
    """Outside of these a training has collapsed, and ends; the best checkpoint stays."""

    RENAMED: ClassVar[dict[str, str]] = {
        "fewest_tokens": "min_tokens",
        "most_tokens": "max_tokens",
        "least_reward": "min_quality_reward",
    }

    min_tokens: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Mean tokens of a step's dialogues, in times of the round's first step. Not from the paper."""
    max_tokens: Annotated[float, Field(gt=1)] = 2.0
    """The same, upwards. Not from the paper."""
    min_quality_reward: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Mean reward of a step, without that for length, in times of the round's first step. Not from the paper."""


class Reinforcement(Settings):
    """Multi-turn GRPO (section C.5): one model trains, the other answers as it is; then they swap."""

    RENAMED: ClassVar[dict[str, str]] = {
        "group": "num_generations",
        "correctness": "correctness_weight",
        "form": "format_weight",
        "length": "length_weight",
        "micro_batch": "per_device_train_batch_size",
        "save_every": "save_steps",
        "warmup": "warmup_ratio",
        "steps": "max_steps",
        "problems": "problems_per_step",
        "bounds": "collapse_limits",
    }

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "per_device_train_batch_size": "splits the same step into smaller pieces; the gradient is the same",
        "save_steps": "how much work a kill may cost",
        "rounds": "each round is a step with a key of its own",
        "collapse_limits": "they end a round, and change none that goes on",
    }

    rounds: tuple[Who, ...] = ("long", "short")
    """Who trains, round by round. Not from the paper."""
    max_steps: Positive = 100
    """Of each round. Not from the paper."""
    problems_per_step: Positive = 16
    """Per step. Not from the paper."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Dialogues of one problem, whose rewards are compared. The authors' value is 2."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Of the dialogues that are trained on. Not from the paper."""
    learning_rate: PositiveFloat = 5e-6
    """With a cosine. The authors' value; far larger on the tiny model."""
    warmup_ratio: Share = 0.05
    """Of the steps; the first then changes nothing, its rate is 0. Not from the paper."""
    beta: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the divergence from the model that a round starts with. Not from the paper."""
    correctness_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the reward for a right answer. The paper's value."""
    format_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the reward for a dialogue that keeps to the protocol. The paper's value."""
    length_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the reward for a dialogue shorter than the others of its problem. The paper's value."""
    per_device_train_batch_size: Positive = 16
    """Dialogues at one time, of which a forward pass takes eight at most; halved by itself when memory runs out."""
    save_steps: Positive = 1
    """Steps between checkpoints."""
    bf16: bool = True
    """As in `sft`. Not from the paper."""
    lora: Lora | None = None
    """Not given: all weights are trained, as in the paper."""
    collapse_limits: CollapseLimits = CollapseLimits()

    @property
    def batch(self) -> int:
        """Dialogues per step."""
        return self.problems_per_step * self.num_generations

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.batch % self.per_device_train_batch_size:
            raise ValueError(
                f"problems_per_step × num_generations ({self.batch}) must be a multiple of "
                f"per_device_train_batch_size ({self.per_device_train_batch_size}); change one"
            )
        if not self.correctness_weight + self.format_weight + self.length_weight:
            raise ValueError("all rewards weigh nothing; give correctness, form or length a weight")
        return self


class RolloutSampling(Sampling):
    """How rollouts are drawn."""

    samples: Positive = 5
    """The paper's value."""


class EvalSampling(Sampling):
    """How examined completions and turns are drawn."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.3
    """The authors' value."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Not from the paper."""


class TurnSft(Sft):
    """Supervised fine-tuning on turns, each after the dialogue so far."""

    max_length: Positive = 20480
    """Holds the longest dialogue."""


class TwoEngines(Engine):
    """Two servers; they, and the trainer while RL trains, share one GPU."""

    max_model_len: Positive = 20480
    """Holds the longest dialogue with its prompt."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.6
    servers_per_gpu: Annotated[int, Field(ge=2)] = 2


class EarlyStop(Settings):
    """A control without training: each trace of the base stops at the first prefix where more than `probing.threshold`
    of the probes agree with one another. Its probes count as generated tokens."""

    segmentation: Segmentation = Segmentation()
    probing: Probing = Probing()
    finalizing: Finalizing = Finalizing()


class LongShort(Prompted):
    """One run: sample, chunk, value thoughts, cold start of two models, alternating RL, examine (papers, section C)."""

    RENAMED: ClassVar[dict[str, str]] = {"choosing": "selection"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = Dto.NOT_IN_CACHE_KEY

    pipeline: Literal["long-short"] = "long-short"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds problems, sampling purposes and training order."""
    model: str = "tiny"
    """Both models' base: a checkpoint folder, a model on the Hugging Face hub (`owner/name`), or `tiny`."""
    teacher: str = ""
    """Whose traces are taken apart, whose rollouts value their thoughts, and with whom all is compared; as `model`, and
    it must think between the tags. Empty: the base itself."""
    problems: Problems = Stories()
    decontamination: Decontamination = NgramOverlap()
    sampling: Sampling = Sampling()
    """Of the teacher's traces."""
    selection: TraceSelection = TraceSelection()
    chunking: Chunking = MarkerChunker()
    """How a trace is cut into thoughts."""
    rollouts: RolloutSampling = RolloutSampling()
    """That go on thinking after each prefix, and tell its value."""
    importance: Importance = Importance()
    protocol: Protocol = Protocol()
    sft: TurnSft = TurnSft()
    """The cold start of each of the two models."""
    rl: Reinforcement = Reinforcement()
    one_model: bool = False
    """A control: the base by itself, reinforced with the same rewards for as many steps as all rounds have."""
    early_stop: EarlyStop | None = None
    """Not given: not examined."""
    benchmarks: Annotated[dict[str, Problems], Field(min_length=1)] = Field(
        default_factory=lambda: {"stories": Stories(count=480)}
    )
    """By the name that reports use; the first is the main one."""
    benchmark_sampling: EvalSampling = EvalSampling()
    """Of every model; a turn's own limit of tokens is in `protocol`."""
    llm: Llm | None = None
    """Who cuts traces into thoughts where chunking is of type `llm`."""
    engine: TwoEngines = TwoEngines()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _everyone_has_a_role(self) -> Self:
        validate_llm_is_used(self.llm, ["chunking"] if self.chunking.type == "llm" else [])
        validate_max_traces(self.selection, self.sampling)
        if self.teacher and self.engine.endpoints:
            raise ValueError("engine.endpoints serve one model, and the teacher is another; leave one of them out")
        if self.teacher and self.one_model:
            raise ValueError(
                "one_model has no meaning beside a teacher: the base does not think between the tags; leave it out, or "
                "take the teacher as model"
            )
        reinforced = bool(self.rl.rounds) or self.one_model
        if isinstance(self.problems, Stories) and self.problems.count < self.rl.problems_per_step and reinforced:
            raise ValueError(
                f"problems.count ({self.problems.count}) is less than rl.problems_per_step "
                f"({self.rl.problems_per_step}), those of one "
                f"step; raise the first or lower the second"
            )
        return self

    @property
    def room_for_prompt(self) -> int:
        """Tokens of the longest problem, with its role, that can be sampled, examined and talked about."""
        ending = self.early_stop.finalizing.longest if self.early_stop else 0
        examined = self.benchmark_sampling.max_tokens + ending
        return self.engine.max_model_len - max(self.sampling.max_tokens, examined, self.protocol.longest)

    @model_validator(mode="after")
    def _fits_context(self) -> Self:
        validate_fits_context("sampling", self.sampling, self.engine)
        validate_fits_context("rollouts", self.rollouts, self.engine, self.sampling.max_tokens)
        validate_fits_context("benchmark_sampling", self.benchmark_sampling, self.engine)
        if self.early_stop:
            exit_text = self.early_stop.probing.exit_text
            validate_exit_text("early_stop.probing.exit_text", exit_text, self.prompt.thinking)
            for name in ("probing", "finalizing"):
                sampling = getattr(self.early_stop, name).sampling
                longest = self.benchmark_sampling.max_tokens
                validate_fits_context(f"early_stop.{name}.sampling", sampling, self.engine, longest)
        learnt = self.protocol.most_turns * self.protocol.max_turn_tokens + MIN_PROMPT_TOKENS
        limits = {
            "engine.max_model_len": (self.protocol.longest + MIN_DIALOGUE_TOKENS, self.engine.max_model_len),
            "sft.max_length": (learnt, self.sft.max_length),
        }
        for name, (longest, limit) in limits.items():
            if longest > limit:
                raise ValueError(
                    f"protocol: {self.protocol.most_turns} turns of max_turn_tokens ({self.protocol.max_turn_tokens}), "
                    f"with tags and prompt {longest} tokens, are more than {name} ({limit}); lower max_turn_tokens or "
                    f"max_rounds, or raise the last"
                )
        return self
