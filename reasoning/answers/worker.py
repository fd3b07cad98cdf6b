r"""Runs in the answer check's child processes: this project's own parser first, math-verify if that is undecided.

math-verify searches a text for an answer and may find only a part: `5` in `5 \pmod 3`. So it is trusted only if both
texts consist of the same numbers, letters and commands. It can then decide that order does not matter, but not that a
part does not.
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
from reasoning.answers.latex import MAX_CHARS, SPACE, SYNONYMS, TYPESETTING
from reasoning.answers.text import stripped

PR_SET_PDEATHSIG = 1
MEMORY = 4 << 30
"""Memory limit of a child in bytes."""
_PART = re.compile(r"\d[\d,.]*|\\?[a-zA-Z]+|[<>=!|%'/^_+-]")


def start() -> None:
    """Prepares a child: limits its memory, ties it to its parent's lifetime, and preloads slow imports."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    logging.disable()  # math-verify warns about its missing time limit; the pool enforces one
    importlib.import_module("math_verify")


def is_right(answer: str, gold: str, choices: Sequence[str] | None) -> bool:
    """Whether `answer` is correct. Never raises."""
    known = same(answer, gold, choices)
    return known if known is not None else _parts(answer) == _parts(gold) and by_library(answer, gold)


def by_library(answer: str, gold: str) -> bool:
    """math-verify's verdict, with each text passed as its authors recommend: `$gold$` and `\\boxed{answer}`."""
    from math_verify import parse, verify

    if max(len(answer), len(gold)) > MAX_CHARS:
        return False
    try:
        right = parse(f"${stripped(gold)}$", parsing_timeout=0)
        given = parse(rf"\boxed{{{stripped(answer)}}}", parsing_timeout=0)
        return verify(right, given, timeout_seconds=0)
    except Exception:  # the parser may raise anything on untrusted text; the answer then counts as not verified
        return False


def _parts(text: str) -> Counter[str]:
    """Numbers, letters and commands in a text, without typesetting."""
    bare = SPACE.sub(" ", TYPESETTING.sub("", stripped(text)))
    found = (part.replace(",", "").strip(".") if part[0].isdigit() else part for part in _PART.findall(bare))
    return Counter([_name_of(part) for part in found if part != "\\text"])


def _name_of(part: str) -> str:
    bare = part.removeprefix("\\")
    return SYNONYMS.get(bare, bare)
