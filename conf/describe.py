"""Describes every setting of a pipeline: type, bounds, default, meaning, value and the origin of the value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic_core import to_jsonable_python

from conf.base import Settings
from conf.load import holds_pipeline, sections_of
from conf.redaction import redacted

COMPARISONS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LENGTHS = {"minItems": "items ≥", "maxItems": "items ≤", "minLength": "length ≥", "pattern": "matches"}
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Setting:
    """One row of `brevity settings`."""

    name: str
    """Dotted, as `--set` takes it."""
    value: str
    """As TOML writes it, for plain values; empty for a setting that `condition` keeps out of use."""
    type: str
    bounds: str
    default: str
    description: str
    origin: str
    """default, preset, --set, or computed (a default that other settings decide); empty with a `condition`."""
    condition: str = ""
    """What must be set for the setting to exist, such as problems.type=file; empty where it exists."""


@dataclass(frozen=True)
class _Section:
    """A group of settings under way. `values` and `defaults` are None where the group is not in use."""

    kind: type[Settings]
    values: Settings | None
    defaults: Settings | None
    given: Mapping[str, Any]
    """What preset and assignments hold for it, under present names."""
    assigned: Mapping[str, Any]
    prefix: str = ""
    condition: str = ""

    def value(self, field: str) -> Any:
        return getattr(self.values, field, None)

    def default(self, field: str) -> Any:
        """Of the group's own default where there is one: `Stories(count=480)` beats the 800 of its class."""
        if type(self.defaults) is self.kind:
            return getattr(self.defaults, field)
        info = self.kind.model_fields[field]
        if info.is_required() or info.default_factory_takes_validated_data:
            return None
        return info.get_default(call_default_factory=True)

    def origin(self, field: str) -> str:
        if self.values is None:
            return ""
        if field in self.given:
            return "--set" if field in self.assigned else "preset"
        return "default" if self.value(field) == self.default(field) else "computed"


def describe(settings: Settings, given: Mapping[str, Any], assigned: Mapping[str, Any]) -> list[Setting]:
    """Every setting of a pipeline, in the order of its class. `given` holds the raw values of the preset with the
    assignments applied, `assigned` those of the assignments alone. Sections that are not in use come with the
    `condition` of their use; other pipelines within a pipeline are not opened."""
    kind = type(settings)
    return _merged(_rows(_Section(kind, settings, None, kind.with_new_names(given), kind.with_new_names(assigned))))


def _merged(rows: Iterable[Setting]) -> list[Setting]:
    """One row for a setting that several alternatives have alike; its conditions are joined."""
    found: dict[Setting, list[str]] = {}
    for row in rows:
        found.setdefault(replace(row, condition=""), []).append(row.condition)
    return [replace(row, condition=" or ".join(conditions)) for row, conditions in found.items()]


def setting_names(kind: type[Settings], prefix: str = "") -> list[str]:
    """The dotted names of all settings, of each alternative of a union too."""
    names: list[str] = []
    for field, info in kind.model_fields.items():
        choices = sections_of(info.annotation).values()
        nested = [name for choice in choices for name in setting_names(choice, f"{prefix}{field}.")]
        names += nested or [f"{prefix}{field}"]
    return list(dict.fromkeys(names))


def _rows(section: _Section) -> Iterator[Setting]:
    for field in section.kind.model_fields:
        choices = sections_of(section.kind.model_fields[field].annotation)
        if not choices:
            yield _row(section, field)
        elif section.value(field) is None and holds_pipeline(section.kind.model_fields[field].annotation):
            yield replace(_row(section, field), type="pipeline")
        else:
            yield from _nested(section, field, choices)


def _nested(section: _Section, field: str, choices: Mapping[str, type[Settings]]) -> Iterator[Setting]:
    """The rows of the section in use, then those that only an alternative has."""
    used = section.value(field)
    if used is None and section.values is not None:
        yield replace(_row(section, field), type="section")
    for kind in sorted(choices.values(), key=lambda kind: kind is not type(used)):
        rows = list(_rows(_inner(section, field, kind, used)))
        if kind is type(used):
            yield from (_with_choices(row, f"{section.prefix}{field}.type", choices) for row in rows)
        else:
            yield from (row for row in rows if not _is_shared(row, section, field, type(used)))


def _inner(section: _Section, field: str, kind: type[Settings], used: Any) -> _Section:
    name, default = f"{section.prefix}{field}", section.default(field)
    if kind is type(used):
        raw = (source.get(field) for source in (section.given, section.assigned))
        given, assigned = (kind.with_new_names(values) if isinstance(values, dict) else {} for values in raw)
        return _Section(kind, used, default, given, assigned, f"{name}.", section.condition)
    return _Section(kind, None, default, {}, {}, f"{name}.", _condition(section, field, kind))


def _condition(section: _Section, field: str, kind: type[Settings]) -> str:
    """What brings a section of this kind into use."""
    name, info = f"{section.prefix}{field}", section.kind.model_fields[field]
    always = info.is_required() or info.default_factory or type(section.default(field)) is kind
    if section.values is None and always and info.annotation is kind:
        return section.condition
    return f"{name}.type={kind.model_fields['type'].default}" if "type" in kind.model_fields else f"{name} given"


def _is_shared(row: Setting, section: _Section, field: str, used: type) -> bool:
    """Whether the section in use has the same field, so that the row says nothing new."""
    name = row.name.removeprefix(f"{section.prefix}{field}.")
    if name == "type":
        return True
    if not issubclass(used, Settings) or name not in used.model_fields:
        return False
    other = _row(_Section(used, None, None, {}, {}), name)
    return (other.type, other.bounds, other.default) == (row.type, row.bounds, row.default)


def _with_choices(row: Setting, name: str, choices: Mapping[str, type[Settings]]) -> Setting:
    return replace(row, type=" | ".join(choices)) if row.name == name else row


def _row(section: _Section, field: str) -> Setting:
    schema = _properties(section.kind)[field]
    return Setting(
        name=f"{section.prefix}{field}",
        value="" if section.values is None else _shown(section.value(field)),
        type=_type(schema),
        bounds=", ".join(dict.fromkeys(_bounds(schema))),
        default=_default(section, field),
        description=" ".join((section.kind.model_fields[field].description or "").split()),
        origin=section.origin(field),
        condition=section.condition,
    )


def _default(section: _Section, field: str) -> str:
    info = section.kind.model_fields[field]
    if info.is_required():
        return "required"
    return "computed" if info.default_factory_takes_validated_data else _shown(section.default(field))


@cache
def _properties(kind: type[Settings]) -> dict[str, Any]:
    return kind.model_json_schema()["properties"]


def _shown(value: Any) -> str:
    if value is None:
        return NOT_GIVEN
    return redacted(json.dumps(to_jsonable_python(value), ensure_ascii=False))


def _type(schema: Mapping[str, Any]) -> str:
    """In words: `integer`, `list of string`, `a | b`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2].replace("JsonValue", "any")
    if "const" in schema or "enum" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(word for part in alternatives if (word := _type(part)) != "null")
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object":
        held = schema.get("additionalProperties")
        return f"table of {_type(held if isinstance(held, dict) else {})}"
    return schema.get("type", "any")


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    """Of the value itself and of what it holds."""
    yield from (f"{sign} {schema[key]}" for key, sign in (COMPARISONS | LENGTHS).items() if key in schema)
    inner = (schema.get(key) for key in ("items", "additionalProperties"))
    for part in (*schema.get("anyOf", ()), *inner):
        if isinstance(part, dict):
            yield from _bounds(part)
