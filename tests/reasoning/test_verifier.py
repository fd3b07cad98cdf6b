import json
from pathlib import Path

import pytest

from reasoning.answers import plain_number
from reasoning.records import Verdict
from reasoning.verifier import Question, Verifier

TOWER = "9^{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2, limit=5) as verifier:
        yield verifier


def test_verdicts_come_in_order_from_both_paths(verifier: Verifier):
    questions = [
        Question("38", "38"), Question(r"\frac{1}{2}", "0.5"), Question("37", "38"), Question(None, "38"),
        Question("1+x", "x+1"), Question(" ", "38"), Question("(B)", "B", multiple_choice=True),
    ]  # fmt: skip
    assert verifier.check(questions) == [
        Verdict.RIGHT, Verdict.RIGHT, Verdict.WRONG, Verdict.NO_ANSWER, Verdict.RIGHT, Verdict.NO_ANSWER, Verdict.RIGHT,
    ]  # fmt: skip


def test_a_comparison_that_does_not_end_is_ended_and_the_next_one_is_answered():
    with Verifier(workers=1, limit=0.0) as impatient:
        # The first comparison of a worker may take 30 s longer, for its start; the second has no time at all.
        assert impatient.check([Question("1/2", "0.5"), Question("1/2", "0.5")]) == [Verdict.RIGHT, Verdict.TIMEOUT]
        assert impatient.check([Question("1/3", "2/6")]) == [Verdict.RIGHT]


def test_a_number_too_large_for_any_machine_does_not_hold_up_the_next_question():
    with Verifier(workers=1, limit=1) as verifier:
        questions = [Question("1/2", "0.5"), Question(TOWER, "x+1"), Question("2/4", "1/2")]
        assert verifier.check(questions) == [Verdict.RIGHT, Verdict.TIMEOUT, Verdict.RIGHT]


@pytest.mark.parametrize(
    "text", ["\\" * 500, "{" * 300, "\0", "import os; os._exit(3)", "\ud800", "\n", "$$$$", "9" * 5000]
)
def test_hostile_text_neither_raises_nor_hangs(verifier: Verifier, text: str):
    assert verifier.check([Question(text, "x+1"), Question("2/4", "1/2")])[1] is Verdict.RIGHT


def test_on_public_cases_we_are_nowhere_worse_than_the_library_alone(real_data: Path, verifier: Verifier):
    cases = [json.loads(line) for line in (real_data / "grader_cases.jsonl").read_text().splitlines()]
    verdicts = verifier.check([Question(case["prediction"], case["gold"]) for case in cases])
    right = [verdict is Verdict.RIGHT for verdict in verdicts]
    worse = [c["id"] for c, ours in zip(cases, right, strict=True) if c["math_verify"] == c["equal"] != ours]
    assert worse == []
    numbers = [(c, ours) for c, ours in zip(cases, right, strict=True) if plain_number(c["prediction"]) is not None]
    accepted_wrong = [
        c["id"] for c, ours in numbers if ours and plain_number(c["gold"]) not in (None, plain_number(c["prediction"]))
    ]
    assert accepted_wrong == []
