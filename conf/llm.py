"""Settings of the auxiliary language model: who plays a pipeline's side roles, and what that may cost.

Knows: names and bounds. Must not know: roles, prompts, HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from conf.base import Settings

Price = Annotated[float, Field(ge=0)]


def _endpoint(url: str) -> str:
    """Raises ValueError where no chat endpoint can lie, or where a secret would get into logs and reports."""
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:
        raise ValueError("names no host; write it like https://api.openai.com/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "holds a name, a password or parameters, which would be saved with the run; leave them out and put the "
            "key into the environment variable that key_variable names"
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError("ends in /chat/completions, which is added to it; leave that out")
    return url


class LlmRole(Settings):
    """A role that an auxiliary model plays."""

    max_tokens: Annotated[int, Field(gt=0)] = 2048
    """The longest reply, thinking included; more where the reply's own form needs more. Not from the paper."""


class Llm(Settings):
    """An OpenAI-compatible endpoint for all roles of type `llm`."""

    RENAMED: ClassVar[dict[str, str]] = {"concurrency": "max_concurrency", "tries": "max_tries"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "max_concurrency": "speed",
        "key_variable": "who pays",
        "price_in": "accounting",
        "price_out": "accounting",
        "cap": "it ends a run, and changes no reply",
        "max_retry_after": "it ends a run, and changes no reply",
    }
    STANDS_AT: ClassVar[str] = "llm"
    """The section's name, for messages."""

    url: Annotated[
        str, StringConstraints(strip_whitespace=True, pattern=r"^https?://[!-~]+$"), AfterValidator(_endpoint)
    ]
    """Such as https://api.openai.com/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The paper's rater and judge is gpt-4o-mini."""
    key_variable: Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]*$")] = "BREVITY_LLM_KEY"
    """The environment variable that holds the endpoint's API key, where it wants one. The key itself is read from there
    alone, and sent nowhere else."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Not from the paper."""
    max_concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests in flight at once."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds until a request without reply is given up."""
    max_tries: Annotated[int, Field(ge=1)] = 6
    """Of a request that fails for a reason that may pass: no connection, no reply in time, 429, 5xx."""
    max_retry_after: Annotated[float, Field(ge=0)] = 600.0
    """Seconds that the endpoint may ask to be left alone (Retry-After). A longer pause ends the run and is named. Not
    from the paper."""
    price_in: Price = 0.0
    """Money per million prompt tokens, in any currency."""
    price_out: Price = 0.0
    """Money per million generated tokens."""
    cap: Annotated[float, Field(gt=0)] | None = None
    """Money that a run's replies may cost, those of its earlier attempts included. Before it would be passed, the run
    stops and says what is missing. Not given: no limit."""

    @model_validator(mode="after")
    def _cap_counts(self) -> Self:
        if self.cap is not None and not self.price_in and not self.price_out:
            raise ValueError("cap has no effect without prices; give price_in and price_out, per million tokens")
        return self


def validate_llm_is_used(llm: Llm | None, roles: Sequence[str]) -> None:
    """Raises ValueError where `roles` have nobody who plays them, or nobody has a role."""
    if roles and llm is None:
        raise ValueError(f"{', '.join(roles)}: an auxiliary model is needed; give llm.url and llm.model")
    if llm is not None and not roles:
        raise ValueError("llm has no effect: it has no role to play; leave it out")
