"""The version of a step: a digest of the code that its result depends on, so that no number is raised by hand.

Starting from the step's function, all definitions that the code names are followed through `reasoning` and the steps:
functions, classes, prompts and other constants. Code in another process or behind an object (answer check, trainer, a
model's tokenizer and prompts) is found by the name that introduces it (`BEHIND`). Comments, docstrings and layout do
not count, nor does code that only moves data or serves models.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLLOWED = ("reasoning.", "tasks.", "tests.")
"""Packages whose definitions are followed."""
MODELS = frozenset(
    [f"models.training.{name}" for name in ("train", "simpo", "grpo", "images")]
    + ["models.inference.dialogue_sampler"]
    + [f"models.checkpoints.{name}" for name in ("prompting", "tokenizer", "token_texts", "images")]
)
"""Modules of `models` that are followed: training, and conversion between text and tokens."""
NOT_FOLLOWED = ("tasks.runtime.", "tasks.reports.")
"""Stores, keys, processes and reports. They do not decide a result."""
ANSWERS = ("reasoning.answers.worker",)
READING = tuple(f"models.checkpoints.{name}" for name in ("prompting", "tokenizer", "token_texts", "images"))
BEHIND = {
    "verdicts": ANSWERS,
    "verifier": ANSWERS,
    "checkpoint": READING,
    "TrainJob": ("models.training.train",),
    "GrpoJob": ("models.training.grpo",),
}
"""Modules that a name introduces, in another process or behind an object."""
LIBRARIES = {
    "PIL": "pillow",
    "math_verify": "math-verify",
    "mpmath": "mpmath",
    "peft": "peft",
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
}
"""Distributions whose versions count, by import name."""
ATTEMPTS = 8
"""Times that a module is parsed before an error counts."""
Symbol = tuple[str, str]
"""A module and the name of a definition in it. An empty name stands for all definitions."""


@dataclass
class Module:
    """Top-level definitions and imports of a source file."""

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, Symbol] = field(default_factory=dict)
    """By local name: module and name in it; the name is empty where the module itself is imported."""


def code_version(function: Callable[..., Any]) -> str:
    """Twelve hex digits over all code that decides the result of `function`."""
    found = _closure((function.__module__, function.__name__))
    digest = hashlib.sha256()
    for module, name in sorted(found):
        digest.update(f"{module}:{name}:{''.join(map(ast.unparse, _statements(module, name)))};".encode())
    for library in sorted({library for symbol in found for library in _libraries(symbol)}):
        digest.update(f"{library}=={version(LIBRARIES[library])};".encode())
    return digest.hexdigest()[:12]


def _closure(start: Symbol) -> set[Symbol]:
    found: set[Symbol] = set()
    waiting = [start]
    while waiting:
        symbol = waiting.pop()
        if symbol not in found and _is_followed(symbol[0]):
            found.add(symbol)
            waiting += _named(symbol)
    return found


def _is_followed(module: str) -> bool:
    return (module.startswith(FOLLOWED) and not module.startswith(NOT_FOLLOWED)) or module in MODELS


@cache
def _named(symbol: Symbol) -> list[Symbol]:
    """The symbols that the definitions of `symbol` name."""
    module, _ = symbol
    source, found = _module(module), []
    for node in (part for statement in _statements(*symbol) for part in ast.walk(statement)):
        if isinstance(node, ast.Attribute | ast.Name):
            met = node.attr if isinstance(node, ast.Attribute) else node.id
            found += [(behind, "") for behind in BEHIND.get(met, ())]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            target, name = source.imports.get(node.value.id, ("", ""))
            if target and not name:
                found.append((target, node.attr))
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name) for alias in node.names]
        if isinstance(node, ast.Name):
            found += [(module, node.id)] if node.id in source.definitions else []
            found += [source.imports[node.id]] if all(source.imports.get(node.id, ("", ""))) else []
    return found


@cache
def _libraries(symbol: Symbol) -> frozenset[str]:
    """The names of `LIBRARIES` that the module of `symbol` imports, at any depth."""
    nodes = [node for statement in _tree(symbol[0]).body for node in ast.walk(statement)]
    roots = {alias.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    roots |= {(node.module or "").partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    return frozenset(roots & LIBRARIES.keys())


def _statements(module: str, name: str) -> list[ast.stmt]:
    definitions = _module(module).definitions
    if name:
        return definitions.get(name, [])
    return [statement for statements in definitions.values() for statement in statements]


@cache
def _module(name: str) -> Module:
    found = Module()
    for statement in _tree(name).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            found.imports |= dict(_imported(statement))
        else:
            for defined in _defined(statement):
                found.definitions.setdefault(defined, []).append(statement)
    return found


def _imported(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Symbol]]:
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            yield alias.asname or alias.name, (alias.name, "")
        elif statement.module:
            whole = f"{statement.module}.{alias.name}"
            yield (
                alias.asname or alias.name,
                (whole, "") if _is_package(statement.module) else (statement.module, alias.name),
            )


@cache
def _is_package(module: str) -> bool:
    spec = find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@cache
def _tree(module: str) -> ast.Module:
    """A module's code without its docstrings."""
    spec = find_spec(module)
    assert spec is not None, module
    return _WithoutDocstrings().visit(_parsed(Path(spec.origin or "").read_text()))


def _parsed(source: str) -> ast.Module:
    """Python 3.11 keeps one depth of trees for all threads, and may fail where two parse at once (CPython issue
    106905). Each attempt starts anew."""
    for _ in range(ATTEMPTS):
        with suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node
