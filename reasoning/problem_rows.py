"""Converts data set rows to problems, or to the reason why a row is invalid."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from conf.datasets import Columns
from reasoning.answers.boxed import boxed
from reasoning.records import ImagePart, InvalidRow, Problem, TextPart

MAX_TEXT_CHARS = 1_000_000
"""Maximum characters of a problem or answer field."""
MAX_ANSWER_CHARS = 10_000
"""Maximum characters of an answer."""
MAX_DIGITS = 1000
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ABSENT = object()
MAX_CONCLUSION_WORDS = 3
"""Of a conclusion that can be checked: a sentence is neither number nor formula nor letter."""
_IMAGE_MARK = re.compile(r"<image(?: ?(\d{1,2}))?>\n?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ROLES = {"problem": ("user", "human"), "answer": ("assistant", "gpt", "model")}


class _InvalidProblem(Exception):
    """The row is not a valid problem."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def needed_fields(columns: Columns) -> frozenset[str]:
    """Columns that a row must have, as written in the settings."""
    single = (columns.choices,) if isinstance(columns.choices, str) and columns.choices else ()
    return frozenset((columns.problem, columns.answer, *columns.options, *single))


def optional_fields(columns: Columns) -> frozenset[str]:
    """Columns that a row may have."""
    return frozenset((columns.id, columns.level, columns.subject, *columns.image_columns)) - {""}


def image_values(row: Any, columns: Columns) -> list[Any]:
    """What the row has in the columns of images; nothing for a missing one."""
    found = [value_at(row, column) for column in columns.image_columns] if isinstance(row, Mapping) else []
    return [value for value in found if value is not _ABSENT]


def problem_of(row: Any, location: str, name: str, columns: Columns) -> Problem | InvalidRow:
    """Converts `row` to a problem without its images. `location` tells the user where the row is; `name` is the id of
    rows without one."""
    if not isinstance(row, Mapping):
        return InvalidRow(
            location=location, id=None, reason="not-an-object", detail="a row must be a JSON object with fields"
        )
    own_id = _text(value_at(row, columns.id)) if columns.id else None
    try:
        return _parse_problem(row, own_id or name, columns)
    except _InvalidProblem as error:
        return InvalidRow(location=location, id=own_id, reason=error.reason, detail=error.detail)


def _parse_problem(row: Mapping[str, Any], name: str, columns: Columns) -> Problem:
    """Raises _InvalidProblem."""
    question, given = _required_text(row, "problem", columns.problem), _required_text(row, "answer", columns.answer)
    choices = _choices(row, columns, question, given)
    answer = _answer(given, choices or (), columns.answer_is)
    if not answer:
        kind = f"columns.answer_is = {columns.answer_is!r}"
        raise _InvalidProblem("no-answer", f"field {columns.answer!r} holds no answer of the kind {kind}")
    if len(answer) > MAX_ANSWER_CHARS:
        raise _InvalidProblem("too-long", f"the right answer in field {columns.answer!r} has {len(answer)} characters")
    return Problem(
        id=name,
        prompt=(TextPart(text=with_options(question, choices)),),
        answer=answer,
        choices=choices,
        level=_level(value_at(row, columns.level)),
        subject=_text(value_at(row, columns.subject)),
    )


def with_images(problem: Problem, images: Sequence[bytes]) -> Problem:
    """A problem with its images, each where the text says, or before it."""
    prompt, order = parts_of(problem.text, len(images))
    return problem.model_copy(update={"prompt": prompt, "images": tuple(images[index] for index in order)})


def parts_of(text: str, images: int) -> tuple[tuple[TextPart | ImagePart, ...], list[int]]:
    """The prompt's parts for a text and a number of images, and the images' indices in the order of their places.

    `<image>` stands for the next image, `<image 2>` for the second. Images without a place come first. Where an image
    is named again, its number is written.
    """
    pieces: list[TextPart | ImagePart] = []
    placed: dict[int, None] = {}
    end = following = 0
    for mark in _IMAGE_MARK.finditer(text) if images else ():
        while following in placed:
            following += 1
        index = int(mark[1]) - 1 if mark[1] else following
        if not 0 <= index < images:
            continue
        pieces.append(TextPart(text=text[end : mark.start()] + (f"image {index + 1}" if index in placed else "")))
        end = mark.end()
        if index not in placed:
            pieces.append(ImagePart())
            placed[index] = None
    pieces.append(TextPart(text=text[end:]))
    first = [index for index in range(images) if index not in placed]
    parts = [part for part in pieces if part.type == "image" or part.text]
    return (*(ImagePart() for _ in first), *parts), [*first, *placed]


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Field `path`, or the value that a dotted path leads to in objects and lists; `_ABSENT` if there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list | tuple) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return _ABSENT
    return value


def _required_text(row: Mapping[str, Any], what: str, column: str) -> str:
    """Text of a required field. Raises _InvalidProblem with a message for the user."""
    value = value_at(row, column)
    if value is _ABSENT:
        known = ", ".join(map(repr, list(row)[:12])) or "none"
        detail = f"no field {column!r}; its fields: {known}. Name the right one in columns.{what}"
        raise _InvalidProblem("missing-field", detail)
    text = _text(value, _ROLES[what])
    if text is None:
        raise _InvalidProblem("missing-field", f"field {column!r} is empty or neither text nor a number")
    if len(text) > MAX_TEXT_CHARS:
        raise _InvalidProblem(
            "too-long", f"field {column!r} has {len(text)} characters; more than {MAX_TEXT_CHARS} are no problem"
        )
    return text


def written_text(value: Any) -> str | None:
    """Text of a model's completion: text, or of messages the last one of the assistant. None if there is none."""
    return _text(value, _ROLES["answer"])


def _text(value: Any, roles: Sequence[str] = ()) -> str | None:
    """Text of a field: of a list with one entry, that entry; of messages, the last one by `roles`. None if it is
    missing, empty, or neither text nor number."""
    while isinstance(value, list | tuple) and not _are_messages(value):
        if len(value) != 1:
            return None
        value = value[0]
    if isinstance(value, list | tuple):
        value = _last_message_text(value, roles)
    text = value if isinstance(value, str) else _number(value)
    return text if text and text.strip() and _is_storable(text) else None


def _are_messages(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(entry, Mapping) and ("role" in entry or "from" in entry) for entry in value)


def _last_message_text(messages: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> str | None:
    """Text of the last message by one of `roles`. None if there is none or it contains anything but text."""
    for message in reversed(messages):
        if message.get("role", message.get("from")) in roles:
            content = message.get("content", message.get("value"))
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            texts = [_part(part) for part in parts] if isinstance(parts, list | tuple) else [None]
            return None if None in texts else "".join(filter(None, texts))
    return None


def _part(part: Any) -> str | None:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
    return text if isinstance(text, str) else None


def _number(value: Any) -> str | None:
    """A number in plain decimal notation, because `1e-05` would be read as a formula with e. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Integral | Real | Decimal):
        return None
    number = Decimal(int(value)) if isinstance(value, Integral) else Decimal(str(value))
    if not number.is_finite() or abs(number.adjusted()) > MAX_DIGITS:
        return None
    text = f"{number:f}"
    plain = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if plain == "-0" else plain


def _is_storable(text: str) -> bool:
    """False for lone surrogates, which JSON can spell but no file can store."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _choices(row: Mapping[str, Any], columns: Columns, question: str, given: str) -> tuple[str, ...] | None:
    """Options in the row's order; shuffled with the question as seed if the answer's column is one of them. None for a
    question without options, which a data set may mix with others: its answer is neither an index nor a letter. Raises
    _InvalidProblem."""
    if not columns.choices and not columns.wrong_choices:
        return None
    if isinstance(columns.choices, str) and columns.choices:
        value = value_at(row, columns.choices)
        is_free = columns.answer_is in ("plain", "choice") and given.strip() not in LETTERS
        if is_free and (value is None or value == [] or value == "[]"):
            return None
        options = _options(value, columns.choices)
    else:
        options = [_option(row, column, columns) for column in columns.options]
    if len(options) > len(LETTERS):
        raise _InvalidProblem("too-many-options", f"{len(options)} options; there are letters for {len(LETTERS)}")
    if columns.answer in columns.options:
        random.Random(question).shuffle(options)
    return tuple(options)


def _options(value: Any, column: str) -> list[str]:
    """Options from a list, or from an object with one option per letter. Raises _InvalidProblem."""
    value = _listed(value) if isinstance(value, str) else value
    values = [given for given in value.values() if given is not None] if isinstance(value, Mapping) else value
    texts = [_text(given) for given in values] if isinstance(values, list | tuple) else []
    options = [text for text in texts if text is not None]
    if not options or len(options) < len(texts):
        detail = f"field {column!r} is no list of options; leave columns.choices empty if there are none"
        raise _InvalidProblem("missing-field", detail)
    return options


def _listed(text: str) -> Any:
    """A list that is spelled as text, as in MMMU; the text where it spells none."""
    try:
        return ast.literal_eval(text) if text.startswith("[") and len(text) <= MAX_ANSWER_CHARS else text
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _option(row: Mapping[str, Any], column: str, columns: Columns) -> str:
    """One option from its own column. Raises _InvalidProblem."""
    text = _text(value_at(row, column))
    if text is None:
        setting = "wrong_choices" if columns.wrong_choices else "choices"
        raise _InvalidProblem("missing-field", f"field {column!r} of columns.{setting} is absent or empty")
    return text


def _answer(text: str, choices: Sequence[str], kind: str) -> str | None:
    """Answer in the format `kind`. None or empty if there is none."""
    if kind == "conclusion":
        stated = (
            text.rpartition("<CONCLUSION>")[2].partition("</CONCLUSION>")[0].strip() if "<CONCLUSION>" in text else ""
        )
        return stated if len(stated.split()) <= MAX_CONCLUSION_WORDS else None
    if kind == "choice" and choices:
        same = [index for index, choice in enumerate(choices) if choice.strip() == text.strip()]
        return LETTERS[same[0]] if len(same) == 1 else None
    if kind == "index" and choices:
        return LETTERS[int(text)] if text in map(str, range(len(choices))) else None
    if kind == "boxed":
        return boxed(text)
    if kind == "hashes":
        _, hashes, rest = text.rpartition("####")
        line = rest.strip().partition("\n")[0].strip() if hashes else ""
        return _THOUSANDS.sub("", line)
    return text.strip()


def with_options(problem: str, choices: tuple[str, ...] | None) -> str:
    """The problem's text, with lettered options if there are any."""
    if not choices:
        return problem
    return problem + "\n" + "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _level(value: Any) -> int | None:
    """Integer part of a number below 1,000, or the last such number in a text like "Level 5". None for anything
    else."""
    digits = re.findall(r"(?<![\d.,-])\d{1,3}(?!\d)", _text(value) or "")
    return int(digits[-1]) if digits else None
