"""What every group of settings is. Knows: pydantic. Must not know: any setting."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """A frozen group of settings. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {}
    """Fields that change no result, each with the reason; all others are in the cache key."""


def type_or(default: str) -> Discriminator:
    """Chooses among sections by their `type`, which may be left out for the default one."""

    def kind(value: Any) -> str | None:
        return value.get("type", default) if isinstance(value, dict) else getattr(value, "type", None)

    return Discriminator(kind)
