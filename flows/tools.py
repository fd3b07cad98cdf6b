"""Commands over JSON Lines files: a row in, the same row with one more field out, in order, as they come.

Knows: files, lines. Must not know: the command line, Prefect, runs, stores.

Every line of the input gives one line of the output: one that cannot be used comes out with an `error`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from conf.errors import ReadableError
from conf.problems import NgramOverlap
from conf.segmentation import MARKERS, Segmentation
from reasoning.answers.boxed import boxed
from reasoning.answers.verifier import Question, Verifier
from reasoning.contamination import Overlap
from reasoning.records import Problem, TextPart
from reasoning.segment import segment_text

Row = dict[str, Any]
PROBLEM_FIELDS = ("problem", "text", "question")
_FIELDS = "problem, text or question"
AT_ONCE = 64
"""Rows that are worked on together, before the first of them is written."""


class ToolError(ReadableError):
    """A file that cannot be read, or rows that cannot be used."""


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


def segment_traces(path: str, min_chars: int) -> None:
    """Writes each row with `segments`: its `text` as the run's segmenter cuts it, in the row's `language`."""

    def cut(row: Row) -> Row:
        language = row.get("language", "english")
        if language not in list(MARKERS):
            return row | {"error": f"no markers for language {language!r}; it must be one of {', '.join(MARKERS)}"}
        longest = Segmentation.model_fields["max_chars"].default
        return row | {"segments": segment_text(row["text"], MARKERS[language], min_chars, longest)}

    annotate(read_rows(path), ["text"], lambda rows: [cut(row) for row in rows])


def find_overlap(path: str, other: str) -> None:
    """Writes each row of `path` with `overlap`: the closest row of `other` that says the same, or null. Raises
    ToolError at the end where rows of `other` could not be used."""
    rows = dict(numbered_rows(other))
    held = {str(line): text for line, row in rows.items() if (text := _problem_text(row)) is not None}
    gate = NgramOverlap()
    overlap = Overlap({other: [_problem(line, text) for line, text in held.items()]}, gate.ngram_size, gate.min_overlap)

    def look_up(row: Row) -> Row:
        text = _problem_text(row)
        if text is None:
            return row | {"error": f"no text in {_FIELDS}; its fields: {', '.join(row) or 'none'}"}
        match = overlap.match(_problem("", text))
        if match is None:
            return row | {"overlap": None}
        line = int(match.benchmark_id)
        found = {"line": line, "id": rows[line].get("id"), "text": match.benchmark_text, "share": match.share}
        return row | {"overlap": found}

    annotate(read_rows(path), [], lambda rows: [look_up(row) for row in rows])
    if unusable := [line for line in rows if str(line) not in held]:
        raise ToolError(f"{other}:{unusable[0]}: {len(unusable)} of {len(rows)} rows have no text in {_FIELDS}")


def _problem_text(row: Row) -> str | None:
    return next((row[name] for name in PROBLEM_FIELDS if isinstance(row.get(name), str)), None)


def _problem(name: str, text: str) -> Problem:
    return Problem(id=name, prompt=(TextPart(text=text),), answer="")


def read_rows(path: str) -> Iterator[Row]:
    """Each line's object; `{"error": …}` for a line that is none. `-` reads standard input. Raises ToolError."""
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: str) -> Iterator[tuple[int, Row]]:
    """The same with the number of each line; blank ones are left out."""
    try:
        file = sys.stdin if path == "-" else Path(path).open(encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}; name a JSON Lines file, or - for standard input") from None
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(line, f"{path}:{number}")


def _object(line: str, ctx: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"error": f"{ctx}: not JSON: {error}"}
    return row if isinstance(row, dict) else {"error": f"{ctx}: not a JSON object"}


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
            done = row if "error" in row else next(changed)
            total, unusable = total + 1, unusable + ("error" in done)
            _write(done)
        sys.stdout.flush()
    if unusable:
        raise ToolError(f"{unusable} of {total} rows could not be used; field error of their lines says why")


def _write(row: Row) -> None:
    sys.stdout.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n")
