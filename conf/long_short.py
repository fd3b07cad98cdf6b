"""Settings of Long⊗Short (arXiv 2505.11827)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from conf.base import NOT_IN_ANY_CACHE_KEY, Positive, PositiveFloat, Settings, Share, type_or
from conf.cot_distillation import TraceSelection, validate_max_traces
from conf.engine import MIN_PROMPT_TOKENS, Engine, Storage, validate_fits_context
from conf.evaluation import Evaluated
from conf.llm import Llm, LlmRole, validate_llm_is_used
from conf.probing import Finalizing, Probing
from conf.problems import Decontamination, NgramOverlap, Problems, Stories, validate_text_alone
from conf.prompts import Prompted, validate_exit_text
from conf.retries import Retries
from conf.sampling import Sampling
from conf.segmentation import Segmentation
from conf.training import Lora, Sft

Who = Literal["long", "short"]
MIN_DIALOGUE_TOKENS = 64
"""Tokens that the context must leave for a problem with its role prompt."""
MAX_TAG_TOKENS = len("<answer></rethink>") + 1
"""Upper bound of the tokens of a turn's tags and its end-of-text token."""


class MarkerChunker(Settings):
    """Splits a trace into thoughts at linguistic markers, like DTO's segments."""

    type: Literal["markers"] = "markers"
    segmentation: Segmentation = Segmentation()


class LlmChunker(LlmRole):
    """An auxiliary model groups the numbered steps of a trace into thoughts, as in the paper."""

    RENAMED: ClassVar[dict[str, str]] = {"most_unusable": "max_invalid_fraction"}

    type: Literal["llm"] = "llm"
    max_invalid_fraction: Share = 0.2
    """Maximum fraction of traces without a valid reply. They are skipped; above this fraction the run ends."""


Chunking = Annotated[Annotated[MarkerChunker, Tag("markers")] | Annotated[LlmChunker, Tag("llm")], type_or("markers")]


class Importance(Settings):
    """The joint metric that scores a thought. The paper does not print its formula."""

    form: Literal["gain", "level"] = "gain"
    """`gain`: scores how much a thought raises the value, since the paper speaks of improvement. `level`: scores the
    value reached, which ranks late redundant thoughts above the productive ones. Not from the paper."""
    length_weight: Annotated[float, Field(ge=0)] = 0.25
    """λ, weight of the thought's fraction of the trace's tokens. Not from the paper."""
    decay: Annotated[float, Field(ge=0)] = 0.25
    """δ, penalty for a thought that does not raise the value. The paper uses 0.25."""


class Protocol(Settings):
    """How the two models alternate in a dialogue."""

    RENAMED: ClassVar[dict[str, str]] = {
        "turn_tokens": "max_turn_tokens",
        "most_rounds": "max_rounds",
        "lead": "forced_answer_prefix",
    }

    long_role: str = (
        "You solve problems together with another model. You are the thinker: think through what the dialogue needs "
        "next, between <think> and </think>."
    )
    """System message of the long-thought model. Not from the paper."""
    short_role: str = (
        "You solve problems together with another model. You are the answerer: after <answer> write what follows from "
        "the thinking so far. End with </rethink> to have the thinker go on, or put the final answer into \\boxed{} "
        "and end with </answer>."
    )
    """System message of the short-thought model. Not from the paper."""
    max_turn_tokens: Positive = 2048
    """Maximum length of a turn in tokens; longer ones are truncated. The authors' code uses 2048."""
    max_rounds: Positive = 4
    """Maximum number of turns of the long-thought model. After that, the short-thought model is forced to answer. Not
    from the paper, which has no limit."""
    forced_answer_prefix: Annotated[str, Field(pattern=r"\\boxed\{$")] = "\nThe answer is \\boxed{"
    """Beginning of a forced answer. Must end in an open `\\boxed{` and be natural for the model. Not from the paper."""

    @property
    def roles(self) -> tuple[str, str]:
        return self.long_role, self.short_role

    @property
    def max_turns(self) -> int:
        """Maximum number of turns of a dialogue."""
        return 2 * self.max_rounds + 1

    @property
    def max_dialogue_tokens(self) -> int:
        """Upper bound of a dialogue's length in tokens. A token of the forced prefix is at least one byte."""
        return self.max_turns * (self.max_turn_tokens + MAX_TAG_TOKENS) + len(self.forced_answer_prefix.encode())


class CollapseLimits(Settings):
    """Limits outside of which training counts as collapsed and stops. The best checkpoint is kept."""

    RENAMED: ClassVar[dict[str, str]] = {
        "fewest_tokens": "min_tokens",
        "most_tokens": "max_tokens",
        "least_reward": "min_quality_reward",
    }

    min_tokens: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Minimum mean dialogue length, relative to the round's first step. Not from the paper."""
    max_tokens: Annotated[float, Field(gt=1)] = 2.0
    """Maximum mean dialogue length, relative to the round's first step. Not from the paper."""
    min_quality_reward: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Minimum mean reward without the length reward, relative to the round's first step. Not from the paper."""


class Grpo(Settings):
    """Multi-turn GRPO (Long⊗Short, arXiv 2505.11827): one model trains against the frozen other one, then they swap."""

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
        "save_steps": "how much work a killed run repeats",
        "rounds": "each round is a step with its own key",
        "collapse_limits": "they stop a round and change none that continues",
    }

    rounds: tuple[Who, ...] = ("long", "short")
    """Model to train in each round. Not from the paper."""
    max_steps: Positive = 100
    """Optimizer steps per round. Not from the paper."""
    problems_per_step: Positive = 16
    """Problems per optimizer step. Not from the paper."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Dialogues per problem: the group whose rewards GRPO compares (TRL's `num_generations`). The authors' code uses
    2."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Sampling temperature of the training dialogues. Not from the paper."""
    learning_rate: PositiveFloat = 5e-6
    """Peak learning rate, with cosine decay. The authors' code uses 5e-6. The tiny model needs far more."""
    warmup_ratio: Share = 0.05
    """Fraction of steps with linear warmup. The first step has learning rate 0 if this is not 0. Not from the paper."""
    beta: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the KL divergence from the model that the round starts with. Not from the paper."""
    correctness_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the reward for a correct answer. The paper uses 1."""
    format_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the reward for following the protocol. The paper uses 1."""
    length_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the reward for being shorter than the other dialogues of the same problem. The paper uses 1."""
    per_device_train_batch_size: Positive = 16
    """Dialogues per gradient-accumulation step; a forward pass takes at most eight. Halved automatically when memory
    runs out."""
    save_steps: Positive = 1
    """Steps between checkpoints."""
    bf16: bool = True
    """On a GPU: computes in bfloat16, as in `sft`. Not from the paper."""
    lora: Lora | None = None
    """LoRA settings. Omit to train all weights, as in the paper."""
    collapse_limits: CollapseLimits = CollapseLimits()
    """When to stop a collapsed training."""

    @property
    def batch(self) -> int:
        """Dialogues per optimizer step."""
        return self.problems_per_step * self.num_generations

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.batch % self.per_device_train_batch_size:
            raise ValueError(
                f"problems_per_step × num_generations ({self.batch}) must be a multiple of "
                f"per_device_train_batch_size ({self.per_device_train_batch_size}); change one"
            )
        if not self.correctness_weight + self.format_weight + self.length_weight:
            raise ValueError("all reward weights are 0; set correctness_weight, format_weight or length_weight")
        return self


class RolloutSampling(Sampling):
    """Sampling parameters of rollouts."""

    samples: Positive = 5
    """Rollouts per prefix. The paper uses 5."""


class EvalSampling(Sampling):
    """Sampling parameters of the evaluation."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.3
    """Sampling temperature. The authors' code uses 0.3."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: cumulative probability to sample from. Not from the paper."""


class TurnSft(Sft):
    """Supervised fine-tuning on single turns, each conditioned on the dialogue before it."""

    max_length: Positive = 20480
    """Maximum prompt + completion length in tokens; must hold the longest dialogue."""


class TwoEngines(Engine):
    """Two vLLM servers that share one GPU, with the trainer too during RL."""

    max_model_len: Positive = 20480
    """Maximum length of prompt + completion in tokens; must hold the longest dialogue with its prompt."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Fraction of GPU memory for both servers together; the trainer needs the rest. No effect on a CPU."""
    servers_per_gpu: Annotated[int, Field(ge=2)] = 2
    """Number of servers that run at the same time. They share GPU memory, or CPU cores, equally."""


class EarlyStop(Settings):
    """Control without training: a trace of the base stops at the first prefix where more than `probing.threshold` of
    the probes agree. Stopping does not use ground truth. Probe tokens count as generated tokens."""

    segmentation: Segmentation = Segmentation()
    probing: Probing = Probing()
    finalizing: Finalizing = Finalizing()


class LongShort(Prompted, Evaluated):
    """One run of Long⊗Short (arXiv 2505.11827): sample, chunk, estimate values, cold start of two models, alternating
    RL, evaluate."""

    RENAMED: ClassVar[dict[str, str]] = {"choosing": "selection"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = NOT_IN_ANY_CACHE_KEY

    pipeline: Literal["long-short"] = "long-short"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed for problem selection and training order; part of the sample-store key."""
    model: str = "tiny"
    """Base of both models: a checkpoint folder, a model on the Hugging Face hub (`owner/name`), or `tiny` for the
    bundled one."""
    teacher: str = ""
    """Model that writes the traces and the rollouts, and that results are compared with. Given like `model`; must think
    between the tags. Empty: the base itself."""
    problems: Problems = Stories()
    """Training problems."""
    decontamination: Decontamination = NgramOverlap()
    """Removal of training problems that a benchmark contains."""
    sampling: Sampling = Sampling()
    """Sampling parameters of the teacher's traces."""
    selection: TraceSelection = TraceSelection()
    chunking: Chunking = MarkerChunker()
    """How a trace is split into thoughts."""
    rollouts: RolloutSampling = RolloutSampling()
    """Sampling parameters of the rollouts that continue each prefix and estimate its value."""
    importance: Importance = Importance()
    """How thoughts are scored."""
    protocol: Protocol = Protocol()
    sft: TurnSft = TurnSft()
    """Cold start of each of the two models."""
    rl: Grpo = Grpo()
    one_model: bool = False
    """Control: trains a single model from the base with the same rewards, for as many steps as all rounds together."""
    early_stop: EarlyStop | None = None
    """Control: early stopping of the base. Omit to skip it."""
    benchmarks: Annotated[dict[str, Problems], Field(min_length=1)] = Field(
        default_factory=lambda: {"stories": Stories(count=480)}
    )
    """Benchmarks by name, as shown in reports. The first is the main one."""
    benchmark_sampling: EvalSampling = EvalSampling()
    """Sampling parameters of the evaluation, for all models. `protocol.max_turn_tokens` limits a turn."""
    llm: Llm | None = None
    """Auxiliary model that splits traces into thoughts if `chunking.type` is `llm`."""
    engine: TwoEngines = TwoEngines()
    storage: Storage = Storage()
    retries: Retries = Retries()

    @property
    def eval_sets(self) -> Mapping[str, Problems]:
        return self.benchmarks

    @property
    def eval_sampling(self) -> Sampling:
        return self.benchmark_sampling

    @model_validator(mode="after")
    def _everyone_has_a_role(self) -> Self:
        validate_text_alone(self.problems, *self.eval_sets.values())
        validate_llm_is_used(self.llm, ["chunking"] if self.chunking.type == "llm" else [])
        validate_max_traces(self.selection, self.sampling)
        if self.teacher and self.engine.endpoints:
            raise ValueError("engine.endpoints serve one model, and the teacher is another; leave one of them out")
        if self.teacher and self.one_model:
            raise ValueError(
                "one_model has no meaning beside a teacher: the base does not think between the tags; leave it out, or "
                "set model to the teacher"
            )
        uses_grpo = bool(self.rl.rounds) or self.one_model
        if isinstance(self.problems, Stories) and self.problems.count < self.rl.problems_per_step and uses_grpo:
            raise ValueError(
                f"problems.count ({self.problems.count}) is less than rl.problems_per_step "
                f"({self.rl.problems_per_step}); raise the "
                f"first or lower the second"
            )
        return self

    @property
    def max_prompt_tokens(self) -> int:
        """Maximum length of a problem's prompt with its role in tokens, so that sampling, evaluation and dialogues fit
        the context."""
        ending = self.early_stop.finalizing.max_ending_tokens if self.early_stop else 0
        evaluated = self.benchmark_sampling.max_tokens + ending
        return self.engine.max_model_len - max(self.sampling.max_tokens, evaluated, self.protocol.max_dialogue_tokens)

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
        trained = self.protocol.max_turns * self.protocol.max_turn_tokens + MIN_PROMPT_TOKENS
        limits = {
            "engine.max_model_len": (
                self.protocol.max_dialogue_tokens + MIN_DIALOGUE_TOKENS,
                self.engine.max_model_len,
            ),
            "sft.max_length": (trained, self.sft.max_length),
        }
        for name, (longest, limit) in limits.items():
            if longest > limit:
                raise ValueError(
                    f"protocol: {self.protocol.max_turns} turns of max_turn_tokens ({self.protocol.max_turn_tokens}), "
                    f"with tags and prompt {longest} tokens, are more than {name} ({limit}); lower max_turn_tokens or "
                    f"max_rounds, or raise the last"
                )
        return self
