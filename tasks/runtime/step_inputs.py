"""The inputs of steps: which artifacts they name, and where. It must not know what the artifacts hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.runtime.artifacts import ArtifactRef

MODEL_KINDS = ("base-model", "checkpoint")
"""Kinds of artifacts that are model checkpoints."""


class StepInputs(BaseModel):
    """Base class that groups the inputs of a step with many: artifacts, settings and plain values."""

    model_config = ConfigDict(frozen=True)


def artifact_paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ArtifactRef]]:
    """All artifact references within an input, in order, with their paths in the recipe."""
    if isinstance(value, ArtifactRef):
        yield path, value
    parts: Any = ()
    if isinstance(value, StepInputs | dict):
        parts = dict(value).items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for name, part in parts:
        yield from artifact_paths(part, (*path, str(name)))


def artifacts_in(value: Any) -> list[ArtifactRef]:
    """All artifact references within an input, in order."""
    return [ref for _, ref in artifact_paths(value)]


def with_artifacts(value: Any, new: Callable[[ArtifactRef], ArtifactRef]) -> Any:
    """An input with `new(ref)` in the place of each artifact reference."""
    if isinstance(value, ArtifactRef):
        return new(value)
    if isinstance(value, StepInputs):
        return value.model_copy(update={name: with_artifacts(part, new) for name, part in value})
    if isinstance(value, dict):
        return {name: with_artifacts(part, new) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_artifacts(part, new) for part in value)
    return value
