"""The picture world: what its questions and pictures say."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from conf.tiny_model import Teacher
from reasoning.boards import COLOURS, Board, Box, Notation, draw_boards
from reasoning.stories import OverThinker, Split, Step

LEVELS = (1, 2, 3, 4, 5, 6, 7)


def box(colour: str, quantity: int, notation: Notation) -> Box:
    return Box(colour, quantity, notation, tuple(range(quantity)) if notation is Notation.DOTS else ())


BOARD = Board(
    (
        box("red", 7, Notation.DOTS),
        box("blue", 5, Notation.STROKES),
        box("white", 3, Notation.DIGIT),
        box("green", 1, Notation.DOTS),
        box("black", 9, Notation.STROKES),
        box("yellow", 8, Notation.DIGIT),
    ),
    "red",
    (Step(5, " add blue", "1:", " blue"), Step(-3, " take away white", "2:", " white"), Step(None, " double", "3:")),
)


def test_a_question_names_boxes_and_no_quantity():
    assert BOARD.text == "Start with red.\n1: add blue.\n2: take away white.\n3: double.\nHow many?"
    assert (BOARD.level, BOARD.answer) == (3, 18)


def test_the_teacher_writes_each_quantity_after_its_colour():
    certain = Teacher(slip_first=0, go_on_sure=0, go_on_doubtful=0, doubt_right=0, muse=0, close_plainly=0)
    text = OverThinker(certain, random.Random(0)).think(BOARD).text
    lines = ["Start with red7.", "1:7+ blue5=12.", "2:12- white3=9.", "3:9+9=18.", "That makes 18."]
    assert text.splitlines() == [*lines, "Therefore the answer is 18."]


def test_a_picture_shows_each_box_in_its_colour():
    pixels = np.asarray(Image.open(io.BytesIO(BOARD.picture())))
    assert pixels.shape == (56, 84, 3)
    for index, one in enumerate(BOARD.boxes):
        top, left = 28 * (index // 3), 28 * (index % 3)
        assert tuple(pixels[top + 2, left + 2]) == COLOURS[one.colour]


@pytest.mark.parametrize(("notation", "area"), [(Notation.DOTS, 16), (Notation.STROKES, 16)])
def test_a_picture_shows_as_many_marks_as_the_quantity(notation: Notation, area: int):
    """Dots are 4 × 4 pixels and strokes 2 × 8."""
    for quantity in range(1, 10):
        board = Board((box("black", quantity, notation),) * 6, "black", ())
        marks = (board.pixels()[:28, :28] == 255).all(axis=2).sum()
        assert marks == quantity * area


def test_digits_look_different():
    cells = [Board((box("red", n, Notation.DIGIT),) * 6, "red", ()).pixels()[:28, :28].tobytes() for n in range(1, 10)]
    assert len(set(cells)) == 9


def test_boards_are_sound_and_distinct():
    boards = draw_boards(Split.TRAIN, 3, 210, LEVELS)
    assert [board.level for board in boards[:7]] == list(LEVELS)
    assert len({board.name for board in boards}) == 210
    for board in boards:
        value = board.start
        assert len({one.colour for one in board.boxes}) == 6
        for step in board.steps:
            if step.change is not None:
                assert abs(step.change) == board.quantity(step.source.strip())
            value = step.apply(value)
            assert 1 <= value <= 99
        assert board.answer == value


def test_a_larger_draw_begins_with_the_smaller_and_splits_share_nothing():
    assert draw_boards(Split.TRAIN, 0, 70, LEVELS)[:20] == draw_boards(Split.TRAIN, 0, 20, LEVELS)
    names = [{board.name for board in draw_boards(split, 0, 200, (1,))} for split in Split]
    assert len(set.union(*names)) == sum(map(len, names))
