"""Real vocabularies and chat templates."""

import gzip
import json
import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from conf.engine import Engine
from conf.prompts import DEFAULT_INSTRUCTIONS, Harmony, Prompt
from models.checkpoints.checkpoint import Checkpoint, CheckpointError
from models.checkpoints.tokenizer import SAMPLES, ids_of, is_loaded_wrongly
from models.inference.vllm_server import VllmServer
from reasoning.records import Problem, TextPart
from reasoning.thinking import final_answer, reply_of, thinking_of
from tests.models.fakes import write_safetensors

SIZES = {"num_attention_heads": 2, "hidden_size": 2, "num_hidden_layers": 1}
PROBLEM = Problem(id="p", prompt=(TextPart(text="Find $x$ with $x^2 = 4$ and $x > 0$.\n你好"),), answer="2")
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
Make = Callable[..., Checkpoint]


def unpacked(
    parent: Path,
    tokenizers: Path,
    name: str,
    kind: str,
    prompt: Prompt | None = None,
    generation: Any = None,
    **changes: Any,
) -> Checkpoint:
    """A checkpoint with the tokenizer `name`, changed tokenizer settings, and weights of architecture `kind`."""
    folder = parent / f"{name}-{kind}"
    folder.mkdir()
    with gzip.open(tokenizers / name / "tokenizer.json.gz") as packed, (folder / "tokenizer.json").open("wb") as file:
        shutil.copyfileobj(packed, file)
    config = json.loads((tokenizers / name / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **SIZES}))
    (folder / "generation_config.json").write_text(json.dumps(generation or {}))
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [202_000, 2]})
    return Checkpoint.open(folder, prompt=prompt or Prompt.model_validate(DEFAULT_INSTRUCTIONS))


@pytest.fixture
def make(tmp_path: Path, real_tokenizers: Path) -> Make:
    return partial(unpacked, tmp_path, real_tokenizers)


@pytest.mark.parametrize(
    ("name", "kind", "changes", "wrongly"),
    [
        ("llama3_1", "llama", {"tokenizer_class": "LlamaTokenizerFast"}, True),
        ("llama3_1", "llama", {}, False),
        ("deepseek_v3", "llama", {}, True),
        ("deepseek_v3", "deepseek_v3", {}, False),
        ("deepseek_v3", "qwen2", {}, True),
        ("qwen3", "qwen3", {}, False),
        ("qwen3", "qwen2", {"tokenizer_class": "LlamaTokenizerFast"}, False),
    ],
)
def test_text_survives_and_the_saved_tokenizer_loads_correctly(
    make: Make, tmp_path: Path, name: str, kind: str, changes: dict[str, Any], wrongly: bool
):
    model = make(name, kind, **changes)
    model.check()
    assert is_loaded_wrongly(model.folder) is wrongly
    assert [model.decode(model.encode(text)) for text in SAMPLES] == list(SAMPLES)
    prompt = model.prompt_ids(PROBLEM)
    assert model.end_id == model.tokenizer.eos_token_id
    assert PROBLEM.text + "\n\n" + DEFAULT_INSTRUCTIONS["instruction"] in model.decode(prompt)
    assert prompt.count(model.tokenizer.bos_token_id) == (name != "qwen3")
    model.tokenizer.save_pretrained(tmp_path / "alone")
    again = AutoTokenizer.from_pretrained(tmp_path / "alone")  # the copy that vLLM loads
    assert [ids_of(again, text) for text in SAMPLES] == [list(model.encode(text)) for text in SAMPLES]
    if kind == "llama":
        shutil.copy(model.folder / "config.json", tmp_path / "alone")  # as in a trained checkpoint
        assert not is_loaded_wrongly(tmp_path / "alone")


def test_a_server_gets_the_right_tokenizer_and_its_own_seed(make: Make, tmp_path: Path):
    server = VllmServer(Engine(seed=2**32 - 1), tmp_path / "vllm.log")
    command = server._command(make("llama3_1", "llama", tokenizer_class="LlamaTokenizerFast"))
    assert command[command.index("--seed") + 1] == str(2**32 - 1)
    served = AutoTokenizer.from_pretrained(command[command.index("--tokenizer") + 1])
    assert served.decode(ids_of(served, SAMPLES[0])) == SAMPLES[0]
    server._starts += 1
    command = server._command(make("qwen3", "qwen3"))
    assert command[command.index("--seed") + 1] == "0"
    assert "--tokenizer" not in command


def test_qwen3_thinks_unless_enable_thinking_is_false(make: Make):
    model = make("qwen3", "qwen3", generation={"eos_token_id": [151645, 151643]})
    model.check()
    assert model.end_ids == {151645, 151643}
    assert not model.prompts.opens_thinking
    assert model.prompts.arguments == {"enable_thinking"}
    silent = Checkpoint.open(model.folder, prompt=Prompt(template_arguments={"enable_thinking": False}))
    with pytest.raises(CheckpointError, match=r"set prompt\.template_arguments\.enable_thinking = true"):
        silent.check()


def test_harmony_channels_are_parsed(make: Make):
    model = make(
        "gptoss",
        "gpt_oss",
        Prompt(thinking=Harmony()),
        {"eos_token_id": [200002, 199999, 200012]},
        chat_template=HARMONY,
    )
    model.check()
    prompt = str(model.tokenizer.decode(list(model.prompt_ids(PROBLEM))))
    assert prompt.endswith("<|end|><|start|>assistant<|channel|>analysis<|message|>")
    written = "We need x.<|end|><|start|>assistant<|channel|>final<|message|>It is \\boxed{2}.<|return|>"
    text, thinking = model.decode(model.encode(written)), Harmony()
    assert thinking_of(text, thinking) == "We need x."
    assert reply_of(text, thinking) == "It is \\boxed{2}."
    assert final_answer(text, thinking) == "2"
    assert final_answer("We need \\boxed{2}, so", thinking) is None


def test_gptoss_without_its_template_gives_a_one_line_error(make: Make):
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: no chat_template"):
        make("gptoss", "gpt_oss", Prompt(thinking=Harmony())).check()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory, real_tokenizers: Path) -> Checkpoint:
    return unpacked(tmp_path_factory.mktemp("qwen"), real_tokenizers, "qwen3", "qwen3")


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Co", "Mn", "Mc", "Me"]), max_size=40))
def test_any_text_without_combining_marks_survives(qwen: Checkpoint, text: str):
    assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)
