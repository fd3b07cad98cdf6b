import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from reasoning.answers.verifier import Question, Verifier
from reasoning.records import Verdict

TOWER = "9^{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2, limit=5) as verifier:
        yield verifier


def test_verdicts_keep_the_order_of_questions(verifier: Verifier):
    questions = [
        Question("38", "38"),
        Question(r"\frac{1}{2}", "0.5"),
        Question("37", "38"),
        Question(None, "38"),
        Question("1+x", "x+1"),
        Question(" ", "38"),
        Question("(B)", "B", ("7", "8")),
    ]
    assert verifier.check(questions) == [
        Verdict.RIGHT,
        Verdict.RIGHT,
        Verdict.WRONG,
        Verdict.NO_ANSWER,
        Verdict.RIGHT,
        Verdict.NO_ANSWER,
        Verdict.RIGHT,
    ]


def test_endless_comparison_is_killed_and_the_next_one_answered():
    with Verifier(workers=1, limit=1.0) as verifier:
        # Both texts are made of the same parts and neither is read here, so that math-verify has to try.
        questions = [Question("1/2", "0.5"), Question(rf"\sum {TOWER}", rf"{TOWER} \sum"), Question("2/4", "1/2")]
        assert verifier.check(questions)[::2] == [Verdict.RIGHT, Verdict.RIGHT]


def test_killed_child_counts_as_not_verified():
    with Verifier(workers=1, limit=1.0) as verifier:
        assert list(verifier._verdicts(os._exit, [(3,)])) == [Verdict.TIMEOUT]
        assert list(verifier._verdicts(wait_for_ever, [(1,)])) == [Verdict.TIMEOUT]
        assert verifier.check([Question("1/3", "2/6")]) == [Verdict.RIGHT]


def wait_for_ever(_: int) -> bool:
    threading.Event().wait()
    return True


@pytest.mark.parametrize(
    "text", ["\\" * 500, "{" * 100, "\0", "import os; os._exit(3)", "\ud800", "\n", "$$$$", "9" * 5000]
)
def test_adversarial_text_neither_raises_nor_hangs(verifier: Verifier, text: str):
    assert verifier.check([Question(text, "x+1"), Question("2/4", "1/2")])[1] is Verdict.RIGHT


def test_the_children_outlive_the_thread_that_first_asked():
    """Linux kills them with the thread that started them; scoring threads end with their step."""

    def checked_in_a_thread() -> list[Verdict]:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(verifier.check, [Question("\\frac{1}{2}x", "0.5x")]).result()

    with Verifier(workers=2) as verifier:
        assert checked_in_a_thread() == [Verdict.RIGHT]
        children = {child.pid for child in multiprocessing.active_children()}
        assert checked_in_a_thread() == [Verdict.RIGHT]
        assert children == {child.pid for child in multiprocessing.active_children()}
