"""The answer check compared with math-verify: public cases, falsified and respelled answers of public problems."""

import json
import random
from pathlib import Path

from reasoning.answers.boxed import boxed, plain_number
from reasoning.answers.verifier import Question, Verifier
from reasoning.answers.worker import by_library
from reasoning.records import Verdict
from tests.reasoning.respelled import FALSIFIED, RESPELLED, changed, golds


def answer_of(text: str) -> str | None:
    return boxed(text) if "\\boxed" in text else text


def test_every_disagreement_on_public_cases_is_classified(real_data: Path):
    cases = [json.loads(line) for line in (real_data / "grader_cases.jsonl").read_text().splitlines()]
    with Verifier() as verifier:
        questions = [Question(answer_of(case["prediction"]), answer_of(case["gold"]) or "") for case in cases]
        right = [verdict is Verdict.RIGHT for verdict in verifier.check(questions)]
    other = {case["id"].removeprefix("case_") for case, ours in zip(cases, right, strict=True) if ours != case["equal"]}
    table = (Path(__file__).parents[3] / "docs" / "answer-check.md").read_text()
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    classified = {number.strip() for row in rows for number in row.split(",")}
    assert other - classified == set()
    numbers = [(c, ours) for c, ours in zip(cases, right, strict=True) if plain_number(c["prediction"]) is not None]
    wrong = [
        c["id"] for c, ours in numbers if ours and plain_number(c["gold"]) not in (None, plain_number(c["prediction"]))
    ]
    assert wrong == []


def test_not_worse_than_math_verify_in_either_direction(real_data: Path):
    chance = random.Random(2)
    for changes in (FALSIFIED, RESPELLED):
        rows = chance.sample(list(changed(golds(real_data), changes, 1)), 150)
        with Verifier() as verifier:
            ours = verifier.check([Question(said, gold) for _, gold, said in rows])
        accepted = sum(verdict is Verdict.RIGHT for verdict in ours)
        by_it = sum(by_library(said, gold) for _, gold, said in rows)
        assert accepted <= by_it if changes is FALSIFIED else accepted >= by_it
