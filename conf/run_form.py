"""The form that starts a run: a few short fields on top, the complete settings behind them.

It knows how settings are loaded and named. It must not know who shows the form, nor what a run does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema, create_model

from conf.base import Positive, PositiveFloat, Settings
from conf.describe import setting_names
from conf.load import SettingsError, holds_pipeline, load_values, preset_path, presets, read_toml

S = TypeVar("S", bound=Settings)


class Empty:
    """Default of a field that is left empty."""


EMPTY = Empty()


class FormField(NamedTuple):
    """One field of the form."""

    annotation: Any
    default: Any
    description: str


class Shortcut(NamedTuple):
    """A field on top of the form that stands for one setting."""

    setting: str
    """Dotted name, within the pipeline."""
    kind: Any
    description: str

    @property
    def field(self) -> FormField:
        # Prefect shows a nullable field as two tabs, and sends a default of null that this schema would refuse. EMPTY
        # has no JSON, so the schema has no default, and a field that is left empty is not sent.
        empty_is_none = BeforeValidator(lambda value: None if value is EMPTY else value)
        annotation = Annotated[self.kind | None, empty_is_none, WithJsonSchema(TypeAdapter(self.kind).json_schema())]
        return FormField(annotation, EMPTY, f"{self.description} Empty: as in the preset.")


Seed = Annotated[int, Field(ge=0)]
SHORTCUTS = {
    "seed": Shortcut("seed", Seed, "Selects problems, samples and the order of training."),
    "seeds": Shortcut("seeds", Annotated[list[Seed], Field(min_length=1)], "The pipeline runs once with each."),
    "model": Shortcut(
        "model",
        Annotated[str, Field(min_length=1)],
        "A checkpoint folder on the machine that runs it, owner/name on the Hugging Face hub, or tiny.",
    ),
    "problem_count": Shortcut("problems.count", Positive, "Number of training problems."),
    "spending_cap": Shortcut(
        "llm.cap",
        PositiveFloat,
        "Maximum cost of the auxiliary model, in the currency of its prices; the run stops before exceeding it.",
    ),
}


class Override(BaseModel):
    """One setting that differs from the preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: str
    value: str = Field(description='As in TOML: 3, 5e-7, true, "text", [1, 2]. Anything else is taken as text.')


def form_fields(kind: type[Settings]) -> dict[str, FormField]:
    """The fields of the form for a pipeline, by name, in their order."""
    names: Any = Literal[tuple(setting_names(kind))]  # type: ignore[valid-type]
    override = create_model("Override", __base__=Override, setting=(names, Field(description="Name of the setting.")))
    choices: Any = Literal[tuple(presets(kind))]  # type: ignore[valid-type]
    return {
        "preset": FormField(choices, kind.model_fields["preset"].default, "The bundled settings to start from."),
        **{name: SHORTCUTS[name].field for name in _offered(kind)},
        "overrides": FormField(list[override], [], "Single settings that differ from the preset."),
        "settings": FormField(
            kind | None,
            None,
            "All settings at once. If given, the preset is not read, and what is left out has its default.",
        ),
    }


def settings_from_form(kind: type[S], form: Mapping[str, Any]) -> S:
    """The settings that a filled-in form stands for. Raises SettingsError."""
    complete: S | None = form.get("settings")
    short = {name: form[name] for name in SHORTCUTS if form.get(name, EMPTY) not in (None, EMPTY)}
    if complete and not short and not form.get("overrides"):
        return complete
    preset = form.get("preset") or kind.model_fields["preset"].default
    values = complete.model_dump(exclude_unset=True) if complete else read_toml(preset_path(kind, preset))
    inner = next((name for name in _inner_pipelines(kind) if values.get(name)), "")
    if "spending_cap" in short and not values.get(inner, values).get("llm"):
        raise SettingsError("spending_cap has no effect: this run uses no auxiliary model; leave it empty")
    assignments = [
        *(f"{_setting(name, inner)}={json.dumps(value)}" for name, value in short.items()),
        *(f"{one.setting}={one.value}" for one in form.get("overrides", ())),
    ]
    return load_values(kind, values, preset, assignments)


def _setting(shortcut: str, inner: str) -> str:
    """The dotted name of a shortcut's setting; `inner` is the pipeline that a multi-seed run repeats."""
    name = SHORTCUTS[shortcut].setting
    return f"{inner}.{name}" if inner and shortcut != "seeds" else name


def _offered(kind: type[Settings]) -> list[str]:
    """The shortcuts whose setting the pipeline has, itself or in the pipeline that it runs."""
    prefixes = ["", *(f"{name}." for name in _inner_pipelines(kind))]
    known = set(setting_names(kind))
    found = [name for name, short in SHORTCUTS.items() if any(f"{part}{short.setting}" in known for part in prefixes)]
    return [name for name in found if name != "seed" or "seeds" not in found]


def _inner_pipelines(kind: type[Settings]) -> list[str]:
    """Fields that hold the settings of another pipeline."""
    return [name for name, info in kind.model_fields.items() if holds_pipeline(info.annotation)]
