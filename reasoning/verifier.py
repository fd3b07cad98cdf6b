"""The answer check: a sound fast path, and math-verify in child processes that can be killed.

Knows: verdicts, workers, the time limit. Must not know: models, traces, what a verdict is used for.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import NamedTuple, Self

from reasoning.answers import plain_number, settle
from reasoning.records import Problem, Verdict

METHOD_VERSION = "1"
"""Part of the cache key of everything that verifies: raise it when a verdict may change."""
logger = logging.getLogger(__name__)


class Question(NamedTuple):
    answer: str | None
    """None: the completion holds no answer."""
    gold: str
    multiple_choice: bool = False


class Verifier:
    """Checks answers, plain ones at once and the others in up to `workers` child processes started on first need.

    Never raises for any text and never hangs: a comparison that takes longer than `limit` seconds is ended with its
    process and counts as `Verdict.TIMEOUT`.
    """

    def __init__(self, workers: int = 2, limit: float = 10.0):
        self._limit = limit
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(workers)

    def check(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each question, in order."""
        settled = [_quick_verdict(question) for question in questions]
        hard = [index for index, verdict in enumerate(settled) if verdict is None]
        for index, verdict in zip(hard, self._threads.map(self._compare, (questions[i] for i in hard)), strict=True):
            settled[index] = verdict
        return [verdict for verdict in settled if verdict is not None]

    def readable(self, answers: Sequence[str]) -> list[bool]:
        """For each right answer whether it can be read as mathematics; one that cannot only equals its own text."""
        return list(self._threads.map(self._is_readable, answers))

    def verdicts(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[str | None]]
    ) -> list[list[Verdict]]:  # fmt: skip
        """Of each problem's answers; checked in one call, so hard ones are checked side by side."""
        questions = [
            Question(answer, problem.answer, problem.choices is not None)
            for problem, group in zip(problems, answers, strict=True)
            for answer in group
        ]
        checked = iter(self.check(questions))
        return [[next(checked) for _ in group] for group in answers]

    def _is_readable(self, answer: str) -> bool:
        return plain_number(answer) is not None or self._compare(Question(None, answer)) is Verdict.RIGHT

    def _compare(self, question: Question) -> Verdict:
        worker, healthy = self._idle.get(), None
        try:
            worker = worker or _Worker()
            verdict = worker.compare(question.answer, question.gold, self._limit)
            if verdict is Verdict.TIMEOUT:
                logger.warning("answer check given up, counted as not verified: %.80r", question.answer)
                worker.kill()
            else:
                healthy = worker
            return verdict
        finally:
            self._idle.put(healthy)

    def close(self) -> None:
        self._threads.shutdown()
        while not self._idle.empty():
            worker = self._idle.get()
            if worker:
                worker.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _quick_verdict(question: Question) -> Verdict | None:
    if question.answer is None or not question.answer.strip():
        return Verdict.NO_ANSWER
    equal = settle(question.answer, question.gold, question.multiple_choice)
    return None if equal is None else Verdict.RIGHT if equal else Verdict.WRONG


class _Worker:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "reasoning.answer_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        self._warm = False

    def compare(self, answer: str | None, gold: str, limit: float) -> Verdict:
        """The verdict, or TIMEOUT when none came within `limit` seconds (the first may take a start-up longer).

        Without an `answer`: whether `gold` can be read.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
            line = self._read_line(limit if self._warm else limit + 30)
        except OSError:
            return Verdict.TIMEOUT
        self._warm = True
        return {b"true\n": Verdict.RIGHT, b"false\n": Verdict.WRONG}.get(line, Verdict.TIMEOUT)

    def _read_line(self, limit: float) -> bytes:
        """The worker's next line; cut short when it did not come in time or the worker died."""
        assert self._process.stdout
        line, deadline = b"", time.monotonic() + limit
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            piece = os.read(self._process.stdout.fileno(), 64) if ready else b""
            if not piece:
                return b""
            line += piece
        return line

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
