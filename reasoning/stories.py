"""Generator of multi-step arithmetic stories, and a scripted teacher that overthinks them.

A story's *level* is its number of steps. A step is *risky* if its units digits carry or borrow: there the teacher drops
the carry (or forgets the borrow) with a fixed probability. So mistakes are off by exactly ten, and a model can learn
where doubt pays. Every level has stories without a risky step, where every re-check is wasted.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from conf.tiny_model import Teacher

MAX_LEVEL = 10
SEEN_LEVELS = range(1, 9)
"""Levels that the tiny model was trained on; 9 and 10 are unseen."""
LARGEST = 99
"""Largest count that occurs in a problem."""
_LARGEST_MISTAKEN = 199


class Split(StrEnum):
    """Data split of a story. Determined by the story's text, so splits never overlap, for any seed."""

    PRETRAIN = "pretrain"
    TRAIN = "train"
    HELDOUT = "heldout"
    BENCHMARK = "benchmark"


_BUCKETS = {
    Split.PRETRAIN: range(12),
    Split.TRAIN: range(12, 16),
    Split.HELDOUT: range(16, 18),
    Split.BENCHMARK: range(18, 20),
}
_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kim", "Leo")
_ITEMS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "cards")
_GAIN = ("gets {n} more", "finds {n} more", "buys {n} more")
_LOSS = ("gives away {n}", "loses {n}", "sells {n}")
_DOUBLE = "The number doubles"


@dataclass(frozen=True)
class Step:
    """One event: `change` is added to the count; None doubles it."""

    change: int | None
    sentence: str
    label: str = ""
    """What the teacher writes before the step."""
    source: str = ""
    """What the number is read from, as the teacher writes it before the number."""

    def apply(self, value: int) -> int:
        return value + (value if self.change is None else self.change)

    def written(self, value: int, result: int, doubtful: bool = False) -> str:
        """The step as the teacher writes it, on one line: `17+8=25.` or, in doubt, `17+8=15?`"""
        operand = value if self.change is None else self.change
        sign = "-" if operand < 0 else "+"
        return f"{self.label}{value}{sign}{self.source}{abs(operand)}={result}{'?' if doubtful else '.'}\n"

    def is_risky(self, value: int) -> bool:
        """Whether the units digits carry (sum above 9) or borrow (difference below 0)."""
        operand = value if self.change is None else self.change
        if operand < 0:
            return value % 10 < -operand % 10
        return value % 10 + operand % 10 > 9

    def slip(self, value: int) -> int:
        """The wrong result: carry dropped or borrow forgotten."""
        operand = value if self.change is None else self.change
        return self.apply(value) + (10 if operand < 0 else -10)


class Task(Protocol):
    """What the teacher can solve: a number, and steps that change it."""

    @property
    def start(self) -> int: ...
    @property
    def steps(self) -> tuple[Step, ...]: ...
    @property
    def level(self) -> int: ...
    @property
    def opening(self) -> str:
        """First line of the teacher's first pass."""
        ...


@dataclass(frozen=True)
class Story:
    """An arithmetic story with a known answer."""

    name: str
    item: str
    start: int
    steps: tuple[Step, ...]

    @property
    def level(self) -> int:
        return len(self.steps)

    @property
    def opening(self) -> str:
        """First line of the teacher's first pass."""
        return f"Start with {self.start}.\n"

    @property
    def values(self) -> tuple[int, ...]:
        """Correct counts after 0 … level steps."""
        counts = [self.start]
        for step in self.steps:
            counts.append(step.apply(counts[-1]))
        return tuple(counts)

    @property
    def answer(self) -> int:
        return self.values[-1]

    @property
    def risky_steps(self) -> int:
        """Number of risky steps."""
        return sum(step.is_risky(value) for step, value in zip(self.steps, self.values[:-1], strict=True))

    def options(self, count: int) -> list[int]:
        """The answer among `count` numbers, shuffled; the others are what usual mistakes lead to."""
        steps = (10, -10, 1, -1, 20, -20, 2, -2, 11, -11, 9, 30, 12)
        wrong = [self.answer + step for step in steps if self.answer + step >= 0]
        options = [self.answer, *wrong[: count - 1]]
        random.Random(f"options:{self.text}").shuffle(options)
        return options

    @property
    def text(self) -> str:
        events = " ".join(f"{step.sentence}." for step in self.steps)
        return f"{self.name} has {self.start} {self.item}. {events} How many {self.item} now?"


def split_of(text: str) -> Split:
    """The split of a story with this text."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % 20
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def draw_stories(split: Split, seed: int, count: int, levels: tuple[int, ...]) -> list[Story]:
    """`count` distinct stories of `split`, with levels taken in turn; deterministic.

    A longer list begins with the shorter one, so a larger `count` keeps the earlier stories.
    """
    rng = random.Random(f"{split}:{seed}:{levels}")
    stories: dict[str, Story] = {}
    while len(stories) < count:
        story = _draw_story(rng, levels[len(stories) % len(levels)])
        if split_of(story.text) is split:
            stories.setdefault(story.text, story)
    return list(stories.values())


def _draw_story(rng: random.Random, level: int) -> Story:
    """A random story. About a third has no risky step; in the others their number grows with the level."""
    risky = draw_risky_steps(rng, level)
    name = rng.choice(_NAMES)
    while True:
        start = rng.randrange(3, 60)
        steps = chained(level, start, lambda index, value: _draw_step(rng, name, value, index in risky))
        if steps is not None:
            return Story(name, rng.choice(_ITEMS), start, steps)


def draw_risky_steps(rng: random.Random, level: int) -> set[int]:
    """Indices of the steps that are to be risky: none in about a third of the draws."""
    risky = 0 if rng.random() < 0.35 else min(level, rng.choice((1, 1, 2)) + level // 3)
    return set(rng.sample(range(level), risky))


def chained(level: int, start: int, draw: Callable[[int, int], Step | None]) -> tuple[Step, ...] | None:
    """`level` steps, each drawn for its index and the count before it; None as soon as `draw` finds none."""
    value, steps = start, list[Step]()
    for index in range(level):
        step = draw(index, value)
        if step is None:
            return None
        steps.append(step)
        value = step.apply(value)
    return tuple(steps)


def _draw_step(rng: random.Random, name: str, value: int, risky: bool) -> Step | None:
    """A step that is risky or not, as requested, and keeps the count in 1 … 99. None after 30 failed attempts."""
    for _ in range(30):
        kind = rng.random()
        if kind < 0.15:
            step = Step(None, _DOUBLE)
        elif kind < 0.575:
            change = rng.randrange(2, 50)
            step = Step(change, f"{name} " + rng.choice(_GAIN).format(n=change))
        else:
            change = rng.randrange(2, 50)
            step = Step(-change, f"{name} " + rng.choice(_LOSS).format(n=change))
        if 1 <= step.apply(value) <= LARGEST and step.is_risky(value) == risky:
            return step
    return None


@dataclass(frozen=True)
class Thinking:
    """The teacher's thinking: `text` up to the closing tag, and all conclusions in order."""

    text: str
    conclusions: tuple[int, ...]

    @property
    def reply(self) -> str:
        """Text after the closing tag."""
        return f"\nThe answer is \\boxed{{{self.conclusions[-1]}}}."


class OverThinker:
    """Scripted teacher: solves a story, doubts, and solves it again, often for nothing.

    `conf.tiny_model.Teacher` sets the probabilities of mistakes, doubts and re-checks.
    """

    def __init__(self, chances: Teacher, rng: random.Random):
        self._chances, self._rng = chances, rng

    def think(self, story: Task) -> Thinking:
        """A complete overthinking trace of `story`."""
        text, value, doubtful = self._first_pass(story)
        conclusions = [value]
        while len(conclusions) <= self._chances.max_rechecks and self._rng.random() < self._go_on(doubtful):
            again, value, doubtful = self._recheck(story, value)
            text += again
            conclusions.append(value)
        plainly = self._rng.random() < self._chances.close_plainly
        text += "Now the answer is clear.\n" if plainly else f"Therefore the answer is {value}.\n"
        return Thinking(text, tuple(conclusions))

    def _go_on(self, doubtful: bool) -> float:
        return self._chances.go_on_doubtful if doubtful else self._chances.go_on_sure

    def _first_pass(self, story: Task) -> tuple[str, int, bool]:
        """First pass: its text, its conclusion, and whether it shows doubt."""
        text = story.opening
        worked = list(self._work(story, self._chances.slip_first))
        for index, (line, value) in enumerate(worked, start=1):
            text += line
            if index < story.level and self._rng.random() < self._chances.muse:
                text += f"Hmm, so far it is {value}.\n"
        value = worked[-1][1]
        doubtful = "?" in text
        return f"{text}That makes {value}{_stop(doubtful)}\n", value, doubtful

    def _recheck(self, story: Task, before: int) -> tuple[str, int, bool]:
        """A re-check after the conclusion `before`: its text, its conclusion, and whether it shows doubt."""
        opening = self._rng.choice(("Wait, let me check.", "Alternatively, start again.", "Hmm, once more."))
        worked = list(self._work(story, self._chances.slip_again))
        chain, value = "".join(line for line, _ in worked), worked[-1][1]
        doubtful = "?" in chain
        verdict = f"It is {value} again" if value == before else f"Now it is {value}, not {before}"
        return f"{opening}\n{chain}{verdict}{_stop(doubtful)}\n", value, doubtful

    def _work(self, story: Task, slip: float) -> Iterator[tuple[str, int]]:
        """One pass through the story: each step as written, and the count after it."""
        value = story.start
        for index, step in enumerate(story.steps):
            result, doubt = step.apply(value), 0.0
            if step.is_risky(value):
                mistaken = step.slip(value)
                slips = self._rng.random() < slip and _stays_in_range(mistaken, story.steps[index + 1 :])
                result, doubt = (mistaken, self._chances.doubt_slip) if slips else (result, self._chances.doubt_right)
            yield step.written(value, result, doubtful=self._rng.random() < doubt), result
            value = result


def _stop(doubtful: bool) -> str:
    """End of a conclusion: a question mark if a step of its pass was in doubt."""
    return "?" if doubtful else "."


def _stays_in_range(value: int, steps: tuple[Step, ...]) -> bool:
    """Whether all later counts stay within the allowed range."""
    for step in steps:
        if not 0 <= value <= _LARGEST_MISTAKEN:
            return False
        value = step.apply(value)
    return 0 <= value <= _LARGEST_MISTAKEN
