"""How prefixes of a trace are probed, and how shortened traces are finalized."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag

from conf.base import Settings, Share, type_or
from conf.sampling import Sampling


class ForwardScan(Settings):
    """Probes prefixes from the first one on and stops at the first that passes. Finds the earliest crossing."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "lookahead": "the same prefixes pass, with more or fewer wasted probes"
    }

    type: Literal["forward"] = "forward"
    lookahead: Annotated[int, Field(ge=0)] = 0
    """Speculatively probes this many later prefixes: better utilisation on small runs, some wasted probes. Not from the
    paper."""


class BinarySearch(Settings):
    """Finds a passing prefix by binary search, which assumes that every longer prefix passes too. Probes fewer prefixes
    of long traces, but may miss the earliest crossing. Not from the paper."""

    type: Literal["binary"] = "binary"
    audited: Share = 0.1
    """Fraction of traces that are also scanned from the front. The ledger counts those whose crossings differ."""


Search = Annotated[Annotated[ForwardScan, Tag("forward")] | Annotated[BinarySearch, Tag("binary")], type_or("forward")]


class Probing(Settings):
    """How a prefix is tested: the exit text closes it, answers are sampled and verified (DTO, arXiv 2505.21765)."""

    exit_text: str = "Now the answer is clear.\n</think>\nThe answer is \\boxed{"
    """Text appended to a prefix so that the completion is the answer alone. Must end the thinking and be natural for
    the model."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """T: a prefix passes if strictly more than this fraction of its probes is right. Not from the paper."""
    sampling: Sampling = Sampling(samples=8, max_tokens=12)
    """Sampling parameters of the probes. `samples` is M, the maximum number of probes per prefix; probing stops once
    the outcome is decided. M = 8 is not from the paper."""


class Finalizing(Settings):
    """How a shortened trace is completed: K completions are sampled after a closing text, and the shortest correct one
    is kept (DTO, arXiv 2505.21765)."""

    closing_text: str = "Therefore the answer is"
    """Text appended to a shortened trace; the model continues from there. Must be natural for the model: unnatural text
    in the training data degrades it."""
    sampling: Sampling = Sampling(samples=8, max_tokens=48)
    """Sampling parameters of the completions. `samples` is K. K = 8 is not from the paper."""

    @property
    def max_ending_tokens(self) -> int:
        """Upper bound of closing text + completion in tokens. A token is at least one byte."""
        return len(self.closing_text.encode()) + self.sampling.max_tokens
