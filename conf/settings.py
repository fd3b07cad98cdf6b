"""Settings of every pipeline: what can be chosen, its bounds and its defaults.

Knows: names, types, bounds and where a default comes from. Must not know: what the settings are used
for; nothing of ours or heavy is imported here.

A default that no paper gives says "not from the paper" in its docstring. Every field is part of a cache key
unless its class lists it in `LEFT_OUT` with the reason.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, Tag, model_validator

from conf.auxiliary import Llm, LlmRole, refuse_idle_llm
from conf.datasets import DATASETS, Columns
from conf.prompts import Prompted, refuse_open_exit
from conf.redaction import without_password
from conf.section import Section, type_or

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
SavedUrl = Annotated[str, AfterValidator(without_password)]
PATIENCE, PATIENCE_PER_TOKEN = 900.0, 0.25
"""Seconds that a request may take: for itself, and for each token that it may draw on a server whose seats are all
taken."""
ROOM_FOR_PROMPT = 256
"""Tokens that settings must leave for a prompt with its exit or closing text."""


class Stories(Section):
    """Problems from the bundled world of arithmetic stories."""

    type: Literal["stories"] = "stories"
    count: Positive = 800
    """How many problems. More problems keep the ones already drawn. Not from the paper."""
    levels: tuple[Annotated[int, Field(ge=1, le=10)], ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Levels (numbers of steps) drawn in turn. Levels 9 and 10 were never seen by the tiny model."""


class ProblemFile(Section):
    """Problems from files."""

    LEFT_OUT: ClassVar[dict[str, str]] = {"path": "the file's content is in the key, not its place"}

    type: Literal["file"] = "file"
    path: str
    """A local path or an fsspec URL, also a pattern such as `data/*.jsonl`. Kinds: .parquet; .jsonl, .json and .csv,
    also with .gz."""
    columns: Columns = Columns()
    count: Positive | None = None
    """So many, drawn at random by the run's seed, in the shares that subjects and levels have in the whole. More keep
    the ones already drawn. Not given: all, the same for every seed."""
    most_bad: Share = 0.05
    """Bad rows are set aside and counted; above this share of bad rows the file is refused."""


class Hub(Section):
    """Problems from the Hugging Face hub."""

    LEFT_OUT: ClassVar[dict[str, str]] = {"revision": "the commit that it names is in the key"}

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
    most_bad: Share = 0.05
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


class NgramOverlap(Section):
    """Problems that a benchmark of the run holds, too, are removed and listed before anything is sampled; so are
    problems that stand in the training set twice."""

    type: Literal["ngrams"] = "ngrams"
    words: Positive = 10
    """Words of a run that are compared; numbers, operators and variables count as words, case, spacing, punctuation
    and spelling (LaTeX, Unicode, plain) do not. Shorter problems are found as whole sentences. Not from the paper."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Two problems are the same when more than this share of the shorter one's runs are in the other, and they differ
    in no number, sign, operator or variable but those of an added clause. Not from the paper."""
    against: tuple[Problems, ...] = ()
    """Further benchmarks that are not examined in this run, but some day."""


class NoDecontamination(Section):
    """Nothing is compared: the report begins with a warning."""

    type: Literal["off"] = "off"
    reason: Annotated[str, Field(min_length=10)]
    """Why that is right; told in the report."""


Decontamination = Annotated[
    Annotated[NgramOverlap, Tag("ngrams")] | Annotated[NoDecontamination, Tag("off")], type_or("ngrams")
]


class Sampling(Section):
    """How a completion is drawn."""

    samples: Positive = 4
    """Completions per prompt. The paper draws 4."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.6
    """The paper's value."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """The paper's value."""
    max_tokens: Positive = 768
    """Completions are cut here. The paper's value is 8192; the tiny model's traces are shorter."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only so many of the likeliest tokens; 0: all. Not from the paper."""
    min_p: Share = 0.0
    """Only tokens with at least this share of the likeliest one's probability. Not from the paper."""

    @property
    def request(self) -> dict[str, float]:
        """In vLLM's words; what changes nothing is left out."""
        neutral = {name: getattr(self, name) for name in ("top_k", "min_p") if getattr(self, name)}
        return {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, **neutral}

    @model_validator(mode="after")
    def _worth_repeating(self) -> Sampling:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature 0 always draws the same completion: set samples to 1, not {self.samples}")
        return self


Language = Literal["english", "chinese", "german"]
_RECHECKS = ("check", "double-check", "re-check", "verify", "confirm", "make sure", "test", "validate", "review")
_RESTARTS = (
    "reconsider", "recompute", "recalculate", "rethink", "re-read", "redo", "revisit", "re-examine", "re-evaluate",
    "go back", "start over", "step back", "think again", "try", "see if", "consider another", "cross-check",
    "sanity check",
)  # fmt: skip
MARKERS: dict[Language, tuple[str, ...]] = {
    "english": (
        "Wait", "Alternatively", "Hmm", "Hmmm", "Hold on", "Hang on", "Actually", "However", "Instead", "But let me",
        "Another way", "Another approach", "Another thought", "Another idea", "Another method", "Another possibility",
        "Another option", "Another angle", "Another check", "Another interpretation", "Alternative approach",
        "What if", "Maybe I", "Perhaps I", "On second thought", "Scratch that", "Oops", "That can't be",
        "That doesn't seem right", "That doesn't make sense", "That's not right", "Double-check", "Sanity check",
        "To verify", "To double-check", "To be sure", "Just to be sure", "Just to make sure", "Just to confirm",
        *(f"{who} {deed}" for who in ("Let me", "Let's") for deed in (*_RECHECKS, *_RESTARTS)),
        *(f"{who} {deed}" for who in ("I should", "I need to", "We should", "We need to") for deed in _RECHECKS),
        "So the answer", "So the final answer", "Thus the answer", "Hence the answer", "Final answer", "Therefore",
    ),
    "chinese": (
        "等等", "等一下", "等下", "且慢", "慢着", "不对", "对了", "不过", "但是", "但", "然而", "可是", "嗯", "咦",
        "哦", "或者", "另外", "另一种", "另一个方法", "另一个思路", "换一种", "换个", "其实", "让我再", "让我检查",
        "让我验证", "让我确认", "让我重新", "让我们再", "让我们检查", "让我们验证", "让我们重新", "我再", "我们再",
        "再检查", "再验证", "再确认", "再试", "再算一", "再看一", "再想一", "再仔细", "重新检查", "重新计算",
        "重新审视", "重新考虑", "重新思考", "重新验证", "检查一下", "验证一下", "检验一下", "验算", "仔细想想",
        "反过来", "所以答案", "所以最终答案", "因此",
    ),
    "german": (
        "Moment", "Einen Moment", "Warte", "Halt", "Hm", "Hmm", "Hoppla", "Alternativ", "Andererseits", "Allerdings",
        "Jedoch", "Eigentlich", "Lass mich", "Lass uns", "Ich prüfe", "Ich überprüfe", "Prüfen wir", "Überprüfen wir",
        "Zur Kontrolle", "Zur Probe", "Zur Sicherheit", "Zur Überprüfung", "Noch einmal", "Nochmal", "Ein anderer Weg",
        "Ein anderer Ansatz", "Eine andere Idee", "Eine andere Möglichkeit", "Ein weiterer Gedanke",
        "Also ist die Antwort", "Daher", "Somit",
    ),
}  # fmt: skip
"""Openings of a new thinking pattern. "Wait" and "Alternatively" are the paper's; the others are not from the paper."""


def markers_of(languages: tuple[Language, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(marker for name in languages for marker in MARKERS[name]))


class Markers(Section):
    """Which openings begin a new thinking pattern (papers, section B.1)."""

    LEFT_OUT: ClassVar[dict[str, str]] = {"languages": "the markers that it chooses are in the key"}

    languages: Annotated[tuple[Language, ...], Field(min_length=1)] = ("english",)
    """Whose `MARKERS` are taken. Not from the paper, which knows English only."""
    markers: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default_factory=lambda known: markers_of(known.get("languages", ())), min_length=1
    )
    """A segment starts where a sentence or a line starts with one of these: in any case, behind Markdown, quotes, marks
    of lists and interjections ("No, wait"). Given, they replace those of `languages`; `python -m flows run markers`
    tells which a model really uses."""

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        default = Markers.model_fields["languages"].default
        if self.languages != default and self.markers != markers_of(self.languages):
            raise ValueError("languages has no effect where markers are given; leave one of them out")
        return self


class Segmentation(Markers):
    """Where thinking text is cut into thinking patterns (papers, section B.1)."""

    min_chars: Annotated[int, Field(ge=0)] = 12
    """A shorter segment is joined to the next one: "Hmm. Wait." is no thought yet, and every prefix is probed. Not from
    the paper."""
    max_chars: Annotated[int, Field(ge=100)] = 2000
    """A longer segment is split at paragraphs, else lines, sentences, words: models with few cues of their own would
    think in one piece. Not from the paper."""

    @model_validator(mode="after")
    def _parts_are_no_scraps(self) -> Self:
        if self.min_chars > self.max_chars // 4:
            raise ValueError(
                f"min_chars ({self.min_chars}) is over a quarter of max_chars ({self.max_chars}), and a part of a long "
                f"segment may be as short as that quarter; lower the first or raise the second"
            )
        return self


class ForwardScan(Section):
    """Prefixes are probed from the front until one passes: that one is the earliest."""

    LEFT_OUT: ClassVar[dict[str, str]] = {"lookahead": "the same prefixes pass, with more or fewer probes in vain"}

    type: Literal["forward"] = "forward"
    lookahead: Annotated[int, Field(ge=0)] = 0
    """Prefixes of a trace that are probed before it is known whether the one before them passes: a fuller engine where
    traces are few, at the price of probes in vain. Not from the paper."""


class BinarySearch(Section):
    """Few prefixes are probed, as if every one after a passing one passed, too: cheaper for long traces, and the prefix
    found passes, but need not be the earliest. Not from the paper."""

    type: Literal["binary"] = "binary"
    audited: Share = 0.1
    """Share of the traces that are also scanned from the front; the ledger counts those whose crossing is another."""


Search = Annotated[Annotated[ForwardScan, Tag("forward")] | Annotated[BinarySearch, Tag("binary")], type_or("forward")]


class Probing(Section):
    """How a prefix is tested: it is closed, the answer alone is sampled, and verified (section B.2–B.4)."""

    exit_text: str = "Now the answer is clear.\n</think>\nThe answer is \\boxed{"
    """Closes a prefix so that the completion is the answer alone. Must be natural for the model."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """T: a prefix passes when strictly more than this share of its probes is right. Not from the paper."""
    sampling: Sampling = Sampling(samples=8, max_tokens=12)
    """At most M probes per prefix, no more than decide; M = 8 is not from the paper."""


class DtoProbing(Probing):
    """… and which prefixes are."""

    search: Search = ForwardScan()
    """How the prefix is found at which a trace is cut."""


class Finalizing(Section):
    """How a shortened trace is brought to its end (section B.5)."""

    closing_text: str = "Therefore the answer is"
    """Opens the closing thought; the model goes on from here. Must be natural for the model, or training on it
    pushes the model apart."""
    sampling: Sampling = Sampling(samples=8, max_tokens=48)
    """K endings, the shortest correct one is kept; K = 8 is not from the paper."""

    @property
    def longest(self) -> int:
        """Tokens of an ending, at most: none of the closing text's is shorter than a byte."""
        return len(self.closing_text.encode()) + self.sampling.max_tokens


class DtoFinalizing(Finalizing):
    """… and to ends that came too early."""

    premature_stop: bool = True
    """Also ends each cut trace too early, at the last prefix that did not pass: a wrong answer there makes one more
    pair, which teaches when not to stop. Not from the paper."""


class NoPruning(Section):
    """Shortened traces stay as they were cut."""

    type: Literal["none"] = "none"


class CheckedPruning(Section):
    """Inner segments without which the answer is still reached are taken out (section B.6), by `reasoning.prune`."""

    most_surprise: PositiveFloat = 3.0
    """Nats: where leaving a segment out makes a kept token less likely by more than this, it comes back. Not from the
    paper."""


class EmbeddedPruning(CheckedPruning):
    """Every inner segment is tried."""

    type: Literal["embedded"] = "embedded"


class LlmPruning(CheckedPruning, LlmRole):
    """Those are tried that an auxiliary model proposes, as in the paper."""

    type: Literal["llm"] = "llm"
    most_unusable: Share = 0.2
    """Traces without a usable reply stay as they were cut; above this share the run ends."""


Pruning = Annotated[
    Annotated[NoPruning, Tag("none")] | Annotated[EmbeddedPruning, Tag("embedded")] | Annotated[LlmPruning, Tag("llm")],
    type_or("embedded"),
]


class Pairing(Section):
    """Which preference pairs are made (section B.7)."""

    rejected: Literal["original", "longest"] = "original"
    """The rejected side: the trace that was shortened, or the longest of the problem's traces. Not from the
    paper."""


class Lora(Section):
    """Training of low-rank adapters on all linear layers; they are merged into the saved checkpoint."""

    rank: Positive = 32
    """Not from the paper, which trains all weights."""
    alpha: Positive = 64
    """Not from the paper."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Not from the paper."""


class Training(Section):
    """What all trainings through TRL share."""

    LEFT_OUT: ClassVar[dict[str, str]] = {
        "micro_batch": "splits the same step into smaller pieces; the gradient is the same"
    }

    learning_rate: PositiveFloat
    epochs: Positive = 1
    batch: Positive = 16
    """Rows per optimizer step. Not from the paper."""
    micro_batch: Positive = 16
    """Rows per forward pass; halved by itself when memory runs out."""
    max_length: Positive = 2048
    """Longest prompt + completion in tokens; must hold whole traces. Longer rows are set aside and
    counted, never cut."""
    warmup: Share = 0.1
    """Share of the steps with a rising learning rate; a cosine follows. Not from the paper."""
    bf16: bool = True
    """Computes in bfloat16 where that is safe; weights stay in float32. Off on processors without such arithmetic,
    where a large vocabulary trains far slower with it. Not from the paper."""
    lora: Lora | None = None
    """Not given: all weights are trained, as in the papers."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})")
        return self


class SimPO(Training):
    """SimPO (section B.8) on preference pairs."""

    learning_rate: PositiveFloat = 5e-7
    """Not from the paper; 3e-7 … 1e-6 on real models, far larger on the tiny one."""
    beta: PositiveFloat = 2.0
    """Not from the paper, but from its closest published relative."""
    gamma: Annotated[float, Field(ge=0)] = 0.3
    """The target margin γ itself, not γ/β. Not from the paper, but from its closest published relative."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an added cross-entropy term on the chosen side (TRL's `cpo_alpha`). Not from the paper."""


class Sft(Training):
    """Supervised fine-tuning on whole completions (section A.4)."""

    learning_rate: PositiveFloat = 1e-5
    """Not from the paper; far larger on the tiny model."""
    epochs: Positive = 2
    """Not from the paper."""


class Dpo(Training):
    """DPO on preference pairs, against the model that it starts from (section A.4)."""

    learning_rate: PositiveFloat = 5e-7
    """Not from the paper; far larger on the tiny model."""
    beta: PositiveFloat = 0.1
    """Not from the paper."""


class Controls(Section):
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


class Benchmark(Section):
    """The examination: fresh problems that nothing else has read."""

    problems: Problems = Stories(count=480)
    sampling: Sampling = Sampling()
    unseen: Problems | None = None
    """Problems of levels that no training has seen, examined on their own."""


class Engine(Section):
    """The vLLM server that one run owns, and others that it may use: speed and memory. Another `dtype` is another
    model, and sampled anew."""

    endpoints: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+")], ...] = ()
    """URLs of vLLM servers that run elsewhere and serve the base model under its fingerprint (docs/rollouts.md). What a
    run trains is served by its own server. Empty: so is the base."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """vLLM's, of a server of the run's own. Not given: the run's. Seeds of single requests would end vLLM on a CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights and arithmetic. float32 on a CPU; bfloat16 for 7 B models on a GPU."""
    context: Positive = 2048
    """Longest prompt + completion in tokens."""
    concurrency: Positive = 256
    """Completions in flight at once, on each server."""
    kv_cache_gib: Positive = 1
    """Room for the KV cache on a CPU."""
    gpu_memory: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Share of GPU memory, for all servers of the run together; without effect on a CPU."""
    side_by_side: Positive = 1
    """Servers that the run needs at the same time: each gets its part of the memory on a GPU, of the cores on a CPU."""
    start_timeout: PositiveFloat = 600
    """Seconds until a server that is not ready counts as failed."""
    request_timeout: PositiveFloat | None = None
    """Seconds until a request without reply counts as failed. Not given: 900, and a quarter for each token that it may
    draw, so that the longest completion has time on a full server. Not from the paper."""
    max_failed_fraction: Share = 0.05
    """Rows of a step that may fail, since one of their requests is refused, times out or is broken off. They are set
    aside and counted by reason; above this share, and more than one, the run ends. Not from the paper."""

    def timeout_for(self, max_tokens: int) -> float:
        """Seconds within which a request for so many tokens must be answered."""
        return self.request_timeout or PATIENCE + PATIENCE_PER_TOKEN * max_tokens


def refuse_overflow(name: str, sampling: Sampling, engine: Engine, trace: int = 0) -> None:
    """Raises ValueError when prompt, `trace` and completion may be longer than the engine's context."""
    if trace + sampling.max_tokens + ROOM_FOR_PROMPT > engine.context:
        raise ValueError(
            f"{name}.max_tokens ({sampling.max_tokens}{f' after a trace of {trace}' if trace else ''}) leaves "
            f"less than {ROOM_FOR_PROMPT} tokens for the prompt in engine.context ({engine.context}); "
            f"lower the first or raise the second"
        )


def refuse_short_training(name: str, training: Training, traces: Sampling) -> None:
    """Raises ValueError where the longest of `traces` would not fit into a row of `training`."""
    if training.max_length < traces.max_tokens + ROOM_FOR_PROMPT:
        raise ValueError(
            f"{name}.max_length ({training.max_length}) holds no trace of sampling.max_tokens ({traces.max_tokens}) "
            f"with {ROOM_FOR_PROMPT} tokens for the prompt; such rows would all be dropped as too long; raise the "
            f"first or lower the second"
        )


class Storage(Section):
    """Where results live. References hold full paths: what is moved to another place is made anew there."""

    root: SavedUrl = "runs"
    """A folder or an fsspec URL for artifacts; with a URL, the run's own folder stays local under `runs`."""
    rollouts: SavedUrl = ""
    """SQLAlchemy URL of the rollout store; empty: an SQLite file in `root`, or under `runs` when `root` is a URL."""


class Dto(Prompted):
    """One run of DTO: sample, segment, probe, cut, finalize, pair, train, examine (papers, section B)."""

    LEFT_OUT: ClassVar[dict[str, str]] = {
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
        refuse_idle_llm(self.llm, ["pruning"] if self.pruning.type == "llm" else [])
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
        return self.engine.context - max(
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
            refuse_overflow(name, section, self.engine, trace)
        refuse_open_exit("probing.exit_text", self.probing.exit_text, self.prompt.thinking)
        refuse_short_training("training", self.training, self.sampling)
        return self


class MarkerReport(Prompted):
    """Traces of a model, and how their sentences begin: from this its segment markers are chosen."""

    LEFT_OUT: ClassVar[dict[str, str]] = Dto.LEFT_OUT

    pipeline: Literal["markers"] = "markers"
    preset: str = "tiny"
    seed: Annotated[int, Field(ge=0)] = 0
    model: str = "tiny"
    """As in `Dto`."""
    problems: Problems = Stories(count=100)
    sampling: Sampling = Sampling()
    segmentation: Markers = Markers()
    """Which openings the report calls markers."""
    engine: Engine = Engine()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _fits_context(self) -> MarkerReport:
        refuse_overflow("sampling", self.sampling, self.engine)
        return self


class Teacher(Section):
    """The over-thinking teacher of the story world; see `reasoning.stories.OverThinker`."""

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
    most_rechecks: Positive = 6


class Lesson(Section):
    """A part of the corpus: how many stories, of which levels."""

    stories: Positive
    levels: tuple[Annotated[int, Field(ge=1, le=8)], ...]


class Pretraining(Section):
    """Training the tiny model from nothing, by SFT on the teacher's traces."""

    learning_rate: PositiveFloat = 2.5e-3
    batch: Positive = 16
    warmup: Share = 0.035
    adam_beta2: Share = 0.98
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class TinyModel(Section):
    """Making the bundled model: write the corpus, train tokenizer and weights, measure the world into the card."""

    LEFT_OUT: ClassVar[dict[str, str]] = {
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
