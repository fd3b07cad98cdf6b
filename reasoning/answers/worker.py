r"""The answer check's child processes: this project's own reading first, math-verify where that says nothing.

Knows: both readings, and how far math-verify is trusted. Must not know: processes, time limits, what answers are for.

math-verify finds an answer in a text, and may find a part of it: `5` in `5 \pmod 3`. So it is believed only where both
texts are made of the same numbers, letters and commands: it may tell that they are in another order, not that one of
them does not matter.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
import resource
import signal
from collections import Counter
from collections.abc import Sequence

from reasoning.answers.check import same
from reasoning.answers.latex import LONGEST, SETTING, SPACE, SYNONYMS
from reasoning.answers.text import stripped

PR_SET_PDEATHSIG = 1
MEMORY = 4 << 30
"""Bytes that a child may use."""
_PART = re.compile(r"\d[\d,.]*|\\?[a-zA-Z]+|[<>=!|%'/^_+-]")


def start() -> None:
    """Makes a child ready: it cannot outgrow its memory, ends with its owner, and has loaded what takes long."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    logging.disable()  # math-verify warns that it has no time limit: its process has one
    importlib.import_module("math_verify")


def is_right(said: str, gold: str, choices: Sequence[str] | None) -> bool:
    """Whether `said` is the right answer. Never raises for any text."""
    known = same(said, gold, choices)
    return known if known is not None else _parts(said) == _parts(gold) and by_library(said, gold)


def by_library(said: str, gold: str) -> bool:
    """math-verify's verdict, each text read as its authors say: `$gold$` beside `\\boxed{said}`."""
    from math_verify import parse, verify

    if max(len(said), len(gold)) > LONGEST:
        return False
    try:
        right = parse(f"${stripped(gold)}$", parsing_timeout=0)
        given = parse(rf"\boxed{{{stripped(said)}}}", parsing_timeout=0)
        return verify(right, given, timeout_seconds=0)
    except Exception:  # hostile text reaches a parser: whatever it raises, the answer is not verified
        return False


def _parts(text: str) -> Counter[str]:
    """What a text is made of, without how it is set."""
    bare = SPACE.sub(" ", SETTING.sub("", stripped(text)))
    found = (part.replace(",", "").strip(".") if part[0].isdigit() else part for part in _PART.findall(bare))
    return Counter([_name_of(part) for part in found if part != "\\text"])


def _name_of(part: str) -> str:
    bare = part.removeprefix("\\")
    return SYNONYMS.get(bare, bare)
