"""Problems with images for tests of the bundled vision-language model."""

from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import ScorableText
from reasoning.boards import draw_boards
from reasoning.records import Problem
from reasoning.stories import Split
from tasks.steps.problems import board_problem

LEVELS = (1, 2, 3, 4, 5, 6, 7)


def problems(count: int, levels: tuple[int, ...] = LEVELS, split: Split = Split.TRAIN) -> list[Problem]:
    return [board_problem(board, f"board-{n}") for n, board in enumerate(draw_boards(split, 0, count, levels))]


def text_of(model: Checkpoint, problem: Problem, completion: str) -> ScorableText:
    """Prompt and completion."""
    return ScorableText(model.prompt_ids(problem) + model.encode(completion), model.images_of(problem))
