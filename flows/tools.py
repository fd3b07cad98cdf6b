"""Commands over JSON Lines files: a row in, the same row with one more field out, in order, as they come.

Knows: files, lines, what a person typed. Must not know: Prefect, runs, stores.

Every line of the input gives one line of the output: one that cannot be used comes out with an `error`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from conf.errors import ReadableError
from reasoning.answers import boxed
from reasoning.verifier import Question, Verifier

Row = dict[str, Any]
AT_ONCE = 64
"""Rows that are worked on together, before the first of them is written."""


class ToolError(ReadableError):
    """A file that cannot be read, or rows that cannot be used."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands of this module to the command line."""
    answers = commands.add_parser("check-answers", help="say of each answer of a file whether it is right")
    answers.add_argument("file", help="JSON Lines with gold, said and, where there are options, choices; - reads stdin")
    answers.set_defaults(act=lambda options: check_answers(options.file))


def check_answers(path: str) -> None:
    """Adds `verdict` to each row: right, wrong, no-answer or timeout. In `said`, a last \\boxed{…} is the answer."""
    with Verifier() as verifier:
        annotate(read_rows(path), ("gold", "said"), lambda rows: _with_verdicts(verifier, rows))


def _with_verdicts(verifier: Verifier, rows: Sequence[Row]) -> list[Row]:
    questions = [Question(_answer_of(row["said"]), row["gold"], _choices_of(row)) for row in rows]
    return [row | {"verdict": verdict.value} for row, verdict in zip(rows, verifier.check(questions), strict=True)]


def _answer_of(said: str) -> str | None:
    return boxed(said) if "\\boxed" in said or "\\fbox" in said else said


def _choices_of(row: Row) -> tuple[str, ...] | None:
    choices = row.get("choices")
    return tuple(map(str, choices)) if isinstance(choices, list) and choices else None


def read_rows(path: str) -> Iterator[Row]:
    """Each line's object; `{"error": …}` for a line that is none. `-` reads standard input. Raises ToolError."""
    try:
        file = sys.stdin if path == "-" else Path(path).open(encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}; name a JSON Lines file, or - for standard input") from None
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _object(line, f"{path}:{number}")


def _object(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"error": f"{place}: not JSON: {error}"}
    return row if isinstance(row, dict) else {"error": f"{place}: not a JSON object"}


def lacks(row: Row, fields: Sequence[str]) -> str:
    """Which of `fields` the row does not have as text; empty where it has all."""
    missing = [name for name in fields if not isinstance(row.get(name), str)]
    return f"no text in field {', '.join(missing)}; its fields: {', '.join(row) or 'none'}" if missing else ""


def annotate(rows: Iterable[Row], fields: Sequence[str], change: Callable[[Sequence[Row]], Sequence[Row]]) -> None:
    """Writes each row as `change` gives it back. Raises ToolError at the end where rows could not be used."""
    rows, unusable, total = iter(rows), 0, 0
    while group := list(islice(rows, AT_ONCE)):
        marked = [row if "error" in row else row | ({"error": e} if (e := lacks(row, fields)) else {}) for row in group]
        changed = iter(change([row for row in marked if "error" not in row]))
        for row in marked:
            total, unusable = total + 1, unusable + ("error" in row)
            _write(row if "error" in row else next(changed))
        sys.stdout.flush()
    if unusable:
        raise ToolError(f"{unusable} of {total} rows could not be used; field error of their lines says why")


def _write(row: Row) -> None:
    sys.stdout.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n")
