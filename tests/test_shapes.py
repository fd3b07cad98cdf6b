"""Shape models behave like real models when opened and prompted."""

from pathlib import Path

import pytest

from models.checkpoints.checkpoint import Checkpoint
from reasoning.records import Problem, TextPart
from tests.shapes import SHAPES

TEXT = "Ann has 12 apples,  and $\\frac{1}{2}$ 个.\n\nHow many 🍎?"
PROMPTS = {
    "r1-distill-qwen": "<｜begin▁of▁sentence｜><｜User｜>{}<｜Assistant｜><think>\n",
    "qwen3": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>",
    "llama3.1": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n<think>",
    "r1-distill-llama": "<｜begin▁of▁sentence｜><｜User｜>{}<｜Assistant｜><think>\n",
}


@pytest.fixture(params=SHAPES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str, shapes: dict[str, Path]) -> Checkpoint:
    return Checkpoint.open(shapes[name])


def test_text_round_trips(model: Checkpoint):
    assert model.decode(model.encode(TEXT)) == TEXT


def test_a_prompt_follows_the_real_template(name: str, model: Checkpoint):
    problem = Problem(id="p", prompt=(TextPart(text=TEXT),), answer="12")
    prompt = model.tokenizer.decode(list(model.prompt_ids(problem)))
    assert prompt == PROMPTS[name].format(TEXT)


def test_the_vocabulary_is_padded_as_in_the_real_model(name: str, model: Checkpoint):
    assert model.tensor_sizes["model.embed_tokens.weight"] == SHAPES[name].config["vocab_size"] * 64
    assert len(model.tokenizer) <= SHAPES[name].config["vocab_size"]
