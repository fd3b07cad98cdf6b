"""The answer check, with the real math-verify, on all public cases."""

import json
from pathlib import Path

from reasoning.answers import plain_number
from reasoning.records import Verdict
from reasoning.verifier import Question, Verifier


def test_on_public_cases_we_are_nowhere_worse_than_the_library_alone(real_data: Path):
    cases = [json.loads(line) for line in (real_data / "grader_cases.jsonl").read_text().splitlines()]
    with Verifier() as verifier:
        verdicts = verifier.check([Question(case["prediction"], case["gold"]) for case in cases])
    right = [verdict is Verdict.RIGHT for verdict in verdicts]
    worse = [c["id"] for c, ours in zip(cases, right, strict=True) if c["math_verify"] == c["equal"] != ours]
    assert worse == []
    numbers = [(c, ours) for c, ours in zip(cases, right, strict=True) if plain_number(c["prediction"]) is not None]
    accepted_wrong = [
        c["id"] for c, ours in numbers if ours and plain_number(c["gold"]) not in (None, plain_number(c["prediction"]))
    ]
    assert accepted_wrong == []
