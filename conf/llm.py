"""Settings of auxiliary language models: endpoint, limits, price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from conf.base import Settings

Price = Annotated[float, Field(ge=0)]


def _validate_endpoint(url: str) -> str:
    """Raises ValueError if `url` cannot be a chat endpoint or contains a secret."""
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:
        raise ValueError("has no host; write it like https://api.openai.com/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "holds a name, a password or parameters, which would be saved with the run; leave them out and put the "
            "key into the environment variable that key_variable names"
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError("ends in /chat/completions, which is added automatically; leave that out")
    return url


class LlmRole(Settings):
    """A task that an auxiliary language model does."""

    max_tokens: Annotated[int, Field(gt=0)] = 2048
    """Maximum length of a reply in tokens, thinking included. Raised automatically if the reply format needs more. Not
    from the paper."""


class Llm(Settings):
    """An OpenAI-compatible endpoint that serves all roles of type `llm`."""

    RENAMED: ClassVar[dict[str, str]] = {"concurrency": "max_concurrency", "tries": "max_tries"}

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {
        "max_concurrency": "speed",
        "key_variable": "authentication",
        "price_in": "accounting",
        "price_out": "accounting",
        "cap": "it ends a run and changes no reply",
        "max_retry_after": "it ends a run and changes no reply",
    }
    SECTION_NAME: ClassVar[str] = "llm"
    """Name of this section in error messages."""

    url: Annotated[
        str, StringConstraints(strip_whitespace=True, pattern=r"^https?://[!-~]+$"), AfterValidator(_validate_endpoint)
    ]
    """Base URL, such as https://api.openai.com/v1."""
    model: Annotated[str, Field(min_length=1)]
    """Model name at the endpoint. The CoT distillation paper rates and judges with gpt-4o-mini."""
    key_variable: Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]*$")] = "BREVITY_LLM_KEY"
    """Name of the environment variable with the API key, if the endpoint needs one. The key is read from there only and
    sent to this endpoint only."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Sampling temperature, unless a role sets its own. Not from the paper."""
    images: bool = False
    """Whether the endpoint takes images. A query about a problem with images then shows them; otherwise it has the text
    alone. Not from the paper."""
    max_concurrency: Annotated[int, Field(ge=1)] = 8
    """Maximum number of concurrent requests."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds to wait for a response."""
    max_tries: Annotated[int, Field(ge=1)] = 6
    """Maximum number of attempts per request after temporary failures: connection errors, timeouts, 429, 5xx."""
    max_retry_after: Annotated[float, Field(ge=0)] = 600.0
    """Longest pause in seconds that the endpoint may ask for (`Retry-After`). A longer one ends the run with an error.
    Not from the paper."""
    price_in: Price = 0.0
    """Price per million prompt tokens, in any currency."""
    price_out: Price = 0.0
    """Price per million generated tokens, in the same currency."""
    cap: Annotated[float, Field(gt=0)] | None = None
    """Maximum cost of a run, including its earlier attempts. The run stops before exceeding it and reports how much is
    missing. Omit for no limit."""

    @model_validator(mode="after")
    def _cap_counts(self) -> Self:
        if self.cap is not None and not self.price_in and not self.price_out:
            raise ValueError("cap has no effect without prices; give price_in and price_out, per million tokens")
        return self


def validate_llm_is_used(llm: Llm | None, roles: Sequence[str]) -> None:
    """Raises ValueError if `roles` need a model and `llm` is missing, or if `llm` is given and no role uses it."""
    if roles and llm is None:
        raise ValueError(f"{', '.join(roles)}: an auxiliary model is needed; give llm.url and llm.model")
    if llm is not None and not roles:
        raise ValueError("llm has no effect: no role uses it; leave it out")
