"""A child process that compares answers with math-verify: a line [answer, gold] in, a verdict out; for [null, gold]
whether the right answer can be read at all.

Knows: math-verify. Must not know: what the answers are for. Its owner may kill it at any moment; it ends by itself
when its owner's end of the pipe closes, even in the middle of a comparison.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
import threading
from queue import SimpleQueue
from typing import Any

PR_SET_PDEATHSIG = 1
MEMORY = 4 << 30
"""Bytes a comparison may use."""
DELIMITERS = ("$", "\\(", "\\[", "boxed")


def _as_formula(text: str) -> list[Any]:
    from math_verify import parse

    return parse(text) if any(mark in text for mark in DELIMITERS) else parse(f"${text}$") or parse(text)


def readable(gold: str) -> bool:
    """Whether math-verify finds mathematics in it, not only a text to compare. Never raises."""
    try:
        return any(not isinstance(found, str) for found in _as_formula(gold))
    except Exception:
        return False


def equal(answer: str, gold: str) -> bool:
    """math-verify's verdict: each text read as one formula, and as prose too where it is no list, equation or power.

    Prose reading takes the last number it finds, which would make `10, 4, 2` equal to `4, 12, 2`. Never raises.
    """
    from math_verify import parse, verify

    try:
        if verify(_as_formula(gold), _as_formula(answer)):
            return True
        return not re.search(r"[,;]\s|=|\^", answer + gold) and bool(verify(parse(gold), parse(answer)))
    except Exception:  # hostile text reaches a parser: whatever it raises, the answer is not verified
        return False


def main() -> None:
    # A comparison that is deep in C never lets our reader thread run; the kernel ends us with our owner all the same.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    questions: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            questions.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        answer, gold = json.loads(questions.get())
        sys.stdout.write(json.dumps(readable(gold) if answer is None else equal(answer, gold)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
