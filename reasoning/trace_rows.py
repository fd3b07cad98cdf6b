"""Reads the traces in a row of a data set: thinking and reply, with the data set's own tags.

It knows rows and the settings of a data set's traces. It must not know files, tokenizers or verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from conf.cot_distillation import DatasetTeacher
from reasoning.answers.boxed import boxed
from reasoning.problem_rows import value_at, written_text
from reasoning.thinking import reply_without_tags, thought_of


class RowTrace(NamedTuple):
    """Thinking and reply of one trace, without tags."""

    thought: str
    reply: str


class InvalidTrace(NamedTuple):
    """Why a row has no usable trace."""

    reason: str
    detail: str
    """What is wrong and how to fix it, for the user."""


def trace_fields(teacher: DatasetTeacher) -> frozenset[str]:
    """Columns that hold the traces."""
    return frozenset({teacher.column, teacher.reply_column} - {""})


def traces_in(row: Mapping[str, Any], teacher: DatasetTeacher) -> list[RowTrace | InvalidTrace]:
    """The traces of a row: one, or as many as its list has. An entry that cannot be used says why."""
    texts = _texts(row, teacher.column)
    if not teacher.reply_column:
        return [_split(text, teacher) if text else _missing(row, teacher.column) for text in texts]
    replies = _texts(row, teacher.reply_column)
    if len(texts) != len(replies):
        detail = f"{len(texts)} traces in {teacher.column!r} and {len(replies)} replies in {teacher.reply_column!r}"
        return [InvalidTrace("no-reply", f"{detail}; correct teacher.reply_column")]
    return [_paired(row, text, reply, teacher) for text, reply in zip(texts, replies, strict=True)]


def _texts(row: Mapping[str, Any], column: str) -> list[str | None]:
    """The texts in a column: of a list of texts each, otherwise one. None where there is no text."""
    value = value_at(row, column)
    is_list = isinstance(value, list | tuple) and all(entry is None or isinstance(entry, str) for entry in value)
    return [written_text(entry) for entry in (value if is_list else [value])]


def _missing(row: Mapping[str, Any], column: str) -> InvalidTrace:
    known = ", ".join(map(repr, list(row)[:12])) or "none"
    return InvalidTrace("no-trace", f"field {column!r} holds no trace; the row's fields: {known}")


def _paired(
    row: Mapping[str, Any], thought: str | None, reply: str | None, teacher: DatasetTeacher
) -> RowTrace | InvalidTrace:
    if not thought or not reply:
        return _missing(row, teacher.reply_column if thought else teacher.column)
    return _parts(thought, reply, teacher)


def _split(text: str, teacher: DatasetTeacher) -> RowTrace | InvalidTrace:
    thought, closed, rest = text.partition(teacher.thinking.close)
    if not closed:
        return InvalidTrace(
            "thinking-not-closed",
            f"the trace does not contain {teacher.thinking.close!r}; set teacher.thinking to the data set's tags, or "
            f"teacher.reply_column if the reply is elsewhere",
        )
    return _parts(thought, rest, teacher)


def _parts(thought: str, reply: str, teacher: DatasetTeacher) -> RowTrace | InvalidTrace:
    tags = teacher.thinking
    # Of several sections, one is the thinking. Elsewhere thinking may speak of its own tags.
    opened = thought.partition(tags.open)[2] if tags.answer_open and tags.open in thought else thought
    thinking = thought_of(opened, tags).removesuffix(tags.close)
    if not thinking.strip():
        return InvalidTrace("empty", "the thinking is empty; correct teacher.column or teacher.thinking")
    reply = reply_without_tags(reply, tags)
    if tags.answer_open and boxed(reply) is None:  # between such tags stands the answer alone
        reply = f"\n\\boxed{{{reply.strip()}}}"
    return RowTrace(thinking, reply)
