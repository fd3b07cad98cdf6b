"""The answer check: plain numbers directly, everything else in child processes that can be killed."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as CheckTimeout
from functools import cached_property
from typing import Any, NamedTuple, Self

from pebble import ProcessExpired, ProcessPool

from reasoning.answers.boxed import plain_number, settle
from reasoning.answers.check import is_readable
from reasoning.answers.worker import is_right, start
from reasoning.records import Problem, Verdict

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """An answer to check."""

    answer: str | None
    """None: the completion contains no answer."""
    gold: str
    choices: tuple[str, ...] | None = None
    """Options of a multiple-choice question."""


class Verifier:
    """Checks answers: simple ones directly, others in child processes, which start on first use.

    Never raises and never hangs, for any text: a comparison that exceeds `limit` seconds or a child's memory limit is
    killed and counts as `Verdict.TIMEOUT`. `workers` defaults to the number of cores. Workers are spawned, so scripts
    need the usual `if __name__ == "__main__":`.
    """

    def __init__(self, workers: int | None = None, limit: float = 10.0):
        self._workers = workers or len(os.sched_getaffinity(0))
        self._limit = limit

    @cached_property
    def _pool(self) -> ProcessPool:
        # Spawned, because forking a multi-threaded process may copy a held lock that is never released.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPool(max_workers=self._workers, initializer=start, context=context)
        # A child is killed when the thread that started it ends, and scoring threads end with their step.
        self._starter.submit(pool.schedule, os.getpid).result()
        return pool

    @cached_property
    def _starter(self) -> ThreadPoolExecutor:
        """One thread that lives as long as the verifier."""
        return ThreadPoolExecutor(1, "start answer checks")

    def check(self, questions: Sequence[Question]) -> list[Verdict]:
        """Verdicts of the questions, in order."""
        settled = [_quick_verdict(question) for question in questions]
        hard = [question for question, verdict in zip(questions, settled, strict=True) if verdict is None]
        found = self._verdicts(is_right, [(q.answer, q.gold, q.choices) for q in hard])
        return [next(found) if verdict is None else verdict for verdict in settled]

    def readable(self, problems: Sequence[Problem]) -> list[bool]:
        """Whether each problem's correct answer can be distinguished from wrong ones."""
        plain = [problem.choices is None and plain_number(problem.answer) is not None for problem in problems]
        hard = [(p.answer, p.choices) for p, is_plain in zip(problems, plain, strict=True) if not is_plain]
        found = self._verdicts(is_readable, hard)
        return [is_plain or next(found) is Verdict.RIGHT for is_plain in plain]

    def verdicts(self, problems: Sequence[Problem], answers: Sequence[Sequence[str | None]]) -> list[list[Verdict]]:
        """Verdicts of each problem's answers. Hard answers are checked in parallel."""
        questions = [
            Question(answer, problem.answer, problem.choices)
            for problem, group in zip(problems, answers, strict=True)
            for answer in group
        ]
        checked = iter(self.check(questions))
        return [[next(checked) for _ in group] for group in answers]

    def _verdicts(self, function: Callable[..., bool], calls: Sequence[tuple[Any, ...]]) -> Iterator[Verdict]:
        futures = [self._pool.schedule(function, args=call, timeout=self._limit) for call in calls]
        for future, call in zip(futures, calls, strict=True):
            try:
                yield Verdict.RIGHT if future.result() else Verdict.WRONG
            except (CheckTimeout, ProcessExpired, MemoryError):
                logger.warning("answer check timed out or failed, counted as not verified: %.80r", call[0])
                yield Verdict.TIMEOUT

    def close(self) -> None:
        if "_pool" in self.__dict__:
            self._pool.stop()
            self._pool.join()
            self._starter.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _quick_verdict(question: Question) -> Verdict | None:
    if question.answer is None or not question.answer.strip():
        return Verdict.NO_ANSWER
    if question.choices is not None:
        return None
    equal = settle(question.answer, question.gold)
    return None if equal is None else Verdict.RIGHT if equal else Verdict.WRONG
