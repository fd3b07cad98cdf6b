"""The version of a step depends on the code that its result depends on, and on nothing else."""

import ast
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tasks.runtime import code_version as versions

STEPS = '''
from reasoning.cut import cut
from tasks.runtime.context import StepContext
import torch

def shorten(ctx, text):
    """Cuts a text."""
    return _kept(cut(text))

def _kept(text):
    return text.strip()

def check(ctx, answers):
    return ctx.verdicts(answers)

def ask(ctx, model):
    return ctx.checkpoint(model).prompt_ids("1 + 1")

def train(ctx, rows):
    return ctx.run(TrainJob(rows))
'''
CUT = '''
"""Cuts texts."""
from reasoning import marks

LONGEST = 10

def cut(text):
    # at most so many
    return marks.clean(text)[:LONGEST]

def unrelated(text):
    return text
'''
MARKS = """
def clean(text):
    return text.replace(PROMPT, "")

PROMPT = "Be brief."
"""
SOURCES = {
    "tasks.shortening": STEPS,
    "reasoning.cut": CUT,
    "reasoning.marks": MARKS,
    "reasoning.answers.worker": "import mpmath\nx = 1",
    "models.training.train": "import trl\ny = 1",
    "models.checkpoints.prompting": "a = 1",
    "models.checkpoints.tokenizer": "import transformers",
    "models.checkpoints.token_texts": "",
    "models.checkpoints.images": "",
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    for cached in (versions._module, versions._named, versions._libraries):
        cached.cache_clear()


def version_of(monkeypatch: pytest.MonkeyPatch, step: str, **changed: str) -> str:
    sources = SOURCES | {name.replace("__", "."): text for name, text in changed.items()}
    for cached in (versions._module, versions._named, versions._libraries):
        cached.cache_clear()
    monkeypatch.setattr(versions, "_tree", lambda name: versions._WithoutDocstrings().visit(ast.parse(sources[name])))
    return versions.code_version(SimpleNamespace(__module__="tasks.shortening", __name__=step))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"tasks__shortening": STEPS.replace("text.strip()", "text.rstrip()")},
        {"reasoning__cut": CUT.replace("LONGEST = 10", "LONGEST = 11")},
        {"reasoning__marks": MARKS.replace("Be brief.", "Be short.")},
    ],
)
def test_helpers_constants_and_prompts_change_the_version(monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]):
    assert version_of(monkeypatch, "shorten", **changed) != version_of(monkeypatch, "shorten")


@pytest.mark.parametrize(
    "changed",
    [
        {"reasoning__cut": CUT.replace("Cuts texts.", "Cuts any text.").replace("# at most so many", "# no more")},
        {"reasoning__cut": CUT.replace("def unrelated(text):\n    return text", "def unrelated(text):\n    return 1")},
        {"tasks__shortening": STEPS.replace('"""Cuts a text."""', '"""Cuts."""')},
        {"reasoning__answers__worker": "x = 2"},
    ],
)
def test_comments_docstrings_and_unused_code_do_not(monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]):
    assert version_of(monkeypatch, "shorten", **changed) == version_of(monkeypatch, "shorten")


def test_tokenization_counts_for_steps_that_use_a_model(monkeypatch: pytest.MonkeyPatch):
    changed = {"models.checkpoints.prompting": "a = 2"}
    assert version_of(monkeypatch, "ask", **changed) != version_of(monkeypatch, "ask")
    assert version_of(monkeypatch, "shorten", **changed) == version_of(monkeypatch, "shorten")


def test_code_in_another_process_counts_with_its_libraries(monkeypatch: pytest.MonkeyPatch):
    before = version_of(monkeypatch, "check"), version_of(monkeypatch, "train")
    changed = {"reasoning__answers__worker": "import mpmath\nx = 2"}
    assert version_of(monkeypatch, "check", **changed) != before[0]
    assert version_of(monkeypatch, "train", **changed) == before[1]
    monkeypatch.setattr(versions, "version", lambda name: "99" if name == "trl" else "1")
    assert version_of(monkeypatch, "train") != before[1]


def test_a_race_within_python_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch):
    parse, failures = ast.parse, iter([SystemError("AST constructor recursion depth mismatch (before=90, after=77)")])

    def parse_in_a_race(source: str) -> ast.Module:
        for failure in failures:
            raise failure
        return parse(source)

    monkeypatch.setattr(ast, "parse", parse_in_a_race)
    assert ast.unparse(versions._parsed("x = 1")) == "x = 1"
