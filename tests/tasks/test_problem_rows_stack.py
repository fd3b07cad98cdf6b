"""Rows of many forms, read from files and checked by the real answer check."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.datasets import Columns
from conf.problems import ProblemFile
from reasoning.answers.verifier import Verifier
from reasoning.problem_rows import needed_fields, optional_fields
from reasoning.records import Problem, Verdict
from tasks.steps.problem_files import Fields, ProblemsRefused, files_of, rows_of
from tasks.steps.problem_intake import Intake, NamedRow

IN_PARQUET = {
    "float32 0.1 in Parquet": pa.array([0.1], pa.float32()),
    "decimal 2.50 in Parquet": pa.array([Decimal("2.50")], pa.decimal128(5, 2)),
}


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier() as verifier:
        yield verifier


def read(path: Path, columns: Columns, verifier: Verifier) -> Intake:
    intake = Intake(ProblemFile(path=str(path), columns=columns), verifier)
    fields = Fields(needed_fields(columns), optional_fields(columns))
    rows = (row for name in files_of(str(path)) for row in rows_of(name, fields))
    intake.take_all(NamedRow(f"row-{index}", "", row) for index, row in enumerate(rows))
    return intake


def problem_of(row: dict[str, Any], columns: Columns, folder: Path, verifier: Verifier) -> Problem:
    """The problem from a file with this one row. Raises ProblemsRefused."""
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    column = IN_PARQUET.get(str(row.get("answer")))
    if column is not None:
        path = folder / "rows.parquet"
        pq.write_table(pa.table({"problem": [row["problem"]], "answer": column}), path)
    intake = read(path, columns, verifier)
    intake.validate(str(path))
    (problem,) = intake.problems
    return problem


def is_right(problem: Problem, answer: str, verifier: Verifier) -> bool:
    ((verdict,),) = verifier.verdicts([problem], [[answer]])
    return verdict is Verdict.RIGHT


def test_each_public_case(cases: Callable[[str], list[dict[str, Any]]], tmp_path: Path, verifier: Verifier):
    wrong = []
    for case in cases("problem_rows.jsonl"):
        expected = case["expect"]
        try:
            problem = problem_of(case["row"], Columns.model_validate(case.get("columns", {})), tmp_path, verifier)
        except ProblemsRefused as error:
            wrong.append((case["row"], str(error)))
            continue
        texts = re.search(r"problem '(.*)', answer '(.*)'", expected)
        equal = re.search(r"equal to (\S+)(?: and (\S+), not to (\S+))?$", expected)
        # "equal to A and B, not to C"
        values = [value for value in (equal.groups() if equal else ()) if value]
        passed = [is_right(problem, value, verifier) == (index < 2) for index, value in enumerate(values)]
        if texts:
            passed.append((problem.text, problem.answer) == texts.groups())
        if "three choices" in expected:
            passed.append(len(problem.choices or ()) == 3)
        if not all(passed) or not (passed or "readable" in expected):
            wrong.append((case["row"], problem))
    assert not wrong


def test_each_public_case_of_a_remote_path(cases: Callable[[str], list[dict[str, Any]]], monkeypatch: Any):
    (case,) = (case for case in cases("checkpoints.jsonl") if "problems.path" in case)
    assert case["expect"] == "one line with the remedy"
    protocols = re.findall(r"(\w+)://", case["problems.path"])
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for protocol in protocols:
        with pytest.raises(ProblemsRefused) as refused:
            files_of(f"{protocol}://bucket/rows.jsonl")
        assert "\n" not in str(refused.value)
        assert re.search("install it, or copy the file here|name a local path", str(refused.value))


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        ({"answer": 2.5e-7}, "2.5 \\cdot 10^{-7}", "2.5e - 7"),
        ({"answer": 1e21}, "10^{21}", "e+21"),
        ({"answer": "-\\$0.50"}, "-0.5", "0.5"),
        ({"answer": ["\\frac{1}{3}"]}, "1/3", "1"),
        ({"answer": 0.30000000000000004}, "0.30000000000000004", "0.3"),
    ],
)
def test_an_answer_is_checked_by_its_value(
    row: dict[str, Any], right: str, wrong: str, tmp_path: Path, verifier: Verifier
):
    problem = problem_of({"problem": "?", **row}, Columns(), tmp_path, verifier)
    assert is_right(problem, right, verifier)
    assert not is_right(problem, wrong, verifier)


def test_nearly_all_public_problems_can_be_read(real_data: Path, verifier: Verifier):
    unreadable = {}
    for name in ("aime24", "amc23", "gaokao2023en", "math500", "math_train_sample2000", "gsm8k_test"):
        intake = read(real_data / f"{name}.jsonl", Columns(), verifier)
        assert not intake.malformed
        unreadable[name] = len(intake.unreadable)
    assert sum(unreadable.values()) <= 5, unreadable  # of 4,272
