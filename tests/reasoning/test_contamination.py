"""What counts as the same problem, and what does not."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.contamination import matches, ngrams, without_doubles, words
from reasoning.records import Problem, TextPart

TEXT = r"Let $x$ be a real number such that $\frac{1}{2}x + 1{,}000 = \sqrt{3}$. What is $x^2 - 4$, in simplest form?"


def problem(text: str, name: str = "p") -> Problem:
    return Problem(id=name, prompt=(TextPart(text=text),), answer="1")


@pytest.mark.parametrize(
    "spelled",
    [
        r"LET \( x \) be a real number such that \(\dfrac{1}{2} x + 1,000 = \sqrt{3} \). What is \(x^{2}-4\), "
        r"in simplest form?",
        r"let $x$ be a  real number such that $$\left.\tfrac{1}{2}x+1\,000=\sqrt{3}\right.$$ What is x^2-4 "
        r"in simplest form",
        r"Let \textit{x} be a real number such that \[\displaystyle \frac 1 2 \, x + 1000 = \sqrt 3 \] "
        r"What is x² − 4, in simplest form?",
    ],
)
def test_spelling_makes_no_difference(spelled: str):
    assert words(spelled) == words(TEXT)


def test_what_is_said_makes_a_difference():
    assert words("Find $x+1$.") != words("Find $x+2$.")
    assert words(r"$\sin x$") == words("sin x")
    assert words(r"$\sin x$") != words(r"$\cos x$")
    assert words("求最小值") == tuple("求最小值")


def test_a_planted_problem_is_found_and_the_closest_named():
    held = {"exam": [problem("How many ways are there to seat six guests?", "near"), problem(TEXT, "same")]}
    planted = problem(f"Consider this. {TEXT} Explain.", "planted")
    (match,) = matches([planted, problem("What is the sum of all primes below ten?", "clean")], held, 5, 0.5)
    assert (match.problem_id, match.benchmark, match.benchmark_id, match.share) == ("planted", "exam", "same", 1.0)


def test_a_text_shorter_than_an_ngram_matches_only_itself():
    held = {"exam": [problem("What is 2+2?"), problem("What is 2+2 in words, and why is it so?")]}
    assert len(matches([problem("what is 2 + 2")], held, 8, 0.5)) == 1
    assert matches([problem("what is 2 + 3")], held, 8, 0.5) == []


def test_the_first_of_equal_problems_stays():
    kept = without_doubles([problem("A b.", "1"), problem("c", "2"), problem("a  B", "3")])
    assert [row.id for row in kept] == ["1", "2"]


@given(st.lists(st.sampled_from(["apple", "pear", "plum"]), max_size=12), st.integers(1, 5))
def test_ngrams_are_runs_of_the_text(said: list[str], length: int):
    text = " ".join(said)
    grams = ngrams(words(text), length)
    assert grams
    assert all(" ".join(gram) in text for gram in grams)
    assert len(matches([problem(text)], {"exam": [problem(text)]}, length, 0.99)) == 1


def test_public_cases(cases: Callable[[str], list[dict[str, Any]]]):
    for case in cases("contamination.jsonl"):
        for one, other in ((case["a"], case["b"]), (case["b"], case["a"])):
            found = matches([problem(one)], {"exam": [problem(other)]}, 10, 0.5)
            assert bool(found) is case["same"], case


@pytest.mark.parametrize(
    "around", ["Consider this. {} Explain.", "{} Show your work.", "Solve: {}", "Now try it: {}"]
)
def test_prose_around_a_problem_makes_no_other_problem(around: str):
    assert matches([problem(around.format(TEXT))], {"exam": [problem(TEXT)]}, 10, 0.5)
