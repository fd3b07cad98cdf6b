"""Runs a pipeline's body as a plan: steps come from the cache, read data, or are only predicted.

It knows the cache, steps and artifacts. It must not start an engine or a trainer, ask an endpoint, or take a lease.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from conf.base import sections
from conf.llm import Llm
from conf.training import Lora
from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.memory_estimates import adapter_size
from models.training.launcher import saved_on
from tasks.runtime import prediction
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.cache_files import CacheFiles
from tasks.runtime.cache_index import CHECKPOINT, CachedResult, CacheError, CacheIndex
from tasks.runtime.caching import Step, is_refresh_wanted, name_with_labels
from tasks.runtime.context import StepContext
from tasks.runtime.prediction import Figure, Input, Prediction, Prices, StepCall
from tasks.runtime.result_records import VerifiedRef
from tasks.runtime.run_directory import RECORDS
from tasks.runtime.step_inputs import MODEL_KINDS, artifact_paths

PLANNED = "planned"
"""Kind of an artifact that a plan only predicts, and how its digest begins."""
MAX_COMPARED = 16
"""Earlier results whose rows are compared with those of an input."""
FLOAT32 = 4
"""Bytes of a parameter; checkpoints are saved in float32."""


class StepState(StrEnum):
    """What a run would do with a step."""

    CACHED = "cached"
    """Take its result from the cache."""
    READ = "read now"
    """Compute it. The plan has done so: the step only reads data, and the run will find the result."""
    TO_RUN = "to run"


@dataclass(frozen=True)
class PlannedStep:
    """A step call of a plan."""

    step: str
    name: str
    """With what it works on, as task runs are named."""
    kind: str
    state: StepState
    reasons: Sequence[str]
    """Why it is not in the cache."""
    predicted: Prediction


@dataclass(frozen=True)
class PlannedArtifact:
    """An artifact that no step has made yet."""

    ref: ArtifactRef
    rows: Figure
    new_share: float
    bytes: Figure
    model: Checkpoint | None
    """Of a checkpoint: its architecture and, if it is adapters, the name of their model."""


class Planner:
    """`run_step` is the step runner of a plan's run context; `steps` are the calls in order.

    Data steps whose inputs exist are run, and their results and lists of skipped rows are kept. Nothing else is
    written.
    """

    def __init__(self, root: str, gpus: int):
        """`root`: as `storage.root`; `gpus`: of the node that will run. Raises CacheError for an unreadable root."""
        self._gpus = gpus
        self.steps: list[PlannedStep] = []
        self._index = read_index(root)
        self._sizes = {result.fingerprint: result.artifact.rows for result in self._index.results}
        self._planned: dict[str, PlannedArtifact] = {}
        """By cache key."""
        self._rows: dict[str, list[str]] = {}
        """Digests of the rows of an artifact, by its fingerprint."""

    def run_step(self, step: Step, ctx: StepContext, inputs: dict[str, Any]) -> tuple[ArtifactRef, bool]:
        """The result of a step or a reference that stands for it, and whether a run would take it from the cache."""
        if ctx.key in self._planned:
            self._add(step, inputs, StepState.CACHED, ["made earlier in the run"])
            return self._planned[ctx.key].ref, True
        if found := find_result(ctx):
            known = Prediction(*(Figure(rows) for rows in (found.count.rows_in if found.count else 0, found.rows)))
            self._add(step, inputs, StepState.CACHED, [], known)
            return found, True
        call = self._call(step, ctx, inputs)
        results = self._index.of_step(step.name)
        why = ["PREFECT_TASKS_REFRESH_CACHE is set"] if is_refresh_wanted() else prediction.reasons(call, results)
        if step.kind == "data" and not any(given.is_planned for given in call.inputs.values()):
            return self._read(step, ctx, inputs, why), False
        return self._plan(step, ctx, inputs, call, why), False

    def _add(
        self,
        step: Step,
        inputs: dict[str, Any],
        state: StepState,
        why: Sequence[str],
        predicted: Prediction | None = None,
    ) -> None:
        name = name_with_labels(step.name, inputs)
        self.steps.append(PlannedStep(step.name, name, step.kind, state, why, predicted or Prediction()))

    def _read(self, step: Step, ctx: StepContext, inputs: dict[str, Any], why: Sequence[str]) -> ArtifactRef:
        """Runs a data step without its lease: two runs that make it at one time write the same content."""
        ctx.progress.note(f"{step.name}: reads data")
        ref = step.body(StepContext(ctx, ctx.key, ctx.recipe), **inputs)
        ctx.artifacts.record(ctx.key, ctx.recipe, ref)
        rows_in = ref.count.rows_in if ref.count else 0
        self._add(step, inputs, StepState.READ, why, Prediction(Figure(rows_in), Figure(ref.rows)))
        return ref

    def _plan(
        self, step: Step, ctx: StepContext, inputs: dict[str, Any], call: StepCall, why: Sequence[str]
    ) -> ArtifactRef:
        results = self._index.of_step(step.name)
        rows_of = self._rows_to_compare(ctx, call, results)
        pilot = prediction.choose_pilot(call, results, rows_of, self._sizes, self._index.object_bytes)
        share = prediction.new_share(call, results, rows_of)
        model = self._trained_model(ctx, call, inputs)
        predicted = prediction.predict(call, pilot, share, self._gpus, self._model_bytes(call, inputs, model))
        self._add(step, inputs, StepState.TO_RUN, why, predicted)
        kind = CHECKPOINT if step.kind == "training" else PLANNED
        digest, rows = f"{PLANNED}-{ctx.key.rpartition('-')[2]}", predicted.rows_out
        ref = ArtifactRef(kind=kind, uri="", digest=digest, rows=round(rows.value))
        self._planned[ctx.key] = PlannedArtifact(ref, rows, share, predicted.bytes, model)
        return ref

    def _call(self, step: Step, ctx: StepContext, inputs: dict[str, Any]) -> StepCall:
        ordered = {name: inputs[name] for name in inspect.signature(step.body).parameters if name in inputs}
        given = {path: self._input(ref) for path, ref in artifact_paths(ordered, (prediction.INPUTS,))}
        llm = next(sections(ordered, Llm), None)
        prices = Prices(llm.price_in, llm.price_out) if llm else None
        recipe = json.loads(json.dumps(ctx.recipe))  # as a manifest has it
        return StepCall(step.name, step.kind, recipe, given, prices)

    def _input(self, ref: ArtifactRef) -> Input:
        is_model, planned = ref.kind in MODEL_KINDS, self._planned_as(ref)
        if planned:
            return Input(ref, is_model, planned.rows, planned.new_share)
        return Input(ref, is_model, Figure(ref.rows))

    def _planned_as(self, ref: ArtifactRef) -> PlannedArtifact | None:
        """None for an artifact that exists."""
        name = ref.fingerprint()
        return next((planned for planned in self._planned.values() if planned.ref.fingerprint() == name), None)

    def _rows_to_compare(
        self, ctx: StepContext, call: StepCall, results: Sequence[CachedResult]
    ) -> dict[str, list[str]]:
        """Digests of rows by fingerprint: of the main input, if it exists, and of those of earlier results."""
        if call.main_input is None or call.inputs[call.main_input].is_planned or call.kind == "training":
            return {}
        refs = [call.inputs[call.main_input].ref]
        for fingerprint in prediction.main_inputs(call, results)[:MAX_COMPARED]:
            refs += [made.artifact for made in self._index.results_by_fingerprint.get(fingerprint, [])[:1]]
        return {ref.fingerprint(): self._row_digests(ctx, ref) for ref in refs}

    def _row_digests(self, ctx: StepContext, ref: ArtifactRef) -> list[str]:
        """Empty for an artifact that is gone, or that is no file of rows."""
        name = ref.fingerprint()
        if name not in self._rows:
            self._rows[name] = []
            with suppress(OSError, ValueError):
                self._rows[name] = [_digest(row) for row in ctx.artifacts.plain_rows(ref)]
        return self._rows[name]

    def _trained_model(self, ctx: StepContext, call: StepCall, inputs: dict[str, Any]) -> Checkpoint | None:
        """The checkpoint that a training will make, as far as it is known: without a name where it is saved whole."""
        start = _start_of(call)
        if start is None:
            return None
        planned = self._planned_as(start)
        model = planned.model if planned else ctx.resources.checkpoint(start)
        return replace(model, name=saved_on(model, next(sections(inputs, Lora), None))) if model else None

    def _model_bytes(self, call: StepCall, inputs: dict[str, Any], made: Checkpoint | None) -> Figure:
        """Size of `made`; adapters are joined with those that it starts from."""
        start, lora = _start_of(call), next(sections(inputs, Lora), None)
        if made is None or start is None:
            return prediction.UNKNOWN
        if lora is None or not made.name:
            return Figure(FLOAT32 * sum(made.tensor_sizes.values()))
        planned = self._planned_as(start)
        stored = self._index.object_bytes.get(start.fingerprint(), 0)
        earlier = planned.bytes if planned else Figure(stored if made.adapter else 0)
        return prediction.total([earlier, Figure(FLOAT32 * adapter_size(made, lora))])


def _start_of(call: StepCall) -> ArtifactRef | None:
    """The model that a training starts from."""
    models = (given.ref for given in call.inputs.values() if given.is_model)
    return next(models, None) if call.kind == "training" else None


def read_index(root: str) -> CacheIndex:
    """The results in `root`; none where it holds none. Raises CacheError for a damaged manifest, and for a folder that
    cannot be read."""
    try:
        files = CacheFiles(root)
    except CacheError:
        return CacheIndex([])
    try:
        return files.index()
    except OSError as error:
        raise CacheError(f"{root}: {error}; give this user access to it, or another storage.root") from error


def find_result(ctx: StepContext) -> ArtifactRef | None:
    """The result that a run would take from the cache: that of the manifest or of Prefect's record, if it is whole."""
    if is_refresh_wanted():
        return None
    return ctx.artifacts.recorded(ctx.key) or _prefect_result(ctx)


def _prefect_result(ctx: StepContext) -> ArtifactRef | None:
    """Of a local root; for others Prefect keeps its records elsewhere."""
    if ctx.directory.is_local:
        with suppress(Exception):  # Prefect, too, takes any error for a cache miss
            content = (Path(ctx.directory.root) / RECORDS / ctx.key).read_bytes()
            return VerifiedRef().loads(json.loads(content)["result"].encode())
    return None


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()
