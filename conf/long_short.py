"""Settings of Long⊗Short (arXiv 2505.11827): what can be chosen, its bounds and its defaults.

Knows: names, bounds, where a default comes from. Must not know: what the settings are used for.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from conf.section import Section


class Importance(Section):
    """The joint metric of a thought (section C.2), whose formula the paper does not print."""

    form: Literal["gain", "level"] = "gain"
    """What is praised: by how much a thought raises the value, since the paper speaks of improvement, or the value that
    is reached. Not from the paper. By level, late thoughts that repeat what is settled outrank what settled it."""
    length_weight: Annotated[float, Field(ge=0)] = 0.25
    """λ, of the thought's share of the trace's tokens. Not from the paper."""
    decay: Annotated[float, Field(ge=0)] = 0.25
    """δ, for a thought that raises nothing. The paper's value."""
