"""Loads settings from a preset or a TOML file and `--set` assignments, and explains mistakes (decision 12)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic_core import ErrorDetails

from conf.base import Settings
from conf.errors import ReadableError
from conf.redaction import names_secret, redacted

PRESETS = Path(__file__).parent / "presets"
S = TypeVar("S", bound=Settings)


class SettingsError(ReadableError):
    """A mistake in the settings, worded for the person who made it."""


def load(kind: type[S], preset: str, assignments: Sequence[str] = ()) -> S:
    """Settings of `kind` from `preset` (a bundled name or a path to a .toml) with `a.b=value` assignments applied.

    Raises SettingsError naming the file or assignment, the field, and the remedy.
    """
    return load_values(kind, read_toml(preset_path(kind, preset)), preset, assignments)


def load_values(kind: type[S], values: dict[str, Any], preset: str, assignments: Sequence[str]) -> S:
    """As `load`, with the preset's values given. They are changed in place."""
    name = Path(preset).name.removesuffix(".toml")
    assign(values, assignments).setdefault("preset", name)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error, kind, f"{name}.toml")) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The file's values as they stand there. Raises SettingsError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None


def presets(kind: type[Settings]) -> dict[str, Path]:
    """The bundled presets of a pipeline, by name."""
    folder = PRESETS / kind.model_fields["pipeline"].default
    return {path.name.removesuffix(".toml"): path for path in sorted(folder.glob("*.toml"))}


def preset_path(kind: type[Settings], preset: str) -> Path:
    """The file of a bundled preset, or the file itself. Raises SettingsError where there is none."""
    if preset.endswith(".toml"):
        if not Path(preset).is_file():
            raise SettingsError(f"{preset}: no such file")
        return Path(preset)
    known = presets(kind)
    if preset not in known:
        pipeline = kind.model_fields["pipeline"].default
        raise SettingsError(
            f"unknown preset {preset!r} for {pipeline}; known: {', '.join(known)}, or a path to a .toml"
        )
    return known[preset]


def assign(values: dict[str, Any], assignments: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Applies each `a.b=value` to `values`, in place. Raises SettingsError, which names the `option`."""
    for assignment in assignments:
        _assign(values, assignment, option)
    return values


def _assign(values: dict[str, Any], assignment: str, option: str) -> None:
    """The value is read as TOML, and as plain text where that fails."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise SettingsError(f"{option} {_named(assignment)}: write it as section.field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, field = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise SettingsError(f"{option} {_named(assignment)}: {section} is a field, not a section")
    values[field] = value


def _named(assignment: str) -> str:
    """The setting's name alone: the value may be a key."""
    return redacted(re.match(r"[\w.-]*", assignment)[0])  # type: ignore[index]


def _explain(error: ValidationError, kind: type[Settings], file: str) -> str:
    lines = []
    for item in error.errors():
        where, section = _locate(kind, item["loc"])
        what = item["msg"]
        if item["type"] == "extra_forbidden":
            what = "unknown setting"
        elif item["type"] == "union_tag_invalid":
            where, what = [*where, "type"], f"must be one of {item.get('ctx', {})['expected_tags']}"
        elif item["type"] == "union_tag_not_found":
            what = f"is a section, not a value; set {'.'.join(where)}.type or another of its fields"
        given = f" (given: {item['input']!r})" if _may_be_shown(item, where) else ""
        hint = _nearest(section, where[-1]) if item["type"] == "extra_forbidden" else ""
        lines.append(redacted(f"{file}: {'.'.join(where) or 'settings'}: {what}{given}{hint}"))
    return "\n".join(lines)


def _may_be_shown(item: ErrorDetails, where: Sequence[str]) -> bool:
    """Whole sections are too long, and what stands under a mistyped name, or under one like `key`, may be a secret."""
    if isinstance(item["input"], dict | Settings):
        return False
    if any(map(names_secret, where)):
        return False
    return item["type"] != "extra_forbidden" or isinstance(item["input"], int | float)


def _locate(kind: type[Settings], location: tuple[int | str, ...]) -> tuple[list[str], type[Settings]]:
    """The path as a person writes it, without the tags of unions, and the innermost section on it."""
    where: list[str] = []
    choices: dict[str, type[Settings]] = {}
    for part in map(str, location):
        if part in choices:
            kind, choices = choices[part], {}
            continue
        where.append(part)
        choices = sections_of(kind.model_fields[part].annotation) if part in kind.model_fields else {}
        if list(choices) == [""]:
            kind, choices = choices[""], {}
    return where, kind


def sections_of(annotation: Any) -> dict[str, type[Settings]]:
    """The sections that a field may hold, by their tag in its union."""
    if isinstance(annotation, type):
        return {"": annotation} if issubclass(annotation, Settings) else {}
    found: dict[str, type[Settings]] = {}
    for argument in get_args(annotation) if get_origin(annotation) in (Annotated, Union, UnionType) else ():
        if isinstance(argument, Tag):
            (section,) = found.values()
            found = {argument.tag: section}
        else:
            found |= sections_of(argument)
    return found


def holds_pipeline(annotation: Any) -> bool:
    """Whether a field holds the settings of a pipeline."""
    return any("pipeline" in section.model_fields for section in sections_of(annotation).values())


def _nearest(section: type[Settings], field: str) -> str:
    """A suggestion for a misspelt field."""
    if names_secret(field) and "key_variable" in section.model_fields:
        variable = section.model_fields["key_variable"].default
        return f"; keys are no settings: put it into the environment variable {variable}, or name one in key_variable"
    close = get_close_matches(field, section.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(section.model_fields)}"
