"""Picture problems: a board of coloured boxes that hold quantities, and a question that is answered by reading and
calculating.

A board has six boxes of different colours. Each holds 1 to 9, as dots, as strokes or as a digit. The question names
boxes by their colour alone, so it cannot be answered without the picture. As in `reasoning.stories`, the *level* is the
number of steps, and a step is *risky* if its units digits carry or borrow.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reasoning.stories import LARGEST, Split, Step, chained, draw_risky_steps, split_of

COLUMNS, ROWS = 3, 2
MAX_QUANTITY = 9
CELL = 28
"""Pixels per side of a box with its margin."""
COLOURS = {
    "red": (214, 40, 40),
    "blue": (40, 80, 200),
    "green": (40, 150, 60),
    "yellow": (240, 205, 40),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
    "orange": (245, 130, 30),
    "purple": (130, 50, 160),
}
_LIGHT = {"yellow", "white", "orange"}
"""Boxes whose marks are dark."""
_GROUND = (190, 190, 190)
MAX_LEVEL = 7
_DIGITS = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
"""Lit segments of the digits 0 to 9 in a seven-segment display."""
_SEGMENTS = {
    "a": (0, 0, 10, 2),
    "b": (8, 0, 2, 9),
    "c": (8, 7, 2, 9),
    "d": (0, 14, 10, 2),
    "e": (0, 7, 2, 9),
    "f": (0, 0, 2, 9),
    "g": (0, 7, 10, 2),
}
"""Left, top, width and height of each segment in pixels."""
Pixels = NDArray[np.uint8]


class Notation(StrEnum):
    """How a box shows its quantity."""

    DOTS = "dots"
    STROKES = "strokes"
    DIGIT = "digit"


@dataclass(frozen=True)
class Box:
    """One box of a board."""

    colour: str
    quantity: int
    """1 … 9."""
    notation: Notation
    places: tuple[int, ...]
    """Cells of a 3 × 3 grid that hold the dots; empty for the other notations."""


@dataclass(frozen=True)
class Board:
    """A picture and a question about it, with a known answer."""

    boxes: tuple[Box, ...]
    """Row by row."""
    first: str
    """Colour of the box that the calculation starts with."""
    steps: tuple[Step, ...]

    def quantity(self, colour: str) -> int:
        return next(box.quantity for box in self.boxes if box.colour == colour)

    @property
    def start(self) -> int:
        return self.quantity(self.first)

    @property
    def opening(self) -> str:
        """The teacher's first line. A quantity stands right after its colour, where a small model learns to read it."""
        return f"Start with {self.first}{self.start}.\n"

    @property
    def level(self) -> int:
        return len(self.steps)

    @property
    def answer(self) -> int:
        value = self.start
        for step in self.steps:
            value = step.apply(value)
        return value

    @property
    def text(self) -> str:
        """The question."""
        events = "".join(f"{step.label}{step.sentence}.\n" for step in self.steps)
        return f"Start with {self.first}.\n{events}How many?"

    @property
    def name(self) -> str:
        """Question and boxes in words; two boards with one name differ at most in where the dots lie."""
        return f"{self.text} {' '.join(f'{box.colour}{box.quantity}{box.notation}' for box in self.boxes)}"

    def picture(self) -> bytes:
        """The board as a PNG file of 84 × 56 pixels."""
        file = io.BytesIO()
        Image.fromarray(self.pixels()).save(file, "PNG")
        return file.getvalue()

    def pixels(self) -> Pixels:
        """Shape (56, 84, 3)."""
        cells = [_drawn(box) for box in self.boxes]
        return np.concatenate(
            [np.concatenate(cells[row * COLUMNS : (row + 1) * COLUMNS], axis=1) for row in range(ROWS)]
        )


def draw_boards(split: Split, seed: int, count: int, levels: tuple[int, ...]) -> list[Board]:
    """`count` distinct boards of `split`, with levels taken in turn; deterministic. A longer list begins with the
    shorter one."""
    rng = random.Random(f"boards:{split}:{seed}:{levels}")
    boards: dict[str, Board] = {}
    while len(boards) < count:
        board = _draw_board(rng, levels[len(boards) % len(levels)])
        if split_of(board.name) is split:
            boards.setdefault(board.name, board)
    return list(boards.values())


def _draw_board(rng: random.Random, level: int) -> Board:
    """About a third of the boards have no risky step; in the others their number grows with the level."""
    risky = draw_risky_steps(rng, level)
    while True:
        boxes = tuple(_draw_box(rng, colour) for colour in rng.sample(sorted(COLOURS), COLUMNS * ROWS))
        first = rng.choice(boxes)
        steps = chained(level, first.quantity, partial(_draw_step, rng, boxes, risky))
        if steps is not None:
            return Board(boxes, first.colour, steps)


def _draw_box(rng: random.Random, colour: str) -> Box:
    quantity, notation = rng.randint(1, MAX_QUANTITY), rng.choice(list(Notation))
    places = tuple(sorted(rng.sample(range(9), quantity))) if notation is Notation.DOTS else ()
    return Box(colour, quantity, notation, places)


def _draw_step(rng: random.Random, boxes: tuple[Box, ...], risky: set[int], index: int, value: int) -> Step | None:
    """A step that is risky or not, as requested, and keeps the count in 1 … 99. None if none was found. Its label, in
    question and trace alike, tells a small model where it is: colours repeat."""
    label = f"{index + 1}:"
    for _ in range(30):
        box, kind = rng.choice(boxes), rng.random()
        if kind < 0.1:
            step = Step(None, " double", label)
        elif kind < 0.6:
            step = Step(box.quantity, f" add {box.colour}", label, f" {box.colour}")
        else:
            step = Step(-box.quantity, f" take away {box.colour}", label, f" {box.colour}")
        if 1 <= step.apply(value) <= LARGEST and step.is_risky(value) == (index in risky):
            return step
    return None


def _drawn(box: Box) -> Pixels:
    """A box in its cell, shape (CELL, CELL, 3)."""
    cell = np.full((CELL, CELL, 3), _GROUND, dtype=np.uint8)
    cell[1:-1, 1:-1] = COLOURS[box.colour]
    for left, top, width, height in _marks(box):
        cell[top : top + height, left : left + width] = (20, 20, 20) if box.colour in _LIGHT else (255, 255, 255)
    return cell


def _marks(box: Box) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of the rectangles that show the quantity, in pixels of the cell."""
    if box.notation is Notation.DOTS:
        return [(4 + 8 * (place % 3), 4 + 8 * (place // 3), 4, 4) for place in box.places]
    if box.notation is Notation.STROKES:
        return [(4 + 4 * (index % 5), 4 + 12 * (index // 5), 2, 8) for index in range(box.quantity)]
    return [
        (9 + left, 6 + top, width, height)
        for left, top, width, height in map(_SEGMENTS.__getitem__, _DIGITS[box.quantity])
    ]
