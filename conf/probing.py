"""How prefixes of a trace are valued and finished."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag

from conf.base import Settings, Share, type_or
from conf.sampling import Sampling


class ForwardScan(Settings):
    """Prefixes are probed from the front until one passes: that one is the earliest."""

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "lookahead": "the same prefixes pass, with more or fewer probes in vain"
    }

    type: Literal["forward"] = "forward"
    lookahead: Annotated[int, Field(ge=0)] = 0
    """Prefixes of a trace that are probed before it is known whether the one before them passes: a fuller engine where
    traces are few, at the price of probes in vain. Not from the paper."""


class BinarySearch(Settings):
    """Few prefixes are probed, as if every one after a passing one passed, too: cheaper for long traces, and the prefix
    found passes, but need not be the earliest. Not from the paper."""

    type: Literal["binary"] = "binary"
    audited: Share = 0.1
    """Share of the traces that are also scanned from the front; the ledger counts those whose crossing is another."""


Search = Annotated[Annotated[ForwardScan, Tag("forward")] | Annotated[BinarySearch, Tag("binary")], type_or("forward")]


class Probing(Settings):
    """How a prefix is tested: it is closed, the answer alone is sampled, and verified (section B.2–B.4)."""

    exit_text: str = "Now the answer is clear.\n</think>\nThe answer is \\boxed{"
    """Closes a prefix so that the completion is the answer alone. Must be natural for the model."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """T: a prefix passes when strictly more than this share of its probes is right. Not from the paper."""
    sampling: Sampling = Sampling(samples=8, max_tokens=12)
    """At most M probes per prefix, no more than decide; M = 8 is not from the paper."""


class Finalizing(Settings):
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
