"""From a row of somebody's data set to a problem, or to the reason why it is none.

Knows: column names, what a problem needs. Must not know: files, hubs, where a row lies.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from conf.datasets import Columns
from reasoning.answers import boxed
from reasoning.records import BadRow, Problem, TextPart

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def problem_of(row: Any, place: str, name: str, columns: Columns) -> Problem | BadRow:
    """The problem in `row`. `place` tells a person where the row lies; `name` is its id where it has no own."""
    if not isinstance(row, Mapping):
        return BadRow(place=place, id=None, reason="not-an-object", detail="a row must be a JSON object with fields")
    own_id = _text(row.get(columns.id)) if columns.id else None
    missing = _missing(row, columns)
    if missing:
        return BadRow(place=place, id=own_id, reason="missing-field", detail=missing)
    choices = _choices(row, columns)
    answer = _answer(row[columns.answer], choices or (), columns.answer_is)
    if not answer:
        detail = f"field {columns.answer!r} holds no answer of the kind columns.answer_is = {columns.answer_is!r}"
        return BadRow(place=place, id=own_id, reason="no-answer", detail=detail)
    level = row.get(columns.level) if columns.level else None
    return Problem(
        id=own_id or name, prompt=(TextPart(text=_asked(_text(row[columns.problem]) or "", choices)),), answer=answer,
        choices=choices, level=_level(level),
    )  # fmt: skip


def _text(value: Any) -> str | None:
    """A field's text; None when it is absent, empty or no text or number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text if text.strip() and _is_storable(text) else None


def _is_storable(text: str) -> bool:
    """JSON can spell lone surrogates, which no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _missing(row: Mapping[str, Any], columns: Columns) -> str | None:
    """What a person has to hear about the first needed field that is absent or empty."""
    needed = [("problem", columns.problem), ("answer", columns.answer)]
    for what, column in needed:
        if column not in row:
            known = ", ".join(map(repr, list(row)[:12])) or "none"
            return f"no field {column!r}; its fields: {known}. Name the right one in columns.{what}"
        value = row[column]
        if _text(_only(value)) is None:
            return f"field {column!r} is empty or neither text nor a number"
    for column in columns.wrong_choices:
        if _text(row.get(column)) is None:
            return f"field {column!r} of columns.wrong_choices is absent or empty"
    if columns.choices:
        options = row.get(columns.choices)
        if not isinstance(options, list | tuple) or not options or any(_text(option) is None for option in options):
            return f"field {columns.choices!r} is no list of options; leave columns.choices empty if there are none"
    return None


def _choices(row: Mapping[str, Any], columns: Columns) -> tuple[str, ...] | None:
    """The options, in the row's order; those in columns of their own in one that the question alone decides."""
    if columns.choices:
        return tuple(_text(choice) or "" for choice in row[columns.choices])
    if columns.wrong_choices:
        options = [_text(row[column]) or "" for column in (columns.answer, *columns.wrong_choices)]
        random.Random(_text(row[columns.problem])).shuffle(options)
        return tuple(options)
    return None


def _only(value: Any) -> Any:
    """The one entry of a list; anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _answer(value: Any, choices: Sequence[str], kind: str) -> str | None:
    """None or nothing where there is none of that kind."""
    text = _text(_only(value)) or ""
    if kind == "choice":
        return _letter(choices.index(text))
    if kind == "index":
        return _letter(int(text)) if text in map(str, range(len(choices))) else None
    if kind == "boxed":
        return boxed(text)
    if kind == "hashes":
        _, hashes, rest = text.rpartition("####")
        line = rest.strip().partition("\n")[0].strip() if hashes else ""
        return _THOUSANDS.sub("", line)
    return text.strip()


def _asked(problem: str, choices: tuple[str, ...] | None) -> str:
    """The question, with lettered options where there are any."""
    if not choices:
        return problem
    return problem + "\n" + "\n".join(f"({_letter(index)}) {choice}" for index, choice in enumerate(choices))


def _level(value: Any) -> int | None:
    """A whole number below 1,000, or the last one in a text such as "Level 5"; None for anything else."""
    digits = re.findall(r"\d+", _text(value) or "")
    return int(digits[-1]) if digits and len(digits[-1]) < 4 else None
