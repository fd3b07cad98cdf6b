"""Images in prompts: how many tokens stand for one, and where."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.prompts import Prompt
from models.checkpoints.checkpoint import TINY_MODEL, TINY_VISION_MODEL, Checkpoint
from models.checkpoints.files import CheckpointError
from models.checkpoints.images import ImageProcessor, PromptImages
from reasoning.records import ImagePart, InstructionPart, Problem, TextPart
from reasoning.token_ids import TokenIds
from tests.tasks.steps.test_problem_images import png
from tests.vision import problems

PLACEHOLDER = 7


@given(st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(10, 20), min_size=1, max_size=4)), max_size=5))
def test_collapsed_placeholders_expand_again(parts: list[tuple[int, list[int]]]):
    """`parts`: tokens of an image, and the text after it."""
    expanded = TokenIds([1, *(token for count, text in parts for token in [PLACEHOLDER] * count + text)])
    collapsed = [1, *(token for _, text in parts for token in [PLACEHOLDER, *text])]
    assert PromptImages((b"",) * len(parts), PLACEHOLDER).collapsed(expanded).tolist() == collapsed


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY_VISION_MODEL)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(1, 400))
def test_an_image_takes_as_many_tokens_as_its_pixel_values_say(width: int, height: int):
    if max(width, height) > 100 * min(width, height):
        return
    processor, image = ImageProcessor(TINY_VISION_MODEL), png((width, height))
    grid = processor.inputs([image])["image_grid_thw"]
    assert processor.tokens(image) == int(grid.prod()) // 4


def test_a_board_is_six_tokens_where_the_image_stands(tiny: Checkpoint):
    problem = problems(1)[0]
    ids, token = tiny.prompt_ids(problem), tiny.image_processor.token_id
    assert ids.tolist().count(token) == 6
    after = problem.model_copy(update={"prompt": problem.prompt[::-1]})
    assert tiny.decode(tiny.prompt_ids(after)) == tiny.decode(ids)
    assert tiny.prompt_ids(after) != ids
    assert tiny.decode(ids) == f"<|user|>{problem.text}<|assistant|><think>\n"


def test_instructions_follow_text_and_images():
    prompt = Prompt(instruction="Use a box.")
    tiny = Checkpoint.open(TINY_VISION_MODEL, prompt=prompt)
    parts = (TextPart(text="Sum "), ImagePart(), TextPart(text="?"), InstructionPart(text=" Be short."))
    problem = Problem(id="p", prompt=parts, images=(png((28, 28)),), answer="1")
    assert tiny.decode(tiny.prompt_ids(problem)) == "<|user|>Sum ?\n\nUse a box. Be short.<|assistant|><think>\n"


def test_prompts_of_two_pictures_are_kept_apart(tiny: Checkpoint):
    """One text, pictures of different sizes."""
    parts = (ImagePart(), TextPart(text="How many?"))
    small, large = (Problem(id="p", prompt=parts, images=(png(size),), answer="1") for size in ((28, 28), (84, 56)))
    assert len(tiny.prompt_ids(large)) - len(tiny.prompt_ids(small)) == 5
    assert len(tiny.prompt_ids(small)) + 5 == len(tiny.prompt_ids(large))


def test_a_placeholder_in_a_problems_text_is_refused(tiny: Checkpoint):
    hostile = problems(1)[0].model_copy(update={"prompt": (ImagePart(), TextPart(text="<|image_pad|> How many?"))})
    with pytest.raises(CheckpointError, match="2 image placeholders for 1 images"):
        tiny.prompt_ids(hostile)


def test_a_model_without_images_says_so():
    with pytest.raises(CheckpointError, match="does not take images here, but a problem has one"):
        Checkpoint.open(TINY_MODEL).prompt_ids(problems(1)[0])


def test_the_fingerprint_depends_on_the_image_processor(tmp_path: Path, tiny: Checkpoint):
    folder = tmp_path / "other"
    shutil.copytree(TINY_VISION_MODEL, folder)
    assert Checkpoint.open(folder).fingerprint == tiny.fingerprint
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0, 0, 0]}))
    assert Checkpoint.open(folder).fingerprint != tiny.fingerprint


def test_the_bundled_vision_model_is_sound(tiny: Checkpoint):
    tiny.check()
    assert tiny.takes_images
    assert not Checkpoint.open(TINY_MODEL).takes_images
    assert len(tiny.forbidden_ids) == 4
    assert (TINY_VISION_MODEL / "model.safetensors").stat().st_size < 3_000_000
