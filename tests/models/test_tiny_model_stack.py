"""The bundled model satisfies its contract."""

import pytest
from transformers import AutoConfig, AutoTokenizer

from conf.tiny_model import Lesson, Teacher
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.tiny_model import CONTEXT, PAD, RESERVED, teacher_texts, train_tokenizer
from reasoning.records import Problem, TextPart
from reasoning.stories import Split, draw_stories

TEXTS = [part for pair in teacher_texts([Lesson(stories=50, levels=(1, 4, 8))], Teacher(), 1)[0] for part in pair]
STRANGE = ["", " 14", "1234567", "naïve café\r\n\t x", "等等，不对", "<think> a<b </answer>", " Wait,\n\nHmm...  ok"]


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY_MODEL)


def test_the_weights_are_small_and_tied(tiny: Checkpoint):
    assert sum(path.stat().st_size for path in TINY_MODEL.iterdir()) < 3_000_000
    assert tiny.shape.parameters < 1_000_000
    assert AutoConfig.from_pretrained(TINY_MODEL).max_position_embeddings >= CONTEXT


def test_reserved_tags_are_one_token_each(tiny: Checkpoint):
    assert all(len(tiny.encode(tag)) == 1 for tag in (*RESERVED, PAD))
    assert len(tiny.tokenizer) <= AutoConfig.from_pretrained(TINY_MODEL).vocab_size


def test_the_tokenizer_is_the_same_after_autotokenizer_loads_it(tmp_path):
    """AutoTokenizer applies its own pre-tokenizer to every qwen2 checkpoint; ours was trained with that one."""
    trained = train_tokenizer(TEXTS)
    trained.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, *STRANGE]:
        assert loaded(text)["input_ids"] == trained(text)["input_ids"]


@pytest.mark.parametrize("text", [*TEXTS[:6], *STRANGE])
def test_token_texts_join_to_the_text(tiny: Checkpoint, text: str):
    ids = tiny.encode(text)
    texts = tiny.token_texts(ids)
    assert "".join(texts) == tiny.decode(ids)
    assert len(texts) == len(ids)


def test_a_prompt_ends_where_thinking_starts(tiny: Checkpoint):
    story = draw_stories(Split.TRAIN, 0, 1, (3,))[0]
    problem = Problem(id="p", prompt=(TextPart(text=story.text),), answer=str(story.answer))
    assert tiny.decode(tiny.prompt_ids(problem)) == f"<|user|>{story.text}<|assistant|><think>\n"
