"""The one vocabulary of rows: problems, traces, scans, pairs, scores. Frozen, strict, ready for Parquet.

Knows: what each row holds and in which units. Must not know: how rows are stored or produced.

Lengths are tokens of the model's own tokenizer. Offsets into a trace count its completion tokens from 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from itertools import pairwise
from typing import Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextPart(Record):
    type: Literal["text"] = "text"
    text: str


class InstructionPart(Record):
    """What one set of problems is told beside the problem: no part of it, and after the run's own advice."""

    type: Literal["instruction"] = "instruction"
    text: str


class Problem(Record):
    """A question with a known answer. A prompt is a list of parts, because pictures will join text one day."""

    id: str
    prompt: tuple[TextPart | InstructionPart, ...]
    answer: str
    choices: tuple[str, ...] | None = None
    """Options of a multiple-choice question; the answer is then a letter."""
    level: int | None = None
    subject: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.prompt if part.type == "text")

    @property
    def instruction(self) -> str:
        return "".join(part.text for part in self.prompt if part.type == "instruction")


class InvalidRow(Record):
    """A row of a data set that is no problem, and why."""

    location: str
    """File and line, or data set and index."""
    id: str | None
    reason: str
    detail: str
    """What is wrong and what to do, for a person."""


class SkippedRow(Record):
    """A row without the completions that it needs, and why."""

    id: str
    reason: str
    detail: str
    """For a person."""


class Match(Record):
    """A problem to train on that a benchmark holds, too."""

    problem_id: str
    text: str
    benchmark: str
    """Name of the set."""
    benchmark_id: str
    benchmark_text: str
    share: float
    """Of the shorter text's n-grams, those that are in the other."""


class Verdict(StrEnum):
    """What the answer check says of one completion."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no-answer"
    """No answer could be found in the text."""
    TIMEOUT = "timeout"
    """The check was ended after its time limit; counts as not verified."""
    NO_COMPLETION = "no-completion"
    """The engine refused the request or gave it up; counts as not right, and as no length."""


class Verified(Protocol):
    """A row with a verdict."""

    @property
    def verdict(self) -> Verdict: ...


V = TypeVar("V", bound=Verified)


def completed(rows: Iterable[V]) -> list[V]:
    """Those whose completions there are: lengths and costs are theirs alone. The others count as not right."""
    return [row for row in rows if row.verdict is not Verdict.NO_COMPLETION]


class Trace(Record):
    """One sampled completion of a problem, thinking and reply together."""

    problem_id: str
    sample: int
    token_ids: tuple[int, ...]
    text: str
    truncated: bool
    verdict: Verdict

    @property
    def id(self) -> str:
        return f"{self.problem_id}/{self.sample}"


class OfTrace(Protocol):
    """A row about one sample of one problem."""

    @property
    def problem_id(self) -> str: ...
    @property
    def sample(self) -> int: ...


OT = TypeVar("OT", bound=OfTrace)


def by_trace(rows: Iterable[OT]) -> dict[tuple[str, int], OT]:
    """Each row under the problem and the sample that it is about."""
    return {(row.problem_id, row.sample): row for row in rows}


class SentenceOpener(Record):
    """How some sentences of a model's thinking begin."""

    text: str
    is_marker: bool
    """Whether a segment is cut here, as the settings stand."""
    count: int
    """Sentences and lines that begin so."""
    traces: int
    """Traces with at least one of them."""
    position: float | None
    """Mean place in the trace, 0 its start and 1 its end; None when none was met."""


class Probe(Record):
    """The M rollouts of one closed prefix."""

    segment: int
    """Index i of the last segment in the prefix, from 0."""
    right: int
    total: int
    """As many as decided; their share is no unbiased estimate of p."""


class Scan(Record):
    """Where a trace crosses: its prefixes, and the probes that tell (papers, section B.2–B.4)."""

    problem_id: str
    sample: int
    ends: tuple[int, ...]
    """Tokens of the trace in each of its prefixes."""
    probes: tuple[Probe, ...]
    """Of the prefixes that were tried, from the front."""
    crossing: int | None
    """Segment index of the first prefix that passes (with a binary search: of one that passes); None when none does."""

    @property
    def trace_id(self) -> str:
        return f"{self.problem_id}/{self.sample}"

    @property
    def cut(self) -> int:
        """Tokens up to the crossing, where there is one."""
        return self.kept_ends[-1]

    @property
    def kept_ends(self) -> tuple[int, ...]:
        """Of the prefixes up to the crossing, where there is one."""
        assert self.crossing is not None
        return self.ends[: self.crossing + 1]


class CrossingEstimate(Record):
    """The share of right rollouts at a crossing, on fresh samples."""

    problem_id: str
    sample: int
    right: int
    total: int


class OptimisedTrace(Record):
    """A trace cut at its earliest crossing and brought to its end (section B.5)."""

    problem_id: str
    sample: int
    token_ids: tuple[int, ...]
    removed: tuple[int, ...] = ()
    """Indices of the segments before the cut that pruning took out (section B.6)."""
    premature_ids: tuple[int, ...] | None = None
    """The completion that stops before the crossing, at a prefix that did not pass, and answers wrong there."""


class ProposedRemovals(Record):
    """Inner segments of a cut trace that an auxiliary model would leave out (section B.6)."""

    problem_id: str
    sample: int
    segments: tuple[int, ...]


class PrefixValues(Record):
    """How good the prefixes of a trace are: the right ones of each one's rollouts (papers, section A.3)."""

    problem_id: str
    sample: int
    ends: tuple[int, ...]
    """Tokens of the trace in each prefix; the first is no thinking at all."""
    right: tuple[int, ...]
    """Of `total` rollouts each, by prefix."""
    total: int

    @property
    def values(self) -> list[float]:
        return [right / self.total for right in self.right]

    @property
    def lengths(self) -> list[int]:
        """Of the segments, in tokens."""
        return [end - start for start, end in pairwise(self.ends)]

    def needed(self, threshold: float) -> int:
        """Tokens up to the first prefix that is right more often than `threshold`; all of them where none is."""
        return next((e for e, v in zip(self.ends, self.values, strict=True) if v > threshold), self.ends[-1])


class ChunkedTrace(Record):
    """Where the thoughts of a trace end (papers, section C.1)."""

    problem_id: str
    sample: int
    ends: tuple[int, ...]
    """Tokens of the trace up to the end of each thought; the last is that of its thinking."""


class ColdStartDialogue(Record):
    """A trace as the two models would have talked it (section C.3)."""

    problem_id: str
    sample: int
    important: tuple[bool, ...]
    """Which of its thoughts are Long's."""
    transcript: str


class ModelCall(Record):
    """One request to a model, as far as it costs."""

    prompt_tokens: int
    tokens: int
    """Generated."""


class EvaluatedDialogue(Record):
    """A dialogue of two models about a problem (section C.4)."""

    problem_id: str
    sample: int
    transcript: str
    long_calls: tuple[ModelCall, ...]
    """Turns of the long-thought model."""
    short_calls: tuple[ModelCall, ...]
    hit_cap: bool
    """Short had asked as often as it may, and was made to answer."""
    is_well_formed: bool
    verdict: Verdict

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return self.long_calls + self.short_calls

    @property
    def tokens(self) -> int:
        """Generated by both."""
        return sum(call.tokens for call in self.calls)

    @property
    def prompt_tokens(self) -> int:
        """Shown to both, turn by turn."""
        return sum(call.prompt_tokens for call in self.calls)


class ModelPair(Record):
    """Two models that talk with each other; either may be the base."""

    long_uri: str
    long_digest: str
    short_uri: str
    short_digest: str


class Rating(Record):
    """How difficult a problem is, 1 to 10 (section A.1)."""

    problem_id: str
    level: int


class CompressedTrace(Record):
    """A trace as short as its problem's level allows, brought to its end (section A.3)."""

    problem_id: str
    sample: int
    level: int
    token_ids: tuple[int, ...]
    kept: tuple[int, ...]
    """Indices of the segments that stayed; none where a language model wrote the text anew."""
    original_tokens: int
    """Of the trace as it was."""


class JudgeGrades(Record):
    """A completion's grades, 1 to 5 (section A.5)."""

    model: int
    """Which of those judged together wrote it."""
    problem_id: str
    clarity: int
    completeness: int
    correctness: int
    redundancy: int


class PairKind(StrEnum):
    COMPRESSED = "compressed"
    """Chosen: the compressed trace. Rejected: the trace as it was."""
    OPTIMISED = "optimised"
    """Chosen: the shortened trace. Rejected: the longer original."""
    SHORTEST_LONGEST = "shortest-longest"
    """Chosen: the problem's shortest right trace. Rejected: its longest. A control, no part of DTO."""
    PREMATURE_STOP = "premature-stop"
    """Chosen: the shortened trace. Rejected: an earlier prefix, closed with the wrong answer it led to."""


class Pair(Record):
    """A preference pair in token ids (section B.7)."""

    problem_id: str
    sample: int
    kind: PairKind
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


class Demonstration(Record):
    """A completion to be imitated, in token ids."""

    problem_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


class Score(Record):
    """One examined completion."""

    problem_id: str
    level: int | None
    subject: str | None = None
    sample: int
    prompt_tokens: int
    tokens: int
    """All tokens generated for it, `overhead` among them."""
    overhead: int = 0
    """Tokens that are no part of the completion, such as probes."""
    calls: tuple[ModelCall, ...] = ()
    """Where it took several requests, each of them."""
    truncated: bool
    """Cut at its limit, of tokens or of rounds."""
    verdict: Verdict


class Usage(Record):
    """What a model was paid for: tokens, seconds and floating point operations."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    reused_completions: int = 0
    """Completions that came from the rollout store, unpaid."""
    reused_flops: float = 0.0
    """What drawing those costs, each that several share once, with a cache that holds what the same job has met."""
    unverified: int = 0
    """Answers whose check was ended after its time limit; they count as not right."""
    seconds: float = 0.0
    engine_busy: float = 0.0
    """Seconds in which the engine had requests in flight."""
    engine_idle: float = 0.0
    """Seconds without any, between the first request and the last reply."""
    engine_tail: float = 0.0
    """Seconds at the end in which less than half of the engine's seats were taken."""
    flops: float = 0.0
    money: float = 0.0
    """Paid to auxiliary endpoints, now or when a reused reply was drawn."""
    unmetered_replies: int = 0
    """Of auxiliary endpoints that do not say how long they were: their tokens are in no count."""

    def __add__(self, more: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(more, name) for name in Usage.model_fields})


class CostBounds(Record):
    """What searches for crossings took, what they would have taken without any care, and the least that was possible:
    in rollouts, and in tokens of prompts that an engine has to compute."""

    rollouts: int = 0
    rollouts_floor: int = 0
    """Of each prefix that the answer rests on, the rollouts up to the first that decides it."""
    rollouts_naive: int = 0
    """All rollouts of every prefix."""
    prefill_floor: int = 0
    """Each trace once, up to its longest prefix tried; per rollout (a request of its own to an engine) what it cannot
    share: one block of the cache and what opens it."""
    prefill_naive: int = 0
    """Every rollout a request of its own, nothing from the cache."""

    def __add__(self, more: CostBounds) -> CostBounds:
        return CostBounds(**{name: getattr(self, name) + getattr(more, name) for name in CostBounds.model_fields})


class StageCount(Usage):
    """What went into a stage, what came out, what was dropped and why, and what it cost."""

    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    cost_bounds: CostBounds | None = None
    """Of a stage that looks for crossings."""
    counts: dict[str, int] = {}
    """What else is worth knowing of the stage, by name."""
    billed_to: str = ""
    """Who got the money, where any was spent."""
