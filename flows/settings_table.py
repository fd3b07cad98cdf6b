"""Tables of settings and presets, and the JSON schemas of presets."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conf.base import Settings
from conf.describe import Setting, describe
from conf.load import SettingsError, assign, load, preset_path, presets, read_toml
from conf.pipelines import PIPELINES
from conf.schema import preset_schema

LONGEST_VALUE = 60
"""Characters of a value; the markers of a language would fill a screen."""
PIPED_WIDTH = 200
"""Columns where the output is no terminal."""


def print_settings(kind: type[Settings], preset: str, assignments: Sequence[str], section: str) -> None:
    """Prints every setting whose dotted name is `section` or begins with it; all of them where it is empty.
    Raises SettingsError where there is none, and for mistakes in the settings."""
    loaded = load(kind, preset, assignments)
    given = assign(read_toml(preset_path(kind, preset)), assignments)
    rows = describe(loaded, given, assign({}, assignments))
    chosen = [row for row in rows if not section or f"{row.name}.".startswith(f"{section}.")]
    if not chosen:
        known = dict.fromkeys(row.name.partition(".")[0] for row in rows)
        raise SettingsError(f"no setting {section!r}; known: {', '.join(known)}")
    console().print(_settings_table(chosen, Path(preset).stem))


def _settings_table(rows: Sequence[Setting], preset: str) -> Table:
    table = Table(show_lines=True)
    for name, ratio in (("setting", 4), ("value", 4), ("type", 3), ("default", 3), ("from", 2), ("meaning", 7)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for row in rows:
        origin = f"preset {preset}" if row.origin == "preset" else row.origin
        limited = f"{row.type}, {row.bounds}" if row.bounds else row.type
        cells = (row.name, _short(row.value), limited, _short(row.default), origin or f"with {row.condition}")
        table.add_row(*map(Text, (*cells, row.description)), style="dim" if row.condition else "")
    return table


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def print_schema(kind: type[Settings]) -> None:
    """Prints the JSON schema that every preset of the pipeline follows."""
    print(json.dumps(preset_schema(kind), indent=2, ensure_ascii=False))


def print_presets() -> None:
    """Prints the bundled presets of each pipeline, with the comment that opens each file."""
    table = Table("pipeline", "preset", "what it is")
    for pipeline, kind in PIPELINES.items():
        for name, path in presets(kind).items():
            table.add_row(pipeline, name, Text(_opening_comment(path)))
    console().print(table)


def _opening_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def console() -> Console:
    """Prints in the terminal's width, or in PIPED_WIDTH."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
