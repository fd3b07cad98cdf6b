"""Traces in rows of data sets, in the forms that public data sets use."""

from typing import Any

import pytest

from conf.cot_distillation import DatasetTeacher
from conf.prompts import Harmony, Tags
from reasoning.trace_rows import InvalidTrace, RowTrace, trace_fields, traces_in

R1 = "<think>\nTwo and two.\n</think>\n\nSo \\boxed{4}"
BEGIN = Tags(
    open="<|begin_of_thought|>",
    close="<|end_of_thought|>",
    answer_open="<|begin_of_solution|>",
    answer_close="<|end_of_solution|>",
)
READ = [
    ("OpenMathReasoning", DatasetTeacher(), {"generated_solution": R1}, [("Two and two.\n", "\n\nSo \\boxed{4}")]),
    (
        "a list of generations",
        DatasetTeacher(column="generations"),
        {"generations": [R1, "<think>Four.</think>\\boxed{4}"]},
        [("Two and two.\n", "\n\nSo \\boxed{4}"), ("Four.", "\\boxed{4}")],
    ),
    (
        "messages",
        DatasetTeacher(column="messages"),
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": R1}]},
        [("Two and two.\n", "\n\nSo \\boxed{4}")],
    ),
    (
        "named tags",
        DatasetTeacher(column="conversations.1.value", thinking=BEGIN),
        {
            "conversations": [
                {"from": "user", "value": "2+2?"},
                {
                    "from": "assistant",
                    "value": "<|begin_of_thought|>\nFour.<|end_of_thought|>\n\n<|begin_of_solution|>It is "
                    "\\boxed{4}<|end_of_solution|>",
                },
            ]
        },
        [("Four.", "It is \\boxed{4}")],
    ),
    (
        "two columns",
        DatasetTeacher(column="reasoning", reply_column="solution"),
        {"reasoning": "Two and two.", "solution": "\\boxed{4}"},
        [("Two and two.", "\\boxed{4}")],
    ),
    (
        "two columns of which one has tags",
        DatasetTeacher(column="reasoning", reply_column="solution"),
        {"reasoning": "<think>Two and two.</think>", "solution": "\\boxed{4}"},
        [("Two and two.", "\\boxed{4}")],
    ),
    (
        "channels of gpt-oss",
        DatasetTeacher(column="text", thinking=Harmony()),
        {"text": f"{Harmony.open}Four.{Harmony.close}\\boxed{{4}}"},
        [("Four.", "\\boxed{4}")],
    ),
]


@pytest.mark.parametrize(("teacher", "row", "expected"), [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_traces_of_a_row(teacher: DatasetTeacher, row: dict[str, Any], expected: list[tuple[str, str]]):
    assert traces_in(row, teacher) == [RowTrace(*parts) for parts in expected]


@pytest.mark.parametrize(
    ("teacher", "row", "reason", "detail"),
    [
        (DatasetTeacher(), {"solution": R1}, "no-trace", "'solution'"),
        (DatasetTeacher(), {"generated_solution": None}, "no-trace", "holds no trace"),
        (DatasetTeacher(), {"generated_solution": {"text": R1}}, "no-trace", "holds no trace"),
        (DatasetTeacher(), {"generated_solution": "  "}, "no-trace", "holds no trace"),
        (DatasetTeacher(), {"generated_solution": "So \\boxed{4}"}, "thinking-not-closed", "teacher.thinking"),
        (DatasetTeacher(), {"generated_solution": "<think>\n\n</think>\\boxed{4}"}, "empty", "is empty"),
        (DatasetTeacher(reply_column="x"), {"generated_solution": R1}, "no-trace", "'x'"),
        (
            DatasetTeacher(reply_column="x"),
            {"generated_solution": [R1, R1], "x": "\\boxed{4}"},
            "no-reply",
            "2 traces in 'generated_solution' and 1 replies in 'x'",
        ),
    ],
)
def test_a_row_without_a_usable_trace_says_why(teacher: DatasetTeacher, row: dict[str, Any], reason: str, detail: str):
    (found,) = traces_in(row, teacher)
    assert isinstance(found, InvalidTrace)
    assert found.reason == reason
    assert detail in found.detail


def test_one_bad_entry_of_a_list_leaves_the_others():
    found = traces_in({"generated_solution": [R1, "cut off"]}, DatasetTeacher())
    assert [type(trace) for trace in found] == [RowTrace, InvalidTrace]


def test_a_reply_belongs_to_the_thinking_at_its_place():
    row = {"t": ["a", "", "b", None], "r": ["x", "y", "", "z"]}
    found = traces_in(row, DatasetTeacher(column="t", reply_column="r"))
    assert found[0] == RowTrace("a", "x")
    assert [type(one) for one in found[1:]] == [InvalidTrace] * 3
    assert [type(one) for one in traces_in({"generated_solution": [R1, None]}, DatasetTeacher())] == [
        RowTrace,
        InvalidTrace,
    ]


def test_only_named_columns_are_read():
    assert trace_fields(DatasetTeacher()) == {"generated_solution"}
    assert trace_fields(DatasetTeacher(column="a.b", reply_column="c")) == {"a.b", "c"}
