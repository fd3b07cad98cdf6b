"""The documents name only existing files, modules, functions, classes, fields, settings and tests.

Names are looked up in the sources, without imports. docs/log.md and the decisions are records of their time.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from conf.base import Settings
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.long_short import LongShort
from conf.markers import MarkerReport
from conf.multi_seed import MultiSeed

ROOT = Path(__file__).parent.parent
TOP = "flows|tasks|models|reasoning|conf|tests|bench|docs"
DOCUMENTS = sorted(
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if path.name != "log.md"
)
PATH = re.compile(rf"(?<![\w/.:-])(?:{TOP})/[\w./*-]*[\w*/]")
LINK = re.compile(r"\]\(([^)#\s]+)")
CODE = re.compile(r"`([^`\n]+)`")
NAME = re.compile(rf"(?<![\w./-])(?:{TOP})(?:\.\w+)+(?![\w/-])")
SETTING = re.compile(r"`(?:--set )?([a-z_]+(?:\.[a-z_]+)+)(?: ?=[^`\n]*)?`")
TOML = re.compile(r"```toml\n(.*?)```", re.S)
NO_SETTINGS = {"llm.key", "prompt.template_arguments.enable_thinking"}
"""A refused setting, and an argument of a chat template."""
TEST = re.compile(r"(?<![\w/])(?:[\w/]+/)?(test_\w+\.py)(?:::(\w+))?")


def named_paths(document: Path) -> Iterator[str]:
    """Path patterns in the text, from the root, and targets of relative links."""
    text = document.read_text()
    yield from (found.rstrip("/.") for found in PATH.findall(text))
    for target in LINK.findall(text):
        if "://" not in target:
            yield str((document.parent / target).resolve().relative_to(ROOT))


@cache
def members(node: ast.AST) -> dict[str, ast.AST]:
    """Functions, classes, constants and fields of a module or class, by name."""
    found: dict[str, ast.AST] = {}
    for part in getattr(node, "body", []):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[part.name] = part
        elif isinstance(part, ast.Assign | ast.AnnAssign):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            found |= {name.id: part for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


@cache
def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def exists(dotted: str) -> bool:
    """Whether `package.module.Class.method` is defined in the sources."""
    path, names = ROOT, dotted.split(".")
    while names and (path / names[0]).is_dir():
        path /= names.pop(0)
    if names and (path / f"{names[0]}.py").is_file():
        path /= f"{names.pop(0)}.py"
    node: ast.AST | None = module(path) if path.suffix else ast.Module([], [])
    while node is not None and names:
        node = members(node).get(names.pop(0))
    return node is not None


def has_test(file: str, start: str) -> bool:
    """Whether a test file exists, with a test whose name begins with `start`."""
    texts = [path.read_text() for path in (ROOT / "tests").rglob(file)]
    return any(f"def {start}" in text for text in texts) if start else bool(texts)


def setting_names(annotation: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings in an annotation, sections included."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        for name, field in annotation.model_fields.items():
            yield prefix + name
            yield from setting_names(field.annotation, f"{prefix}{name}.")
    for part in get_args(annotation):
        yield from setting_names(part, prefix)


NAMED_BY_USERS = {"benchmarks", "benchmark.others", "evaluation.samples"}
"""Tables whose keys are names that a user chooses."""


def names_in_toml(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield prefix + name
        for inner in value.values() if prefix + name in NAMED_BY_USERS else [value]:
            if isinstance(inner, dict):
                yield from names_in_toml(inner, f"{prefix}{name}.")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_that_a_document_names_exist(document: Path):
    known = {
        name for kind in (Dto, CotDistillation, LongShort, MultiSeed, MarkerReport) for name in setting_names(kind)
    }
    text = document.read_text()
    named = {name for name in SETTING.findall(text) if name.partition(".")[0] in known}
    named |= {name for block in TOML.findall(text) for name in names_in_toml(tomllib.loads(block))}
    assert named - known - NO_SETTINGS == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_names_and_tests_in_a_document_exist(document: Path):
    codes = " ".join(CODE.findall(document.read_text()))
    missing = [path for path in named_paths(document) if not list(ROOT.glob(path))]
    missing += [name for name in NAME.findall(codes) if not exists(name)]
    missing += [f"{file}::{start}" for file, start in TEST.findall(codes) if not has_test(file, start)]
    assert missing == []


def test_each_question_of_the_architecture_names_functions_of_its_files():
    rows = [
        line.split(" | ") for line in (ROOT / "docs/architecture.md").read_text().splitlines() if "| Where " in line
    ]
    assert len(rows) >= 10
    for question, files, functions in rows:
        modules = [path.removesuffix(".py").replace("/", ".") for path in PATH.findall(files)]
        for function in CODE.findall(functions):
            assert any(exists(f"{name}.{function}") for name in modules), f"{question}: {function}"


def test_names_are_found_in_the_sources():
    assert exists("reasoning.dto.preference_pairs")
    assert exists("models.inference.scheduler.EngineScheduler.next_batch")
    assert exists("conf.base.Settings.RENAMED")
    assert exists("reasoning.answers")
    assert not exists("reasoning.dto.no_such_function")
    assert not exists("reasoning.no_such_module")
