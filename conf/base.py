"""Base class of all settings sections, and the number types that they share."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


S = TypeVar("S", bound="Settings")
FIXED = {
    "type": "Names this alternative; leave it as it is.",
    "pipeline": "Names the pipeline; leave it as it is.",
    "preset": "Names the settings in reports and on pages; reads nothing.",
}
NOT_IN_ANY_CACHE_KEY: dict[str, str] = {
    "pipeline": "there is one pipeline per settings class",
    "preset": "a name; its content is in the other fields",
    "engine": "speed, memory and the choice of samples; what changes a model's numbers is in a sampled checkpoint's "
    "fingerprint, max_model_len is an input of the steps that need it",
    "storage": "where results live",
    "retries": "what happens after a failure",
}
"""Fields of every pipeline that no result depends on, with the reasons."""


class RenamedSetting(FutureWarning):
    """Warning: a setting was given under its old name, which the next version will reject."""


def _words(name: str) -> str:
    """`EmbeddedPruning` and `max_model_len` as a person writes them."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])|_", " ", name)
    return spaced[0].upper() + re.sub(r"\b[A-Z](?=[a-z])", lambda letter: letter[0].lower(), spaced[1:])


class Settings(BaseModel):
    """A frozen group of settings. Unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # Forms name sections and fields by these titles.
        model_title_generator=lambda kind: _words(kind.__name__),
        field_title_generator=lambda name, _: _words(name),
    )

    NOT_IN_CACHE_KEY: ClassVar[dict[str, str]] = {}
    """Fields left out of the step cache key, each with the reason. All other fields are in the key."""
    RENAMED: ClassVar[dict[str, str]] = {}
    """Old field names and their new names. Old names work for one more version."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describes the fields that no person needs to change, for forms and editors."""
        made = handler(schema)
        properties = handler.resolve_ref_schema(made).get("properties", {})
        for name in FIXED.keys() & properties.keys():
            properties[name].setdefault("description", FIXED[name])
        return made

    @classmethod
    def renamed(cls) -> dict[str, str]:
        """`RENAMED` of this class and its base classes."""
        return {old: new for base in reversed(cls.__mro__) for old, new in vars(base).get("RENAMED", {}).items()}

    @classmethod
    def with_new_names(cls, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """`values` of this section under present names. If a field is given under both, the later value wins; sections
        are merged."""
        renamed, found = cls.renamed(), dict[Any, Any]()
        for name, value in values.items():
            new = renamed.get(name, name)
            before = found.get(new)
            found[new] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
        return found

    @model_validator(mode="before")
    @classmethod
    def _use_new_names(cls, values: Any) -> Any:
        """Replaces old field names, with a RenamedSetting for each."""
        renamed = cls.renamed()
        if not isinstance(values, dict) or not renamed.keys() & values.keys():
            return values
        for name in filter(renamed.__contains__, values):
            warnings.warn(RenamedSetting(f"the setting {name} is called {renamed[name]} now"), stacklevel=2)
        return cls.with_new_names(values)


def sections(value: Any, kind: type[S]) -> Iterator[S]:
    """All sections of a kind within settings, and within whatever groups them."""
    if isinstance(value, kind):
        yield value
    parts = vars(value).values() if isinstance(value, BaseModel) else value.values() if isinstance(value, dict) else ()
    for part in value if isinstance(value, tuple) else parts:
        yield from sections(part, kind)


def type_or(default: str) -> Discriminator:
    """Selects a union member by its `type` field; `default` when `type` is omitted."""

    def kind(value: Any) -> str | None:
        return value.get("type", default) if isinstance(value, dict) else getattr(value, "type", None)

    return Discriminator(kind)
