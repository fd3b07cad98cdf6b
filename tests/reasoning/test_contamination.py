"""Which problems match and which do not."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.problems import NgramOverlap
from reasoning.contamination import MAX_PROBLEMS_PER_NGRAM, deduplicate, matches, ngrams
from reasoning.records import Problem, TextPart

SETTINGS = NgramOverlap()
LONG = (
    r"Let $x$ be a real number such that $\frac{1}{2}x + 1{,}000 = \sqrt{3}$. Ann doubles $x$ and takes 7 from it, "
    r"then she writes the result on a card. What is $x^2 - 4$, in simplest form?"
)
SHORT = [r"Compute $\dbinom{8}{4}$.", "What is 2+2?", r"Simplify $\sqrt{242}$.", "How many divisors does 196 have?"]
FRONT = [
    "",
    "Question: ",
    "You are a helpful assistant. Problem 12: ",
    "User: ",
    "Solve the following math problem. The last line of your response should be 'The answer is $ANSWER'.\n\n",
    "### Instruction:\n",
]
BEHIND = [
    "",
    " Let's think step by step and output the final answer within \\boxed{}.",
    "\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "\n\nAnswer:",
    "\nAssistant:",
    " Show your work.",
]


def problem(text: str, name: str = "p") -> Problem:
    return Problem(id=name, prompt=(TextPart(text=text),), answer="1")


def same(one: str, other: str) -> bool:
    """Whether two problems match, whichever of them is in the benchmark."""
    found = {
        bool(matches([problem(a)], {"benchmark": [problem(b)]}, SETTINGS.ngram_size, SETTINGS.min_overlap))
        for a, b in [(one, other), (other, one)]
    }
    assert len(found) == 1
    return found.pop()


def test_planted_problem_is_found_with_its_closest_match():
    near = LONG.replace("on a card", "on the large card")
    benchmark = {"benchmark": [problem(near, "near"), problem(LONG, "same")]}
    found = matches(
        [problem(f"Consider this. {LONG} Explain.", "planted"), problem("g h i", "clean")], benchmark, 5, 0.5
    )
    assert [(m.problem_id, m.benchmark, m.benchmark_id, m.share) for m in found] == [
        ("planted", "benchmark", "same", 1.0)
    ]


def test_share_refers_to_the_shorter_text():
    # 3-grams: 20 of "w1 … w22"; of the other text's 25, the 17 before its last word of the first nineteen: 17 of 20.
    words = [f"w{chr(97 + i)}w" for i in range(22)]
    one = problem(" ".join(words))
    other = {"benchmark": [problem(" ".join([*words[:19], *(f"v{word}" for word in words[:8])]))]}
    assert [match.share for match in matches([one], other, 3, 0.8)] == [pytest.approx(17 / 20)]
    assert matches([one], other, 3, 0.85) == []


@pytest.mark.parametrize("text", [*SHORT, LONG])
def test_problem_is_found_inside_instructions(text: str):
    for front in FRONT:
        for behind in BEHIND:
            assert same(text, front + text + behind), (front, behind)


@pytest.mark.parametrize(
    "edited",
    [
        LONG.replace("doubles", "duobles"),
        LONG.replace("on a card", "on the card"),
        LONG.replace("What is", "Find the value of"),
        LONG.replace(
            "What is $x^2 - 4$", "Given that $x^2 - 4 = p/q$ for coprime positive whole numbers, find $p + q$"
        ),
        LONG.replace("[asy]", "") + " [asy] draw((0,0)--(1,1)); [/asy]",
        LONG.upper(),
    ],
)
def test_small_edits_match(edited: str):
    assert edited != LONG
    assert same(LONG, edited)


@pytest.mark.parametrize(
    ("this", "that"),
    [
        ("1{,}000", "1{,}001"),
        ("+ 1", "- 1"),
        ("takes 7", "takes 8"),
        ("x^2 - 4", "x^2 + 4"),
        (r"\sqrt{3}", "3"),
        ("= ", r"\le "),
        ("real number", "integer"),
        ("x^2 - 4", "x^2 - 4x"),
        ("takes 7", "takes -7"),
    ],
)
def test_different_numbers_signs_or_operators_never_match(this: str, that: str):
    assert this in LONG
    assert not same(LONG, LONG.replace(this, that))
    assert not same(LONG * 3, LONG * 2 + LONG.replace(this, that))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "Determine the number of ways to arrange the letters of the word ELLIPSE.",
            "Determine the number of ways to arrange the letters of the word ECLIPSE.",
        ),
        (
            "How many elements does the set A have if A and B are disjoint?",
            "How many elements does the set C have if C and B are disjoint?",
        ),
        ("Find the sum of the roots.", "Find the product of the roots."),
        ("What is the greatest common factor of 32 and 48?", "What is the greatest common factor of 32 and 48 and 64?"),
        ("Compute $2^3$.", "Compute $2^3 + 5$."),
        ("Find x.", "Let 2x + 3 = 7. Find x."),
        ("How many apples are left?", "Ann has 12 apples and eats 3. How many apples are left?"),
        ("What is 5?", "What is 5% of 20? Let's think step by step."),
        ("求3+5的值。", "求3-5的值。"),
        (
            "Ann has 3 apples and Ben has 5 pears. How many more has Ben?",
            "Ann has 5 apples and Ben has 3 pears. How many more has Ben?",
        ),
    ],
)
def test_templates_and_fragments_do_not_match(one: str, other: str):
    assert not same(one, other)


def test_public_cases(cases: Callable[[str], list[dict[str, Any]]]):
    for case in cases("contamination.jsonl"):
        assert same(case["a"], case["b"]) == case["same"], case


def test_deduplicate_keeps_the_first_and_respects_signs():
    texts = ["A b.", "c", "a  B", "What is 5 + 3?", "What is 5 - 3?", "what is 5−3"]
    kept = deduplicate([problem(text, str(index)) for index, text in enumerate(texts)])
    assert [row.id for row in kept] == ["0", "1", "3", "4"]


def test_problems_with_images_are_the_same_only_with_the_same_images():
    text = "How many more dots are there in the red box than in the blue box of this picture?"

    def seen(*images: bytes) -> Problem:
        return problem(text, str(images)).model_copy(update={"images": images})

    known = {"bench": [seen(b"one"), problem(text, "bare")]}
    asked = [seen(b"one"), seen(b"two"), seen(b"one", b"two"), problem(text, "also bare")]
    found = matches(asked, known, SETTINGS.ngram_size, SETTINGS.min_overlap)
    assert [(match.problem_id, match.benchmark_id) for match in found] == [
        (asked[0].id, asked[0].id),
        ("also bare", "bare"),
    ]
    assert deduplicate([*asked, *asked]) == asked


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
def test_ngrams_occur_in_the_text(tokens: list[str], length: int):
    grams = ngrams(tuple(tokens), length)
    assert grams
    assert all("".join(gram) in "".join(tokens) for gram in grams)


@given(st.lists(st.sampled_from(["sum", "x", "3", "+", "-", "find", "word", ".", "\n", "of"]), min_size=1, max_size=30))
def test_problem_matches_itself(tokens: list[str]):
    assert len(matches([problem(" ".join(tokens))], {"benchmark": [problem(" ".join(tokens))]}, 5, 0.99)) == 1


def test_template_shared_by_many_problems_stays_fast():
    def from_template(start: int) -> list[Problem]:
        return [
            problem(
                f"A train that leaves the station at noon goes {n} miles at the same rate as the one before. How far?"
            )
            for n in range(start, start + 20 * MAX_PROBLEMS_PER_NGRAM)
        ]

    started = time.process_time()
    assert (
        matches(from_template(0), {"benchmark": from_template(10**6)}, SETTINGS.ngram_size, SETTINGS.min_overlap) == []
    )
    assert time.process_time() - started < 60  # seconds; all pairs would be four million


def rows(folder: Path, name: str) -> list[Problem]:
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return [problem(row["problem"], str(row["id"])) for row in map(json.loads, lines)]


RESPELLED = [
    (r"\\leq?(?![a-z])", "≤"),
    (r"\\geq?(?![a-z])", r"\\geqslant "),
    (r"\\pi(?![a-z])", "π"),
    (r"\^\\circ", "°"),
    (r"\^2", "²"),
    (r"\\times", "×"),
    (r"\\angle ", "∠"),
    (r"\\sqrt\{(\d+)\}", r"√\1"),
    (r"(?<=\d),(?=\d{3})", ""),
    (r"\\frac\{", r"\\dfrac{"),
    (r"\\theta", "θ"),
    (r"\\triangle", "△"),
    (r"(?<![\w{])-(?=\d)", "−"),
    (r"\\left|\\right", ""),
    (r"\\cup", "∪"),
    (r"\s+", " "),
    (r"\^(\w)", r"^{\1}"),
    (r"\\infty", "∞"),
    (r"\\neq?(?![a-z])", "≠"),
]


def test_real_problems_are_found_in_other_notation_and_inside_instructions(real_data: Path):
    benchmark = rows(real_data, "math500")

    def respelled(text: str) -> str:
        for pattern, spelled in RESPELLED:
            text = re.sub(pattern, spelled, text)
        return f"Question: {text}{BEHIND[1]}"

    copies = [problem(respelled(row.text), row.id) for row in benchmark]
    found = matches(copies, {"math500": benchmark}, SETTINGS.ngram_size, SETTINGS.min_overlap)
    assert [(match.problem_id, match.benchmark_id) for match in found] == [(row.id, row.id) for row in benchmark]


def test_real_problems_with_a_changed_number_do_not_match(real_data: Path):
    benchmark = [row for row in rows(real_data, "math500") if re.search(r"\d", row.text) and "[asy]" not in row.text]
    changed = [problem(re.sub(r"\d+", lambda m: str(int(m[0]) + 1), row.text, count=1), row.id) for row in benchmark]
    assert matches(changed, {"math500": benchmark}, SETTINGS.ngram_size, SETTINGS.min_overlap) == []


def test_sets_without_common_problems_do_not_match(real_data: Path):
    train = rows(real_data, "gsm8k_train_sample2000")
    assert matches(train, {"test": rows(real_data, "gsm8k_test")}, SETTINGS.ngram_size, SETTINGS.min_overlap) == []
