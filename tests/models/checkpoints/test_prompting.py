"""Chat templates of all kinds on the bundled model's tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.prompts import DEFAULT_INSTRUCTIONS, Harmony, Prompt, Tags
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint, CheckpointError
from models.checkpoints.tokenizer import load_tokenizer
from models.inference.dialogue_sampler import prompt_ids
from reasoning.records import InstructionPart, Problem, TextPart
from reasoning.thinking import final_answer, thinking_of

PROBLEM = Problem(id="p", prompt=(TextPart(text="Ann has 12 apples."),), answer="12")
OPTIONS = Problem(id="o", prompt=(TextPart(text="A or B?"),), answer="A", choices=("yes", "no"))
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
OPENED = TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
ROLE = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
SILENT_SYSTEM = "{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}<|assistant|>"
)
HYBRID = ROLE + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
OLD_HYBRID = ROLE + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
Make = Callable[..., Checkpoint]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a checkpoint with this template, prompt settings and JSON files."""

    def made(template: str | None = ROLE, prompt: Prompt | None = None, **files: Any) -> Checkpoint:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(TINY_MODEL, folder)
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return Checkpoint.open(folder, prompt=prompt)

    return made


def rendered(model: Checkpoint, problem: Problem = PROBLEM) -> str:
    return str(model.tokenizer.decode(list(model.prompt_ids(problem)), skip_special_tokens=False))


def test_the_bundled_models_prompt_is_the_bare_problem():
    assert rendered(Checkpoint.open(TINY_MODEL)) == "<|user|>Ann has 12 apples.<|assistant|><think>\n"


def test_the_instruction_follows_the_problem_then_that_of_the_data_set(make: Make):
    advised = make(prompt=Prompt.model_validate(DEFAULT_INSTRUCTIONS))
    brief = PROBLEM.model_copy(update={"prompt": (*PROBLEM.prompt, InstructionPart(text=" Be brief."))})
    advice = "Please reason step by step, and put your final answer within \\boxed{}."
    assert rendered(advised, brief) == f"<|user|>Ann has 12 apples.\n\n{advice} Be brief.<|assistant|><think>"
    assert "only the letter of the right option within \\boxed{}." in rendered(advised, OPTIONS)
    assert rendered(make(), brief) == "<|user|>Ann has 12 apples. Be brief.<|assistant|><think>"
    assert brief.text == PROBLEM.text


def test_thinking_is_opened_exactly_once(make: Make):
    assert rendered(make(OPENED)).endswith("<|assistant|><think>\n")
    assert rendered(make(ROLE)).endswith("<|assistant|><think>")
    assert rendered(make(ROLE, Prompt(thinking=Harmony()))).endswith("<|assistant|><|channel|>analysis<|message|>")
    for template in (OPENED, ROLE):
        model = make(template, Prompt.model_validate(DEFAULT_INSTRUCTIONS))
        role = model.decode(prompt_ids(model, PROBLEM, "You think."))
        instruction = DEFAULT_INSTRUCTIONS["instruction"]
        assert role == f"<|system|>You think.<|user|>Ann has 12 apples.\n\n{instruction}<|assistant|>"


@pytest.mark.parametrize("template", [NO_SYSTEM + ROLE, SILENT_SYSTEM])
def test_without_a_system_role_its_text_precedes_the_user_message(make: Make, template: str):
    model = make(template, Prompt(system="Be exact."))
    model.check()
    assert rendered(model) == "<|user|>Be exact.\n\nAnn has 12 apples.<|assistant|><think>"
    role = model.decode(prompt_ids(model, PROBLEM, "You think."))
    assert role == "<|user|>Be exact.\n\nYou think.\n\nAnn has 12 apples.<|assistant|>"


def test_a_template_that_needs_content_parts(make: Make):
    model = make(PARTS, Prompt(system="Be exact."))
    model.check()
    assert rendered(model) == "<|system|>Be exact.<|user|>Ann has 12 apples.<|assistant|><think>"


@pytest.mark.parametrize(
    ("template", "arguments", "words"),
    [
        (None, {}, "no chat_template, nor a chat_template.jinja"),
        ("<|user|>hello<|assistant|>", {}, "does not write the problem's text"),
        ("{{ messages[0].content + messages[0].content }}", {}, "does not write the problem's text"),
        ("{{ messages[", {}, "the chat template fails"),
        ("{% for i in range(10**9) %}x{% endfor %}", {}, "the chat template fails"),
        ("{{ raise_exception('no way\nat all') }}", {}, "the chat template fails: no way"),
        (HYBRID, {}, "set prompt.template_arguments.enable_thinking = true"),
        (OLD_HYBRID, {"enable_thinking": False}, "set prompt.template_arguments.enable_thinking = true"),
        (ROLE + "{% if short %}</think>{% endif %}", {"short": True}, "set prompt.template_arguments.short = false"),
        (ROLE + "<think></think>", {}, "none of its arguments turns thinking on"),
        (ROLE + "</think>", {}, "none of its arguments turns thinking on"),
    ],
)
def test_an_unusable_template_gives_a_one_line_error(make: Make, template: str, arguments: dict[str, Any], words: str):
    with pytest.raises(CheckpointError) as error:
        make(template, Prompt(template_arguments=arguments)).check()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("template", [HYBRID, OLD_HYBRID, ROLE])
def test_a_template_with_thinking_turned_on_is_accepted(make: Make, template: str):
    make(template, Prompt(template_arguments={"enable_thinking": True})).check()


def test_unused_template_arguments_are_reported(make: Make):
    prompt = Prompt(template_arguments={"enable_thinking": True, "loud": True})
    assert make(HYBRID, prompt).prompts.unread == ["loud"]
    marked = ROLE + "{% for m in messages %}{%- generation %}{{ loud }}{% endgeneration -%}{% break %}{% endfor %}"
    model = make(marked, prompt)
    model.check()
    assert model.prompts.unread == ["enable_thinking"]
    assert make(ROLE, prompt).prompts.unread == ["enable_thinking", "loud"]


def test_tags_in_system_text_or_problem_do_not_close_thinking(make: Make):
    model = make(OPENED, Prompt(system="Think between <think> and </think>.", instruction="Close with </think>."))
    model.check()
    assert rendered(model).endswith("Close with </think>.<|assistant|><think>\n")


def test_end_tokens(make: Make):
    assert make().end_ids == {0}
    several = make(generation_config={"eos_token_id": [5, 0, 7]})
    assert several.end_ids == {0, 5, 7}
    assert several.end_id == 0
    assert several.decode((5, *several.encode("four"), 7)) == "four"


def test_training_data_ends_with_the_templates_end_token(make: Make):
    turns = TURNS.replace("{% endfor %}", "{% if m.role == 'assistant' %}<|pad|>\n{% endif %}{% endfor %}")
    ends = {"eos_token_id": [0, 463]}
    assert make(turns, generation_config=ends).end_id == 463
    assert make(turns).end_id == 0  # not an end token of this model
    assert make(ROLE, generation_config=ends).end_id == 0
    strict = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
    assert make(strict + ROLE, generation_config=ends).end_id == 0


def test_thinking_and_answer_with_special_tags(make: Make, tmp_path: Path):
    model = make()
    tokenizer = json.loads((model.folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = True
    (model.folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = Checkpoint.open(model.folder)
    special.check()
    text = special.decode((*special.encode("<think>\nIt is 4.</think>So \\boxed{4}."), special.end_id))
    assert thinking_of(text) == "<think>\nIt is 4."
    assert final_answer(text) == "4"
    assert special.encode("</think>")[0] not in special.special_ids
    assert special.encode("<|user|>")[0] in special.special_ids


def test_the_bos_token_occurs_once(make: Make):
    marks = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<|turn|>", "eos_token": "<|endoftext|>"}
    for template, count in ((ROLE, 0), ("{{ bos_token }}" + ROLE, 1), ("{{ bos_token + bos_token }}" + ROLE, 1)):
        model = make(template, tokenizer_config=marks)
        assert model.prompt_ids(PROBLEM).count(model.tokenizer.bos_token_id) == count


@pytest.mark.parametrize("thinking", [Tags(open="[THINK]", close="[/THINK]"), Harmony()])
def test_other_tags_survive_decoding(make: Make, thinking: Tags | Harmony):
    model = make(prompt=Prompt(thinking=thinking))
    model.check()
    text = f"It is 4.{thinking.close}\\boxed{{4}}"
    assert final_answer(model.decode((*model.encode(text), 0)), thinking) == "4"
    assert model.holds_control(f"a {thinking.close} in the text")


def test_a_tokenizer_that_loses_text_is_refused_with_an_example(make: Make):
    model = make()
    tokenizer = json.loads((model.folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (model.folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"'Ann has 12 apples\.' is decoded as 'ann has 12 apples\.'"):
        load_tokenizer(model.folder)


def test_an_architecture_without_text_generation_is_refused(make: Make):
    config = json.loads((TINY_MODEL / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"model_type 'llava' is not a causal language model"):
        make(config={"model_type": "llava", "text_config": config}).check()
    with pytest.raises(CheckpointError, match="has a token 475, but the embedding has only 386 rows"):
        make(config=config | {"hidden_size": 212}).check()
