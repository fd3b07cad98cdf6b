from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.prompts import Harmony, Tags
from reasoning.thinking import (
    Thinking,
    answer_end,
    final_answer,
    is_closed_once,
    reply_of,
    thinking_of,
    thought_of,
    written_as,
)

MISTRAL = Tags(open="[THINK]", close="[/THINK]")
OPEN_THINKER = Tags(
    open="<|begin_of_thought|>",
    close="<|end_of_thought|>",
    answer_open="<|begin_of_solution|>",
    answer_close="<|end_of_solution|>",
)
FORMATS = [Tags(), MISTRAL, OPEN_THINKER, Harmony()]
words = st.text(st.sampled_from("abc {}\n12"), max_size=20)


def test_public_cases(cases: Callable[[str], list[dict[str, Any]]]):
    for row in cases("final_answers.jsonl"):
        assert final_answer(row["text"]) == row["answer"], row["why"]


def test_harmony_reply_without_analysis_has_an_answer():
    completion = "<|channel|>final<|message|>It is \\boxed{4}"
    assert final_answer(completion, Harmony()) == "4"
    assert final_answer("<|channel|>analysis<|message|>It is \\boxed{4}", Harmony()) is None
    assert final_answer(completion) is None
    assert not is_closed_once(completion, Harmony())


@given(words, words, st.sampled_from(FORMATS), st.booleans())
def test_thinking_and_reply_are_split_in_every_format(thought: str, reply: str, how: Thinking, opened: bool):
    text = f"{'' if opened else how.open}{thought}{how.close}{how.answer_open}{reply}{how.answer_close}"
    assert thought_of(thinking_of(text, how), how).strip() == thought.strip()
    assert reply_of(text, how) == reply
    assert is_closed_once(text, how)


@given(words, words, st.sampled_from(FORMATS))
def test_tags_are_converted(thought: str, reply: str, how: Thinking):
    anew = written_as(f"<think>{thought}</think>{reply}", how)
    assert thinking_of(anew, how) == thought.lstrip("\n")
    assert reply_of(anew, how) == reply
    assert written_as(f"<think>{thought}", how) == thought.lstrip("\n")


@given(words, words, words, st.sampled_from(FORMATS))
def test_a_completion_cut_after_its_answer_keeps_it(thought: str, before: str, after: str, how: Thinking):
    text = f"{thought}{how.close}{how.answer_open}{before}\\boxed{{4}}{after}{how.answer_close}"
    end, answer = answer_end(text, how), final_answer(text, how)
    assert (end is None) == (answer is None)
    if end is not None:
        assert text[end - 1] == "}"
        assert final_answer(text[:end], how) == answer
        assert final_answer(text[: end - 1], how) != "4" or answer != "4"


def test_where_an_answer_ends():
    text = r"\boxed{1}</think>First \boxed{2}, no: \boxed{\frac{1}{3}} it is."
    assert text[: answer_end(text)].endswith(r"\boxed{\frac{1}{3}}")
    assert answer_end(r"\boxed{1}") is None
    assert answer_end(r"</think>\boxed{1} and \boxed{2") is None


@pytest.mark.parametrize(
    ("text", "how", "answer"),
    [
        (r"a[/THINK]It is \boxed{2}.", MISTRAL, "2"),
        (r"a</think>It is \boxed{2}.", MISTRAL, None),
        (
            r"a<|end_of_thought|> \boxed{1} <|begin_of_solution|>\boxed{2}<|end_of_solution|> \boxed{3}",
            OPEN_THINKER,
            "2",
        ),
        (r"a<|end_of_thought|>\boxed{2}", OPEN_THINKER, "2"),
        (r"<think>a</think>\boxed{1}<think>b \boxed{2}", Tags(), None),
        (r"<think>a</think>\boxed{1}<think>b</think>\boxed{2}", Tags(), "2"),
        (r"a</think>\boxed{1}</think>\boxed{2}", Tags(), "2"),
        (r"a</think>no box</think>", Tags(), None),
        ("", Tags(), None),
    ],
)
def test_answer_is_taken_from_the_reply(text: str, how: Thinking, answer: str | None):
    assert final_answer(text, how) == answer
