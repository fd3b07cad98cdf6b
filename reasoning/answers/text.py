"""Normalises an answer as text, without typesetting."""

from __future__ import annotations

import re

from reasoning.answers.latex import SPACE, TEXT, TYPESETTING, plain

_WRAPPED = re.compile(rf"(?:{TEXT})\{{([^{{}}]*)\}}|\{{([^{{}}]*)\}}")
_DELIMITERS = re.compile(
    r"\$\$(.*)\$\$|(?<!\\)\$([^$]*)(?<!\\)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*(.*)\*\*|__(.*)__|`(.*)`|\"(.*)\""
    r"|=\s*(.*)|\\(?:boxed|fbox)\s*\{(.*)\}",
    re.DOTALL,
)
_STATED = re.compile(
    r"(?:^|[\s{*])(?:final\s+)?answer(?:\s+is\b|\s*:|(?=\s*(?:\$|\\\(|\\\[)))\s*:?\s*((?:(?!answer).)+?)"
    r"(?:\s*\.?\s*I hope it is correct.*)?$",
    re.DOTALL | re.IGNORECASE,
)
STATED_WITHIN = 300
"""Characters from the end in which "the answer is …" is searched."""


def stripped(text: str) -> str:
    """`text` without delimiters around an answer: math delimiters, bold, quotes, final full stop."""
    before, text = None, plain(text).strip()
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z]{2})", lambda _: "\\", text)  # double-escaped commands
    while text != before:
        before = text
        text = re.sub(r"(?<!\\)\.$|[,;]$|(?:\\[,;:! ]|\\\\|\\q?quad|~)$|\\$", "", text).strip()
        match = _DELIMITERS.fullmatch(text)
        inside = next((group for group in match.groups() if group is not None), "") if match else ""
        if match and _is_balanced(inside):
            text = inside.strip()
    # Paired dollar signs delimit math; a single one is a currency.
    return re.sub(r"(?<!\\)\$", "", text).strip() if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0 else text


def _is_balanced(text: str) -> bool:
    depth = 0
    for match in re.finditer(r"\\[{}]|[{}]", text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            return False
    return depth == 0


def as_text(text: str) -> str:
    """An answer's text; case, blanks, wrappers such as \\text{…} and a final full stop are ignored."""
    text, before = stripped(text), None
    while text != before and len(text) < 10_000:
        before = text
        text = _WRAPPED.sub(lambda match: match[1] if match[1] is not None else match[2], text)
    text = SPACE.sub(" ", TYPESETTING.sub("", text)).lower()
    text = re.sub(r"\s+", " ", text).strip(" .\"'")
    return re.sub(r"(?<![\w.]) | (?![\w.])|(?<=\\\w{3}) (?=\d)|(?<=\\\w{4}) (?=\d)", "", text)


def stated(text: str) -> str:
    """Text after the last "the answer is"; the whole text if it does not occur."""
    *_, last = [None, *_STATED.finditer(text[-STATED_WITHIN:])]
    return last[1] if last else text
