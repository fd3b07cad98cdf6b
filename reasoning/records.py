"""Record types: problems, traces, scans, pairs, scores. Frozen and strict, stored as Parquet.

Lengths are tokens of the model's own tokenizer. Offsets into a trace count completion tokens from 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import pairwise
from typing import Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from reasoning.token_ids import TokenIds


class Record(BaseModel):
    """Base class of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextPart(Record):
    """Text of a problem."""

    type: Literal["text"] = "text"
    text: str


class InstructionPart(Record):
    """Instruction that belongs to one set of problems. Not part of the problem; follows the run's own instruction."""

    type: Literal["instruction"] = "instruction"
    text: str


class ImagePart(Record):
    """The place of the next of `Problem.images` in the prompt."""

    type: Literal["image"] = "image"
    text: Literal[""] = ""


class Problem(Record):
    """A question with a known answer."""

    id: str
    prompt: tuple[TextPart | InstructionPart | ImagePart, ...]
    images: tuple[bytes, ...] = ()
    """Image files, as many as the prompt has image parts."""
    answer: str
    choices: tuple[str, ...] | None = None
    """Options of a multiple-choice problem; the answer is then a letter."""
    level: int | None = None
    subject: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.prompt if part.type == "text")

    @property
    def content(self) -> tuple[str, ...]:
        """What makes it this problem: its text, and the SHA-256 of each image."""
        return self.text, *(hashlib.sha256(image).hexdigest() for image in self.images)

    @property
    def instruction(self) -> str:
        return "".join(part.text for part in self.prompt if part.type == "instruction")


class InvalidRow(Record):
    """A data set row that is not a valid problem, with the reason."""

    location: str
    """File and line, or data set and index."""
    id: str | None
    reason: str
    detail: str
    """What is wrong and how to fix it, for the user."""


class SkippedRow(Record):
    """A row that was skipped because its completions failed, with the reason."""

    id: str
    reason: str
    detail: str
    """Explanation for the user."""


class Match(Record):
    """A training problem that a benchmark also contains."""

    problem_id: str
    text: str
    benchmark: str
    """Name of the benchmark."""
    benchmark_id: str
    benchmark_text: str
    share: float
    """Fraction of the shorter text's n-grams that the other one contains."""


class Verdict(StrEnum):
    """Result of the answer check for one completion."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no-answer"
    """The text contains no answer."""
    TIMEOUT = "timeout"
    """The check hit its time limit; counts as not verified."""
    NO_COMPLETION = "no-completion"
    """The request was rejected or given up. Counts as not right; has no length."""


class Verified(Protocol):
    """A row with a verdict."""

    @property
    def verdict(self) -> Verdict: ...


V = TypeVar("V", bound=Verified)


def completed(rows: Iterable[V]) -> list[V]:
    """Rows that have a completion. Lengths and costs are computed on these only; the others count as not right."""
    return [row for row in rows if row.verdict is not Verdict.NO_COMPLETION]


class Trace(Record):
    """One sampled completion of a problem: thinking and reply."""

    problem_id: str
    sample: int
    token_ids: TokenIds
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


def trace_name(row: OfTrace) -> tuple[str, int]:
    """Problem id and sample."""
    return row.problem_id, row.sample


def by_trace(rows: Iterable[OT]) -> dict[tuple[str, int], OT]:
    """Rows by (problem id, sample)."""
    return {trace_name(row): row for row in rows}


L = TypeVar("L")


def left_joined(
    left: Iterable[L], right: Iterable[OT], key: Callable[[L], tuple[str, int]]
) -> Iterator[tuple[L, OT | None]]:
    """Each item of `left` with the row of `right` about the same trace, or None. One of each is in memory at a time.

    `key`: an item's (problem id, sample). Rows of `right` come in the order of `left`; ValueError otherwise.
    """
    rows = iter(right)
    row = next(rows, None)
    for item in left:
        if row is not None and trace_name(row) == key(item):
            yield item, row
            row = next(rows, None)
        else:
            yield item, None
    if row is not None:
        raise ValueError(f"{row.problem_id}/{row.sample}: not in the order of the traces, or of no trace")


class SentenceOpener(Record):
    """Statistics of one way in which sentences of a model's thinking begin."""

    text: str
    is_marker: bool
    """Whether the current settings start a segment here."""
    count: int
    """Number of sentences and lines with this opener."""
    traces: int
    """Number of traces that contain it."""
    position: float | None
    """Mean position in the trace, from 0 (start) to 1 (end). None if it never occurs."""


class Probe(Record):
    """Probe results of one prefix."""

    segment: int
    """Index i of the prefix's last segment, from 0."""
    right: int
    total: int
    """Number of probes sampled. Sampling stops at the decision, so right/total is a biased estimate of p."""


class Scan(Record):
    """Result of the search for a trace's crossing (DTO, arXiv 2505.21765)."""

    problem_id: str
    sample: int
    ends: tuple[int, ...]
    """Length of each prefix in tokens."""
    probes: tuple[Probe, ...]
    """Probes of the tested prefixes, in ascending order."""
    crossing: int | None
    """Index of the first passing prefix (with binary search: of some passing prefix). None if none passes."""

    @property
    def cut(self) -> int:
        """Tokens up to the crossing. The trace must cross."""
        return self.kept_ends[-1]

    @property
    def kept_ends(self) -> tuple[int, ...]:
        """Ends of the segments up to the crossing. The trace must cross."""
        assert self.crossing is not None
        return self.ends[: self.crossing + 1]


class CrossingEstimate(Record):
    """Success counts at a crossing on fresh samples."""

    problem_id: str
    sample: int
    right: int
    total: int


class OptimisedTrace(Record):
    """A trace cut at its crossing and completed (DTO, arXiv 2505.21765)."""

    problem_id: str
    sample: int
    token_ids: TokenIds
    removed: tuple[int, ...] = ()
    """Indices of the segments that pruning removed."""
    premature_ids: TokenIds | None = None
    """Completion that stops at a prefix before the crossing and answers wrongly."""


class ProposedRemovals(Record):
    """Inner segments of a cut trace that an auxiliary model proposes to remove."""

    problem_id: str
    sample: int
    segments: tuple[int, ...]


class PrefixValues(Record):
    """Rollout results of all prefixes of a trace."""

    problem_id: str
    sample: int
    ends: tuple[int, ...]
    """Length of each prefix in tokens. The first is the prefix without thinking."""
    right: tuple[int, ...]
    """Number of correct rollouts of each prefix, out of `total`."""
    total: int

    @property
    def values(self) -> list[float]:
        """Fraction of correct rollouts of each prefix."""
        return [right / self.total for right in self.right]

    @property
    def lengths(self) -> list[int]:
        """Length of each segment in tokens."""
        return [end - start for start, end in pairwise(self.ends)]

    def needed(self, threshold: float) -> int:
        """Length in tokens of the first prefix whose value exceeds `threshold`; of the longest prefix if there is
        none."""
        return next((e for e, v in zip(self.ends, self.values, strict=True) if v > threshold), self.ends[-1])


class ChunkedTrace(Record):
    """Boundaries of a trace's thoughts (Long⊗Short, arXiv 2505.11827)."""

    problem_id: str
    sample: int
    ends: tuple[int, ...]
    """End of each thought in tokens. The last one is the end of the thinking."""


class ColdStartDialogue(Record):
    """A trace rewritten as a dialogue of the two models (Long⊗Short, arXiv 2505.11827)."""

    problem_id: str
    sample: int
    important: tuple[bool, ...]
    """Whether each thought goes to the long-thought model."""
    transcript: str


class ModelCall(Record):
    """Token counts of one request to a model."""

    prompt_tokens: int
    tokens: int
    """Generated tokens."""


class EvaluatedDialogue(Record):
    """A dialogue of two models about a problem, with its verdict."""

    problem_id: str
    sample: int
    transcript: str
    long_calls: tuple[ModelCall, ...]
    """Requests for turns of the long-thought model."""
    short_calls: tuple[ModelCall, ...]
    """Requests for turns of the short-thought model."""
    hit_cap: bool
    """Whether Short reached the round limit and was forced to answer."""
    is_well_formed: bool
    verdict: Verdict

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return self.long_calls + self.short_calls

    @property
    def tokens(self) -> int:
        """Tokens generated by both models."""
        return sum(call.tokens for call in self.calls)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests of both models."""
        return sum(call.prompt_tokens for call in self.calls)


class ModelPair(Record):
    """A long-thought and a short-thought model that work together. Either may be the base."""

    long_uri: str
    long_digest: str
    short_uri: str
    short_digest: str


class Rating(Record):
    """Difficulty of a problem from 1 to 10."""

    problem_id: str
    level: int


class CompressedTrace(Record):
    """A trace compressed to its level's budget and completed (CoT distillation, arXiv 2509.05226)."""

    problem_id: str
    sample: int
    level: int
    token_ids: TokenIds
    kept: tuple[int, ...]
    """Indices of the kept segments. Empty if a language model rewrote the text."""
    original_tokens: int
    """Length of the original trace in tokens."""


class JudgeGrades(Record):
    """Grades of a completion from 1 to 5."""

    model: int
    """Index of the model that wrote it, among the models judged together."""
    problem_id: str
    clarity: int
    completeness: int
    correctness: int
    redundancy: int


class PairKind(StrEnum):
    """How a preference pair was built."""

    COMPRESSED = "compressed"
    """Chosen: the compressed trace. Rejected: the original trace."""
    OPTIMISED = "optimised"
    """Chosen: the shortened trace. Rejected: the longer original."""
    SHORTEST_LONGEST = "shortest-longest"
    """Chosen: the problem's shortest correct trace. Rejected: its longest. A control, not part of DTO."""
    PREMATURE_STOP = "premature-stop"
    """Chosen: the shortened trace. Rejected: an earlier prefix completed to a wrong answer."""


class Pair(Record):
    """A preference pair in token ids."""

    problem_id: str
    sample: int
    kind: PairKind
    prompt_ids: TokenIds
    chosen_ids: TokenIds
    rejected_ids: TokenIds


class Demonstration(Record):
    """A completion for SFT, in token ids."""

    problem_id: str
    sample: int
    prompt_ids: TokenIds
    completion_ids: TokenIds


class Score(Record):
    """One evaluated completion."""

    problem_id: str
    level: int | None
    subject: str | None = None
    sample: int
    prompt_tokens: int
    tokens: int
    """All tokens generated for it, including `overhead`."""
    overhead: int = 0
    """Generated tokens that are not part of the completion, such as probes."""
    answer_tokens: int | None = None
    """Tokens up to the end of the final answer: a completion cut there has the same answer. None: all are needed."""
    calls: tuple[ModelCall, ...] = ()
    """Token counts of each request, if there were several."""
    truncated: bool
    """Reached the limit of tokens or rounds."""
    verdict: Verdict


class Usage(Record):
    """Resources used: tokens, seconds, FLOPs, money."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    reused_completions: int = 0
    """Completions read from the rollout store, at no cost."""
    reused_flops: float = 0.0
    """FLOPs that sampling the reused completions would cost, with shared ones counted once and a warm prefix cache."""
    unverified: int = 0
    """Answers whose check timed out; they count as not right."""
    seconds: float = 0.0
    engine_busy: float = 0.0
    """Seconds with requests in flight."""
    engine_idle: float = 0.0
    """Seconds without requests, between the first request and the last response."""
    engine_tail: float = 0.0
    """Seconds at the end with less than half of the engine's concurrency in use."""
    flops: float = 0.0
    money: float = 0.0
    """Cost of auxiliary endpoints, including the original cost of reused replies."""
    unmetered_replies: int = 0
    """Replies from endpoints that report no usage; their tokens are not counted."""

    def __add__(self, more: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(more, name) for name in Usage.model_fields})


class CostBounds(Record):
    """Cost of crossing searches: actual, naive and minimum, in rollouts and in prefill tokens."""

    rollouts: int = 0
    rollouts_floor: int = 0
    """Rollouts that decide each prefix the result rests on."""
    rollouts_naive: int = 0
    """All rollouts of every prefix."""
    prefill_floor: int = 0
    """Each trace once, up to its longest tested prefix, plus what a rollout request cannot share: one cache block and
    its opening text."""
    prefill_naive: int = 0
    """Every rollout as a separate request without prefix cache."""

    def __add__(self, more: CostBounds) -> CostBounds:
        return CostBounds(**{name: getattr(self, name) + getattr(more, name) for name in CostBounds.model_fields})


class StageCount(Usage):
    """Counts of one stage: rows in, rows out, dropped rows by reason, and usage."""

    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    cost_bounds: CostBounds | None = None
    """Only for stages that search for crossings."""
    counts: dict[str, int] = {}
    """Additional counts by name."""
    billed_to: str = ""
    """Endpoint that was paid, if any."""
    gpus: int = 0
    """GPUs that the step could use; 0 without any, and in results of earlier versions."""
