"""The bundled vision-language model: its contract, its lessons, and the warm start without which it never looks."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from conf.tiny_model import Teacher
from conf.tiny_vision_model import VisionLesson, WarmStart
from models.checkpoints.checkpoint import TINY_VISION_MODEL, Checkpoint
from models.checkpoints.images import ImageProcessor
from models.tiny_model import CONTEXT, PAD, RESERVED
from models.tiny_vision_model import (
    lesson_rows,
    train_vision_tokenizer,
    untrained_image_processor,
    untrained_vision_model,
    warm_start,
)
from reasoning.boards import COLOURS, draw_boards
from reasoning.stories import Split
from tasks.steps.problems import board_problem
from tests.models.test_tiny_model_stack import STRANGE

LESSONS = (
    VisionLesson(boards=30),
    VisionLesson(boards=60, levels=(1, 2, 3)),
    VisionLesson(boards=60, levels=(3,), rechecks=True),
)
ROWS = lesson_rows(LESSONS, Teacher(max_rechecks=5), 1)
TEXTS = [text for lesson in ROWS for row in lesson[:10] for text in (row.text, row.completion)]


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY_VISION_MODEL)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    tokenizer = train_vision_tokenizer(f"{row.text} {row.completion}" for lesson in ROWS for row in lesson)
    tokenizer.save_pretrained(folder)
    untrained_vision_model(tokenizer, 0).save_pretrained(folder)
    untrained_image_processor().save_pretrained(folder)
    return folder


def test_the_weights_are_small_and_tied(tiny: Checkpoint):
    assert sum(path.stat().st_size for path in TINY_VISION_MODEL.iterdir()) < 3_000_000
    assert sum(tiny.tensor_sizes.values()) < 1_100_000
    assert AutoConfig.from_pretrained(TINY_VISION_MODEL).text_config.max_position_embeddings >= CONTEXT


def test_reserved_tags_and_colours_are_one_token_each(tiny: Checkpoint):
    assert all(len(tiny.encode(tag)) == 1 for tag in (*RESERVED, PAD))
    assert all(len(tiny.encode(f" {colour}")) == 1 for colour in COLOURS)
    assert len(tiny.tokenizer) <= tiny.vocabulary


def test_the_tokenizer_is_the_same_after_autotokenizer_loads_it(untrained: Path):
    trained, loaded = Checkpoint.open(untrained), AutoTokenizer.from_pretrained(untrained)
    for text in [*TEXTS, *STRANGE]:
        assert loaded(text)["input_ids"] == trained.encode(text).tolist()
    trained.check()


def test_lessons_go_from_reading_to_thinking_too_long():
    reading, short, long = ROWS
    for row in reading:
        said = row.completion.removesuffix("<|endoftext|>").split()
        assert sorted(said) == sorted(f"{box.colour}{box.quantity}" for box in row.board.boxes)
        assert row.text.removeprefix("Read ").removesuffix(".").split() == [word[:-1] for word in said]
    assert [row.completion.count("That makes") for row in short] == [1] * 60
    assert not any("Wait" in row.completion or "Hmm" in row.completion for row in short)
    assert sum("Wait" in row.completion or "Alternatively" in row.completion for row in long) > 30


def test_the_warm_start_teaches_the_tower_to_see(untrained: Path):
    """Quantities: one in nine by chance."""
    model = untrained_vision_model(AutoTokenizer.from_pretrained(untrained), 0)
    seen = warm_start(model, ImageProcessor(untrained), WarmStart(steps=120, boards_per_step=32), 0)
    assert seen > 0.5


def test_the_model_reads_what_stands_on_the_board(tiny: Checkpoint):
    """Greedy, without a server: the first line names the right quantity."""
    import torch

    from models.training.images import image_inputs
    from models.training.weights import load_model

    model, right = load_model(TINY_VISION_MODEL), 0
    for board in draw_boards(Split.TRAIN, 0, 6, (2,)):
        problem = board_problem(board, "p")
        ids = torch.tensor([[*tiny.prompt_ids(problem), *tiny.encode("Start with")]])
        inputs = image_inputs(tiny.image_processor, ids, problem.images)
        found = model.generate(input_ids=ids, **inputs, max_new_tokens=2, do_sample=False)
        right += tiny.decode(found[0, ids.shape[1] :].tolist()).strip() == f"{board.first}{board.start}"
    assert right >= 5
