"""The bundled tiny vision-language model: tokenizer, architecture, warm start of its vision tower, and training rows.

A Qwen2.5-VL of about a million parameters, whose image tokens are the six boxes of a board. Everything at once, it
would learn to calculate and never to look: so its vision tower first learns to tell colours and quantities, by two
heads that are thrown away, then the language model learns to read all boxes, and only then to work with them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from conf.tiny_model import Teacher
from conf.tiny_vision_model import VisionLesson, WarmStart
from models.checkpoints.images import ImageProcessor, image_processor_class
from models.tiny_model import CHAT_TEMPLATE, CONTEXT, END, PAD, train_tokenizer
from reasoning.boards import COLOURS, MAX_QUANTITY, Board, draw_boards
from reasoning.records import ImagePart, Problem, TextPart
from reasoning.stories import OverThinker, Split

VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
VOCABULARY = 704
WIDTH = 128
"""Of a token's and of an image token's embedding."""
MAX_PATCHES = 64
"""Merged patches of the largest image; a board has six."""
PIXELS_OF_A_TOKEN = 28 * 28
VISION_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    f"{{% if part['type'] == 'image' %}}{VISION_START}{IMAGE_PAD}{VISION_END}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}",
)


class LessonRow(NamedTuple):
    """A board, a user message about it, and the completion to learn."""

    board: Board
    text: str
    completion: str


def train_vision_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """The tiny model's tokenizer with the tokens of the Qwen2-VL family that mark images."""
    tokenizer = train_tokenizer(texts)
    marks = (VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])  # type: ignore[arg-type]
    tokenizer.chat_template = VISION_CHAT_TEMPLATE
    return tokenizer


def untrained_vision_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """About 1 M random parameters in float32, a quarter of them in the vision tower."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.get_vocab()
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[PAD],
        # Half of a head's 32 dimensions turn with time, height and width.
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": WIDTH,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=vocabulary[IMAGE_PAD],
            video_token_id=vocabulary[VIDEO_PAD],
            vision_start_token_id=vocabulary[VISION_START],
            vision_end_token_id=vocabulary[VISION_END],
            tie_word_embeddings=True,
        )
    )


def untrained_image_processor() -> Any:
    """Of images from one merged patch to MAX_PATCHES."""
    return image_processor_class()(min_pixels=PIXELS_OF_A_TOKEN, max_pixels=MAX_PATCHES * PIXELS_OF_A_TOKEN)


def warm_start(
    model: Qwen2_5_VLForConditionalGeneration, processor: ImageProcessor, settings: WarmStart, seed: int
) -> float:
    """Trains the vision tower to tell each box's colour and quantity. Returns the share of quantities that are right
    in the last step."""
    colours, tower = sorted(COLOURS), model.model.visual
    heads = torch.nn.Linear(WIDTH, len(colours)), torch.nn.Linear(WIDTH, MAX_QUANTITY + 1)
    parameters = [*tower.parameters(), *(weight for head in heads for weight in head.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.steps)
    boards = draw_boards(Split.PRETRAIN, seed, settings.steps * settings.boards_per_step, (1,))
    right = torch.zeros(1)
    for start in range(0, len(boards), settings.boards_per_step):
        batch = boards[start : start + settings.boards_per_step]
        inputs = processor.inputs([board.picture() for board in batch])
        boxes = [box for board in batch for box in board.boxes]
        seen = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        wanted = (
            torch.tensor([colours.index(box.colour) for box in boxes]),
            torch.tensor([box.quantity for box in boxes]),
        )
        found = [head(seen) for head in heads]
        loss = sum(torch.nn.functional.cross_entropy(*pair) for pair in zip(found, wanted, strict=True))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        right = (found[1].argmax(-1) == wanted[1]).float().mean()
    return right.item()


def lesson_rows(lessons: Sequence[VisionLesson], teacher: Teacher, seed: int) -> list[list[LessonRow]]:
    """The rows of each lesson: boards to read, or traces of the over-thinking teacher."""
    rows = []
    for number, lesson in enumerate(lessons):
        rng, draw = random.Random(f"teacher:{seed}:{number}"), seed * len(lessons) + number
        if lesson.reads:
            boards = draw_boards(Split.PRETRAIN, draw, lesson.boards, (1,))
            rows.append([_reading(board, rng) for board in boards])
            continue
        chances = teacher if lesson.rechecks else teacher.model_copy(update=WITHOUT_RECHECKS)
        thinker, boards = OverThinker(chances, rng), draw_boards(Split.PRETRAIN, draw, lesson.boards, lesson.levels)
        thoughts = [thinker.think(board) for board in boards]
        completions = [f"{thought.text}</think>{thought.reply}{END}" for thought in thoughts]
        rows.append([LessonRow(board, board.text, text) for board, text in zip(boards, completions, strict=True)])
    return rows


WITHOUT_RECHECKS = {"go_on_sure": 0.0, "go_on_doubtful": 0.0, "muse": 0.0}
"""Settings of a teacher that goes through a calculation once."""


def problem_of(row: LessonRow, name: str) -> Problem:
    """The user message of a row, with its picture."""
    return Problem(id=name, prompt=(ImagePart(), TextPart(text=row.text)), images=(row.board.picture(),), answer="")


def _reading(board: Board, rng: random.Random) -> LessonRow:
    """All boxes in a random order, each colour followed by its quantity."""
    boxes = rng.sample(board.boxes, len(board.boxes))
    question = "".join(f" {box.colour}" for box in boxes)
    answer = "".join(f" {box.colour}{box.quantity}" for box in boxes)
    return LessonRow(board, f"Read{question}.", f"{answer}{END}")
