import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.datasets import DATASETS, Columns
from reasoning.problem_rows import problem_of, with_images
from reasoning.records import InvalidRow, Problem, TextPart

ROW = {"id": "a", "problem": "1+1?", "answer": "2"}


def parse(row: Any, **columns: Any) -> Problem | InvalidRow:
    return problem_of(row, "file:3", "row-7", Columns.model_validate(columns))


def test_row_to_problem():
    problem = parse(ROW | {"level": "Level 5"}, level="level")
    assert isinstance(problem, Problem)
    assert (problem.id, problem.text, problem.answer, problem.level) == ("a", "1+1?", "2", 5)


def test_row_without_id_is_named_by_position():
    problem = parse({"q": "1+1?", "answer": 2.0}, id="", problem="q")
    assert isinstance(problem, Problem)
    assert (problem.id, problem.answer) == ("row-7", "2")


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("boxed", r"So \boxed{1} or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("hashes", "16 - 3 = 13\n#### 1,300", "1300"),
        ("hashes", "a #### 5 b #### (1,2)\n\nGood luck", "(1,2)"),
        ("plain", " 7 ", "7"),
    ],
)
def test_answer_formats(kind: str, text: str, answer: str):
    problem = parse(ROW | {"answer": text}, answer_is=kind)
    assert isinstance(problem, Problem)
    assert problem.answer == answer


def test_nested_fields():
    row = {"a": {"b": "1+1?"}, "c": [{"value": 2}], "d.e": "7"}
    problem = parse(row, problem="a.b", answer="c.0.value", id="d.e")
    assert isinstance(problem, Problem)
    assert (problem.id, problem.text, problem.answer) == ("7", "1+1?", "2")
    for path in ("a.x", "a.b.c", "c.1.value", "c.x", "x.y", "c.-1.value"):
        bad = parse(row, problem="a.b", answer=path, id="")
        assert isinstance(bad, InvalidRow)
        assert f"no field {path!r}; its fields: 'a', 'c', 'd.e'" in bad.detail


SYSTEM = {"role": "system", "content": "Be brief."}
TEXT_PARTS = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "1+1?"}],
        [
            SYSTEM,
            {"role": "user", "content": "0?"},
            {"role": "assistant", "content": "0"},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
        ],
        [{"from": "system", "value": "x"}, {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
        [SYSTEM, {"role": "user", "content": TEXT_PARTS}],
        [[{"role": "user", "content": "1+1?"}]],
    ],
)
def test_problem_from_the_last_user_message(messages: Any):
    problem = parse({"prompt": messages, "answer": "2"}, problem="prompt")
    assert isinstance(problem, Problem)
    assert problem.text == "1+1?"


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM],
        [],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [*TEXT_PARTS, {"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": ["text"]}],
        [{"role": "user", "content": "  "}],
        ["1+1?", "2+2?"],
        [[]],
        {},
    ],
)
def test_messages_without_a_problem_or_with_more_than_text_are_invalid(messages: Any):
    bad = parse({"prompt": messages, "answer": "2"}, problem="prompt")
    assert isinstance(bad, InvalidRow)
    assert bad.reason == "missing-field"


def test_answer_from_the_last_assistant_message():
    row = {
        "problem": "1+1?",
        "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": r"It is \boxed{2}."}],
    }
    problem = parse(row, answer="messages", answer_is="boxed")
    assert isinstance(problem, Problem)
    assert problem.answer == "2"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1e-05, "0.00001"),
        (2.0, "2"),
        (-0.0, "0"),
        (1e22, "1" + 22 * "0"),
        (1.5e300, "15" + 299 * "0"),
        (0.1, "0.1"),
        (10**400, "1" + 400 * "0"),
        (-7, "-7"),
        (Decimal("2.50"), "2.5"),
        (Decimal("1E+3"), "1000"),
        (100, "100"),
        (Decimal("0.12345678901234567890123"), "0.12345678901234567890123"),
        (np.float32(0.1), "0.1"),
        (np.float64(1e-7), "0.0000001"),
        (np.int64(12), "12"),
        (np.uint8(200), "200"),
        (1000.0, "1000"),
        (0, "0"),
    ],
)
def test_numbers_in_plain_decimals(number: Any, text: str):
    problem = parse(ROW | {"answer": number})
    assert isinstance(problem, Problem)
    assert problem.answer == text


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
)
def test_numbers_keep_their_value(number: Any):
    problem = parse(ROW | {"answer": number})
    assert isinstance(problem, Problem)
    assert re.fullmatch(r"-?\d+(\.\d*[1-9])?", problem.answer)
    assert Fraction(problem.answer) == Fraction(str(number))


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        math.inf,
        math.nan,
        Decimal("NaN"),
        Decimal("-Infinity"),
        Decimal("1e999999999999"),
        np.bool_(True),
        np.float32("nan"),
        b"7",
        {"x": 1},
        [1, 2],
        10**2000,
    ],
)
def test_non_numbers_are_no_answer(value: Any):
    assert isinstance(parse(ROW | {"answer": value}), InvalidRow)


def test_long_or_deeply_nested_rows_do_not_crash():
    deep: Any = "7"
    for _ in range(50_000):
        deep = [deep]
    problem = parse(ROW | {"answer": deep})
    assert isinstance(problem, Problem)
    assert problem.answer == "7"
    for row in (ROW | {"problem": "x" * 2_000_000}, ROW | {"answer": "1" * 20_000}):
        bad = parse(row)
        assert isinstance(bad, InvalidRow)
        assert bad.reason == "too-long"
    many = parse(ROW | {"choices": [str(n) for n in range(27)], "answer": "A"}, choices="choices")
    assert isinstance(many, InvalidRow)
    assert many.reason == "too-many-options"


def test_options_in_separate_columns():
    row = {"q": "1+1?", "a": "1", "b": "2", "right": "B"}
    problem = parse(row, problem="q", answer="right", choices=["a", "b"])
    assert isinstance(problem, Problem)
    assert (problem.text, problem.answer) == ("1+1?\n(A) 1\n(B) 2", "B")


@pytest.mark.parametrize("options", [["1", "2"], {"A": "1", "B": "2", "C": None}])
def test_answer_given_as_option_text(options: Any):
    row = {"q": "1+1?", "options": options, "right": [" 2 "]}
    problem = parse(row, problem="q", answer="right", answer_is="choice", choices="options")
    assert isinstance(problem, Problem)
    assert (problem.text, problem.answer) == ("1+1?\n(A) 1\n(B) 2", "B")
    for right in ("3", "1+1"):
        bad = parse(row | {"right": right}, problem="q", answer="right", answer_is="choice", choices="options")
        assert isinstance(bad, InvalidRow)
        assert bad.reason == "no-answer"


def test_duplicate_option_cannot_be_the_answer():
    row = {"q": "1+1?", "options": ["2", "2", "3"], "right": "2"}
    assert isinstance(parse(row, problem="q", answer="right", answer_is="choice", choices="options"), InvalidRow)


def test_subject_and_level_by_default_columns():
    problem = parse(ROW | {"subject": "Algebra", "level": "Level 3"})
    assert isinstance(problem, Problem)
    assert (problem.subject, problem.level) == ("Algebra", 3)
    problem = parse(ROW)
    assert isinstance(problem, Problem)
    assert (problem.subject, problem.level) == (None, None)


@pytest.mark.parametrize(
    ("given", "level"),
    [
        (6.5, 6),
        ("6.5", 6),
        (Decimal("4.0"), 4),
        (-1, None),
        ("Level ?", None),
        ("easy", None),
        (2.0, 2),
        (3, 3),
        ("Level 5", 5),
        ("none", None),
        ("1" * 5000, None),
        (None, None),
        (True, None),
    ],
)
def test_level_is_a_small_integer_or_none(given: Any, level: int | None):
    problem = parse(ROW | {"level": given}, level="level")
    assert isinstance(problem, Problem)
    assert problem.level == level


def test_options_are_shown_with_their_letters():
    problem = parse(ROW | {"choices": ["cat", "dog"], "answer": "B"}, choices="choices")
    assert isinstance(problem, Problem)
    assert problem.text == "1+1?\n(A) cat\n(B) dog"
    assert problem.choices == ("cat", "dog")


@pytest.mark.parametrize(
    ("row", "columns", "reason", "words"),
    [
        (["x"], {}, "not-an-object", "JSON object"),
        ({"question": "1+1?", "answer": "2"}, {}, "missing-field", "no field 'problem'; its fields: 'question'"),
        (ROW | {"answer": " "}, {}, "missing-field", "field 'answer' is empty"),
        (ROW | {"answer": None}, {}, "missing-field", "field 'answer' is empty"),
        (ROW | {"answer": math.nan}, {}, "missing-field", "field 'answer' is empty"),
        (ROW | {"answer": "no box"}, {"answer_is": "boxed"}, "no-answer", "columns.answer_is = 'boxed'"),
        (ROW, {"choices": "choices"}, "missing-field", "no list of options"),
        (ROW | {"choices": ["cat", None]}, {"choices": "choices"}, "missing-field", "no list of options"),
        (ROW | {"problem": "\ud800"}, {}, "missing-field", "field 'problem' is empty"),
    ],
)
def test_invalid_row_states_problem_and_remedy(row: Any, columns: dict[str, str], reason: str, words: str):
    bad = parse(row, **columns)
    assert isinstance(bad, InvalidRow)
    assert (bad.location, bad.reason) == ("file:3", reason)
    assert words in bad.detail


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON | st.fixed_dictionaries({"id": JSON, "problem": JSON, "answer": JSON, "choices": JSON}))
def test_any_row_gives_a_problem_or_an_invalid_row(row: Any):
    for columns in ({}, {"choices": "choices", "level": "id"}, {"answer_is": "hashes"}):
        assert isinstance(parse(row, **columns), Problem | InvalidRow)


GPQA = {
    "Record ID": "rec1",
    "Question": "Which one?",
    "Correct Answer": "the right one",
    "Incorrect Answer 1": "one",
    "Incorrect Answer 2": "two",
    "Incorrect Answer 3": "three",
    "Subdomain": "Optics",
}
OF_THE_HUB = {
    "nvidia/OpenMathReasoning": (
        {
            "problem": "1+1?",
            "expected_answer": "2",
            "problem_type": "has_answer_extracted",
            "generated_solution": "<think>",
            "generation_model": "QwQ-32B",
            "pass_rate_72b_tir": "0.9",
        },
        ("row-7", "1+1?", "2", None),
    ),
    "EleutherAI/hendrycks_math": (
        {"problem": "1+1?", "level": "Level 3", "type": "Algebra", "solution": r"It is $\boxed{2}$."},
        ("row-7", "1+1?", "2", 3),
    ),
    "HuggingFaceH4/MATH-500": (
        {"problem": "1+1?", "solution": "", "answer": "2", "subject": "Algebra", "level": 4, "unique_id": "test/1"},
        ("test/1", "1+1?", "2", 4),
    ),
    "DigitalLearningGmbH/MATH-lighteval": (
        {"problem": "1+1?", "level": "Level 5", "type": "Geometry", "solution": r"It is $\boxed{2}$."},
        ("row-7", "1+1?", "2", 5),
    ),
    "agentica-org/DeepScaleR-Preview-Dataset": (
        {"problem": "1+1?", "answer": "2", "solution": ""},
        ("row-7", "1+1?", "2", None),
    ),
    "zwhe99/DeepMath-103K": (
        {
            "question": "1+1?",
            "final_answer": "2",
            "difficulty": 6.5,
            "topic": "Mathematics -> Algebra",
            "r1_solution_1": "",
        },
        ("row-7", "1+1?", "2", 6),
    ),
    "open-r1/OpenR1-Math-220k": (
        {
            "problem": "1+1?",
            "solution": "",
            "answer": "2",
            "problem_type": "Algebra",
            "question_type": "other",
            "source": "olympiads",
            "uuid": "u-1",
            "generations": ["<think>"],
            "messages": [{"role": "user", "content": "1+1?"}],
        },
        ("u-1", "1+1?", "2", None),
    ),
    "BytedTsinghua-SIA/DAPO-Math-17k": (
        {
            "data_source": "math_dapo",
            "prompt": [{"content": "1+1?", "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "2", "style": "rule"},
            "extra_info": {"index": "x"},
        },
        ("row-7", "1+1?", "2", None),
    ),
    "PRIME-RL/Eurus-2-RL-Data": (
        {
            "data_source": "numina_olympiads",
            "ability": "math",
            "extra_info": {"index": 0, "split": "train"},
            "prompt": [{"content": "You have actions", "role": "system"}, {"content": "1+1?", "role": "user"}],
            "reward_model": {"ground_truth": "2", "style": "rule"},
        },
        ("row-7", "1+1?", "2", None),
    ),
    "SynthLabsAI/Big-Math-RL-Verified": (
        {"problem": "1+1?", "answer": "2", "source": "gsm8k", "domain": ["Algebra"], "llama8b_solve_rate": 0.5},
        ("row-7", "1+1?", "2", None),
    ),
    "openai/gsm8k": ({"question": "1+999?", "answer": "<<1+999=1000>>\n#### 1,000"}, ("row-7", "1+999?", "1000", None)),
    "HuggingFaceH4/aime_2024": (
        {"id": 60, "problem": "1+1?", "solution": "", "answer": "002", "url": "", "year": "2024"},
        ("60", "1+1?", "002", None),
    ),
    "math-ai/aime25": ({"problem": "1+1?", "answer": "2", "id": "0"}, ("0", "1+1?", "2", None)),
    "math-ai/amc23": ({"id": 0, "question": "1+1?", "answer": 2.0, "url": ""}, ("0", "1+1?", "2", None)),
    "MathArena/hmmt_feb_2025": (
        {"problem_idx": 1, "answer": r"\frac{1}{2}", "problem": "1/2?", "problem_type": ["Algebra"]},
        ("1", "1/2?", r"\frac{1}{2}", None),
    ),
    "MARIO-Math-Reasoning/Gaokao2023-Math-En": (
        {"question": "1+1?", "answer": "$2$", "source": "x", "lang": "en", "sourcename": "y", "id": 3},
        ("3", "1+1?", "$2$", None),
    ),
    "hails/agieval-gaokao-mathqa": (
        {"query": "1+1?", "choices": ["1", "2", "3", "4"], "gold": [1]},
        ("row-7", "1+1?\n(A) 1\n(B) 2\n(C) 3\n(D) 4", "B", None),
    ),
    "TIGER-Lab/MMLU-Pro": (
        {
            "question_id": 70,
            "question": "1+1?",
            "options": ["1", "2"],
            "answer": "B",
            "answer_index": 1,
            "cot_content": "",
            "category": "math",
            "src": "x",
        },
        ("70", "1+1?\n(A) 1\n(B) 2", "B", None),
    ),
}


@pytest.mark.parametrize("name", sorted(OF_THE_HUB))
def test_rows_of_known_data_sets(name: str):
    row, expected = OF_THE_HUB[name]
    problem = problem_of(row, "hub", "row-7", DATASETS[name])
    assert isinstance(problem, Problem), problem
    assert (problem.id, problem.text, problem.answer, problem.level) == expected


def test_correct_and_wrong_options_in_separate_columns():
    problem = problem_of(GPQA, "hub", "row-7", DATASETS["Idavidrein/gpqa"])
    assert isinstance(problem, Problem)
    assert problem.id == "rec1"
    assert sorted(problem.choices or ()) == ["one", "the right one", "three", "two"]
    assert problem.choices
    assert problem.choices["ABCD".index(problem.answer)] == "the right one"
    assert f"({problem.answer}) the right one" in problem.text
    assert problem == problem_of(dict(reversed(GPQA.items())), "hub", "row-7", DATASETS["Idavidrein/gpqa"])
    letters = {
        found.answer
        for n in range(50)
        if isinstance(found := problem_of(GPQA | {"Question": str(n)}, "", "", DATASETS["Idavidrein/gpqa"]), Problem)
    }
    assert letters == set("ABCD")


def test_every_known_data_set_is_covered():
    without_images = {name for name, columns in DATASETS.items() if not columns.images}
    assert without_images == OF_THE_HUB.keys() | {"Idavidrein/gpqa"}


@pytest.mark.parametrize("gold", [[], [0, 1], 7, "B", [9], None, [True]])
def test_invalid_index_is_an_invalid_row(gold: Any):
    bad = parse(
        {"q": "?", "c": ["1", "2"], "gold": gold}, id="", problem="q", choices="c", answer="gold", answer_is="index"
    )
    assert isinstance(bad, InvalidRow)
    assert bad.reason in ("missing-field", "no-answer")


def test_missing_wrong_option_is_an_invalid_row():
    bad = problem_of(GPQA | {"Incorrect Answer 2": None}, "hub", "row-7", DATASETS["Idavidrein/gpqa"])
    assert isinstance(bad, InvalidRow)
    assert "'Incorrect Answer 2' of columns.wrong_choices" in bad.detail


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"choices": "c", "wrong_choices": ("d",), "answer_is": "choice"}, "set only one"),
        ({"choices": ("answer", "d")}, "'answer' is both the answer and an option"),
        ({"wrong_choices": ("d",)}, "go together"),
        ({"answer_is": "choice"}, "go together"),
        ({"answer_is": "index"}, "needs the column of the options"),
    ],
)
def test_inconsistent_columns_are_rejected(columns: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        Columns.model_validate(columns)


IMAGES = (b"one", b"two", b"three")


@pytest.mark.parametrize(
    ("text", "count", "parts", "order"),
    [
        ("Sum?", 1, ["*", "Sum?"], [0]),
        ("Sum?", 2, ["*", "*", "Sum?"], [0, 1]),
        ("<image>\nSum?", 1, ["*", "Sum?"], [0]),
        ("Look at <image> and <image>.", 2, ["Look at ", "*", " and ", "*", "."], [0, 1]),
        ("In <image 2> and <image 1>:", 2, ["In ", "*", " and ", "*", ":"], [1, 0]),
        ("<image 1> (A) <image 2> or <image 1>", 2, ["*", " (A) ", "*", " or image 1"], [0, 1]),
        ("See <image 2>.", 3, ["*", "*", "See ", "*", "."], [0, 2, 1]),
        ("See <image 5>.", 1, ["*", "See <image 5>."], [0]),
        ("The tag <image> in HTML", 0, ["The tag <image> in HTML"], []),
        ("<image>", 1, ["*"], [0]),
    ],
)
def test_images_stand_where_the_text_says(text: str, count: int, parts: list[str], order: list[int]):
    problem = Problem(id="p", prompt=(TextPart(text=text),), answer="1")
    found = with_images(problem, IMAGES[:count])
    assert ["*" if part.type == "image" else part.text for part in found.prompt] == parts
    assert found.images == tuple(IMAGES[index] for index in order)


def test_a_conclusion_is_the_answer():
    columns = Columns(problem="conversations.0.value", answer="conversations.1.value", answer_is="conclusion")
    reply = "<SUMMARY> I count. </SUMMARY>\n\n<REASONING> 3 + 4. </REASONING>\n\n<CONCLUSION> 7 </CONCLUSION>"
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": reply}]
    found = problem_of({"id": "a", "conversations": turns}, "f:1", "x", columns)
    assert isinstance(found, Problem)
    assert (found.text, found.answer) == ("How many?", "7")
    turns[1]["value"] = "It is 7."
    missing = problem_of({"id": "a", "conversations": turns}, "f:1", "x", columns)
    assert isinstance(missing, InvalidRow)
    assert missing.reason == "no-answer"


@pytest.mark.parametrize(
    ("row", "answer", "choices"),
    [
        ({"options": ["4", "5"], "answer": "B"}, "B", ("4", "5")),
        ({"options": "['4', '5']", "answer": "B"}, "B", ("4", "5")),
        ({"options": [], "answer": "5"}, "5", None),
        ({"options": "[]", "answer": "5"}, "5", None),
        ({"options": None, "answer": "5"}, "5", None),
    ],
)
def test_a_data_set_may_mix_multiple_choice_with_other_questions(row: Any, answer: str, choices: Any):
    found = problem_of({"problem": "2 + 3?", **row}, "f:1", "x", Columns(choices="options"))
    assert isinstance(found, Problem)
    assert (found.answer, found.choices) == (answer, choices)


@pytest.mark.parametrize(
    "options", ["__import__('os')", "[" * 5000, "(", "5", "{}", "{[]: 1}", "[{[]: 1}]", "[__import__('os')]"]
)
def test_options_that_are_spelled_as_text_are_never_evaluated(options: str):
    found = problem_of({"problem": "?", "answer": "A", "options": options}, "f:1", "x", Columns(choices="options"))
    assert isinstance(found, InvalidRow)
    assert found.reason == "missing-field"


@pytest.mark.parametrize(("kind", "answer"), [("index", "0"), ("plain", "C")])
def test_options_that_an_answer_needs_must_be_there(kind: Any, answer: str):
    columns = Columns(choices="options", answer_is=kind)
    for options in ([], None, "[]"):
        found = problem_of({"problem": "?", "answer": answer, "options": options}, "f:1", "x", columns)
        assert isinstance(found, InvalidRow)
        assert found.reason == "missing-field"


def test_a_sentence_is_no_answer_that_can_be_checked():
    columns = Columns(answer_is="conclusion")
    for said, answer in (("B", "B"), ("12 cm", "12 cm"), ("It is a red box of wood.", None)):
        row = {"problem": "?", "answer": f"<CONCLUSION> {said} </CONCLUSION>"}
        found = problem_of(row, "f:1", "x", columns)
        assert (found.answer if isinstance(found, Problem) else None) == answer


def test_many_images_are_placed_quickly():
    problem = Problem(id="p", prompt=(TextPart(text="<image>" * 20_000),), answer="1")
    assert len(with_images(problem, [b""] * 20_000).images) == 20_000
