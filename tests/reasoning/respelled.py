r"""Falsified and respelled answers, generated from the answers of public problems.

A falsification is certain to change the value: one digit, sign, factor, item or bracket.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

FILES = ("math500", "math_train_sample2000", "gaokao2023en", "aime24", "amc23", "gsm8k_test")
Change = Callable[[str, random.Random], str]
SIMPLE_FRACTION = re.compile(r"^(-?)\\d?frac\{(\d+)\}\{(\d+)\}$")
INTEGER = re.compile(r"^-?\d+$")


def golds(folder: Path, plain_numbers: int = 150) -> list[str]:
    """Distinct answers of the public sets, in a fixed order, with a sample of `plain_numbers` integers."""
    found: dict[str, None] = {}
    for name in FILES:
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            found.setdefault(json.loads(line)["answer"].strip())
    numbers = [gold for gold in found if INTEGER.match(gold)]
    return [gold for gold in found if not INTEGER.match(gold)] + random.Random(0).sample(numbers, plain_numbers)


def inside(gold: str) -> str:
    return gold[1:-1] if gold.startswith("$") and gold.endswith("$") and gold.count("$") == 2 else gold


def _once(pattern: str, new: str | Callable[[re.Match[str]], str]) -> Change:
    """Replaces one random match."""

    def change(text: str, rng: random.Random) -> str:
        found = list(re.finditer(pattern, text))
        if not found:
            return text
        match = rng.choice(found)
        return text[: match.start()] + (match.expand(new) if isinstance(new, str) else new(match)) + text[match.end() :]

    return change


def _other_digit(match: re.Match[str]) -> str:
    return str((int(match[0]) + 1 + (int(match[0]) + match.start()) % 8) % 10)


FALSIFIED: dict[str, Change] = {
    "digit": _once(r"\d", _other_digit),
    "sign": _once(r"(?<=[\w})\s])\s?([+-])(?=[\s\w\\({])", lambda m: m[0].replace(m[1], "-+"["+-".index(m[1])])),
    "minus before": lambda t, c: t[1:] if t.startswith("-") else f"-{t}" if re.match(r"[\d\\(]", t) else t,
    "factor dropped": _once(r"(?<=\d)\s*(?:\\sqrt\s*\{[^{}]*\}|\\pi)", ""),
    "factor put": lambda t, c: (
        t
        if re.search(r"=|text|(?<!\d)[01]$|[\])}]$", t)
        else t + c.choice([r"\sqrt{2}", r"\pi", "x", "!", "i", "^2", r"\sqrt{3}"])
    ),
    "letter": _once(r"(?<![a-zA-Z\\])[xyzkabnt](?![a-zA-Z])", lambda m: "q"),
    "item dropped": lambda t, c: t.rpartition(",")[0] if "," in t and not re.search(r"[()\[\]{}]|\d,\d{3}", t) else t,
    "item in brackets dropped": _once(r"(?<=[(\{\[]),?([^,(){}\[\]]+),(?!\\!)", ""),
    "item put": lambda t, c: t if re.search(r"[,\\]text|[a-zA-Z]{3}", t) else f"{t}, 97",
    "bracket": _once(r"(?<![a-zA-Z\d}])\((?=[^()]*,)", "["),
    "relation": _once(r"\\l?g?eq?(?:slant)?(?![a-z])|[<>]", lambda m: r"\ne "),
    "root": _once(r"\\sqrt(?=\s*\{)", r"\\sqrt[3]"),
    "turned over": _once(r"\\frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\\frac{\2}{\1}"),
    "power": _once(r"\^\s*\{?(\d)\}?", lambda m: "^{" + str(int(m[1]) + 1) + "}"),
    "a part": lambda t, c: (
        t
        if re.search(r"=|%|\$|text|mbox|mathrm|circ|cm|\.|phantom", t) or not re.search(r"\d", t)
        else (c.choice(re.findall(r"\d+", t)))
    ),
    "scaled": lambda t, c: rf"10 \cdot ({t})" if not re.search(r"text|[,=<>%]|circ|[a-zA-Z]{3}", t) else t,
    "word": lambda t, c: re.sub(r"(\\text\{[^{}]*?)([a-z]{3,})", r"\1other", t, count=1) if "unit" not in t else t,
    "half": lambda t, c: rf"\frac{{{t}}}{{2}}" if re.fullmatch(r"[-\d\\a-z{}\s]+", t) and re.search(r"\d", t) else t,
}


def _spaced(text: str, rng: random.Random) -> str:
    return re.sub(r"(?<![\\,])([+=,])", r" \1 ", text) if not re.search(r"text|mbox|\d,\d{3}|!", text) else text


def _grouped(text: str, rng: random.Random) -> str:
    comma = rng.choice([",", r"{,}", r",\!", r"\,", " "])
    return f"{int(text):,}".replace(",", comma) if INTEGER.match(text) else text


SIGNS = {"pi": "π", "infty": "∞", "cdot": "·", "le": "≤", "ge": "≥", "cup": "∪", "pm": "±"}


def _in_unicode(text: str, rng: random.Random) -> str:
    signs = re.sub(rf"\\({'|'.join(SIGNS)})(?![a-z])", lambda match: SIGNS[match[1]], text)
    return signs.replace(r"^\circ", "°")


def _reversed_list(text: str, rng: random.Random) -> str:
    is_list = "," in text and not re.search(r"[()\[\]{}=]|\d,\d{3}|text|!", text)
    return ", ".join(reversed(text.split(","))) if is_list else text


RESPELLED: dict[str, Change] = {
    "dollars": lambda t, c: f"${t}$",
    "parentheses": lambda t, c: rf"\({t}\)",
    "box": lambda t, c: rf"\boxed{{{t}}}",
    "full stop": lambda t, c: f"{t}.",
    "blanks": lambda t, c: f"  {t} \n",
    "bold": lambda t, c: f"**{t}**" if "*" not in t else t,
    "dfrac": lambda t, c: t.replace(r"\frac", r"\dfrac"),
    "tfrac": lambda t, c: t.replace(r"\frac", r"\tfrac"),
    "slash": lambda t, c: SIMPLE_FRACTION.sub(r"\1\2/\3", t),
    "whole": lambda t, c: SIMPLE_FRACTION.sub(lambda m: rf"{m[1]}\frac{{{3 * int(m[2])}}}{{{3 * int(m[3])}}}", t),
    "minus inside": lambda t, c: re.sub(r"^-\\frac\{(\d+)\}", r"\\frac{-\1}", t),
    "left right": lambda t, c: re.sub(r"(?<!\\left)\(([^()]*)\)", r"\\left(\1\\right)", t) if "left" not in t else t,
    "no left right": lambda t, c: t.replace(r"\left", "").replace(r"\right", ""),
    "thin blanks": lambda t, c: re.sub(r"(?<=[,+])(?!\\)", r"\\, ", t) if not re.search(r"text|\d,\d{3}|!", t) else t,
    "spaced": _spaced,
    "Unicode": _in_unicode,
    "root sign": lambda t, c: re.sub(r"\\sqrt\{(\d+)\}", r"√\1", t),
    "long minus": lambda t, c: t.replace("-", "−") if "text" not in t else t,
    "full width": lambda t, c: "".join(chr(ord(d) + 0xFEE0) for d in t) if INTEGER.match(t) and t[0] != "-" else t,
    "groups": _grouped,
    "dot nought": lambda t, c: f"{t}.0" if INTEGER.match(t) else t,
    "scientific": lambda t, c: rf"{t} \times 10^0" if INTEGER.match(t) else t,
    "display": lambda t, c: rf"\displaystyle {t}",
    "no unit": lambda t, c: (
        re.sub(r"\s*(?:\\text|\\mbox)\{\s*[a-z ]+\}(?:\^\d)?$", "", t)
        if re.match(r"[\d\\.$]", t) and not t.startswith("\\text")
        else t
    ),
    "no degrees": lambda t, c: re.sub(r"\^\\circ|\^\{\\circ\}", "", t),
    "in text": lambda t, c: (
        rf"\text{{{t}}}" if re.fullmatch(r"[A-Za-z ]{4,}", t) else re.sub(r"^\\text\{([A-Za-z ]+)\}$", r"\1", t)
    ),
    "name": lambda t, c: f"x = {t}" if INTEGER.match(t) or SIMPLE_FRACTION.match(t) else t,
    "items turned": _reversed_list,
    "dot": lambda t, c: re.sub(r"(?<=\d)(?=\\sqrt)", r" \\cdot ", t),
    "braces off": lambda t, c: re.sub(r"\^\{(\d)\}", r"^\1", t),
    "braces on": lambda t, c: re.sub(r"\^(\d)(?!\d)", r"^{\1}", t),
}


def changed(golds: list[str], changes: dict[str, Change], seed: int) -> Iterator[tuple[str, str, str]]:
    """(name of the change, answer, changed answer) for each answer and each change that applies to it."""
    rng = random.Random(seed)
    for gold in golds:
        for name, change in changes.items():
            new = change(inside(gold), rng)
            if (
                new not in (gold, inside(gold))
                and new.strip()
                and not (changes is FALSIFIED and _is_unchangeable(gold))
            ):
                yield name, gold, new


def _is_unchangeable(gold: str) -> bool:
    """Half or the negative of zero is zero, and changing an invisible part changes nothing."""
    return re.fullmatch(r"\$?-?0(?:,.*)?\$?", gold) is not None or "phantom" in gold
