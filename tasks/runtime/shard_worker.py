"""A worker: a run context in a process of its own, which runs steps on shards of problems.

It knows how a shard's rows become inputs of a step, and what is told of its result. It must not know in whose process
it is, nor how calls reach it.
"""

from __future__ import annotations

import importlib
import os
import pickle
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from conf.engine import Engine as EngineSettings
from conf.engine import Storage
from conf.errors import ReadableError
from conf.prompts import Prompt
from conf.retries import Retries
from models.inference.engine import Engine, FailedRequest, Failure
from models.inference.rollout_executor import FailureBudget
from models.inference.shared_engine import SharedEngine
from models.inference.vllm_server import REPLICA_STRIDE
from models.processes import process_name
from reasoning.records import InvalidRow, Record, SkippedRow, StageCount
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.failures import is_transient
from tasks.runtime.gpu_slot import GpuSlot
from tasks.runtime.ledger import Ledger
from tasks.runtime.progress import Progress
from tasks.runtime.resources import ENGINES, MakeEngine, Resources
from tasks.runtime.rows import RowFile
from tasks.runtime.shards import ShardFile, no_rows
from tasks.runtime.step_inputs import MODEL_KINDS, with_artifacts

NO_ROWS, NOTHING = no_rows(), StageCount(rows_in=0, rows_out=0, dropped={})
NOTE = "In the worker:\n"


class AnotherModel(ReadableError):
    """The node of a worker has another model under the name of the run's."""


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker must know of its run."""

    run: str
    storage: Storage
    engine: EngineSettings
    prompt: Prompt
    retries: Retries
    make_engine: MakeEngine
    here: Path
    """The run's working folder; workers work in the folder of that name on their node."""
    folder: Path
    """The run's own folder, for the logs of servers."""


@dataclass(frozen=True)
class ShardCall:
    """A step on one shard."""

    module: str
    """Where the step is defined."""
    step: str
    """Its name there."""
    key: str
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    """As for all problems."""
    files: Mapping[str, ShardFile]
    """The shard's rows, by the fingerprints of the artifacts among `inputs`."""
    base_models: Mapping[str, str]
    """Names of the run's base models, by digest."""


@dataclass
class StageFailures:
    """Failed requests of one stage of a step, of `total` rows."""

    total: int = 0
    kinds: Counter[Failure] = field(default_factory=Counter)
    first: dict[Failure, str] = field(default_factory=dict)
    """A reason of each kind."""
    must_serve: bool = False
    """Whether the step cannot go on where all have failed."""
    served: int = 0
    """Rows that have not failed, where one must be served."""


@dataclass
class ShardResult:
    """What a step has made of one shard."""

    kind: str = ""
    rows: ShardFile = NO_ROWS
    count: StageCount = NOTHING
    skipped: list[SkippedRow | InvalidRow] = field(default_factory=list)
    failures: dict[str, StageFailures] = field(default_factory=dict)
    """By stage."""
    warnings: Sequence[str] = ()


@dataclass
class ShardFailure:
    """What a step has raised for a shard; it can be pickled."""

    error: Exception


class ShardFailed(ReadableError):
    """An error that cannot be pickled, in words."""


class ShardFailedForNow(ShardFailed, ConnectionError):
    """The same, of one that may pass."""


def portable(error: Exception) -> Exception:
    """The error, or its words where it cannot be pickled and read again; with what the worker's log would show."""
    error.add_note(NOTE + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kind = ShardFailedForNow if is_transient(error) else ShardFailed
        return kind(f"{type(error).__name__}: {error}")
    return error


class CountedFailures(FailureBudget):
    """Failures of a shard's stage. They are counted, and end nothing: the share that may fail is one of all shards."""

    def __init__(self, stage: str, of_stage: StageFailures):
        super().__init__(stage, of_stage.total, 1.0)
        self._of_stage = of_stage

    def add(self, kind: Failure, reason: str) -> None:
        self._of_stage.kinds[kind] += 1
        self._of_stage.first.setdefault(kind, reason)


class ShardResources(Resources):
    """The resources of a worker for one of the shards that it has in hand: a view of each engine, and the failures."""

    def __init__(self, worker: Resources, own: Mapping[str, Any], result: ShardResult):
        """`own`: what stands in the place of the worker's, by name."""
        self.__dict__.update(worker.__dict__, **own)
        self._failures = result.failures

    def failure_budget(self, stage: str, total: int) -> FailureBudget:
        of_stage = self._failures.setdefault(stage, StageFailures())
        of_stage.total += total
        return CountedFailures(stage, of_stage)

    def validate_some_served(self, stage: str, failed: Mapping[str, FailedRequest], served: int) -> None:
        """Whether some are served is judged when all shards are done."""
        _ = failed
        self._failures[stage].must_serve = True
        self._failures[stage].served += served


class ShardContext(StepContext):
    """The context of a step on one shard: what the step publishes becomes the result."""

    def __init__(self, run: RunContext, call: ShardCall, engines: Mapping[str, Engine]):
        super().__init__(run, call.key, call.recipe)
        self.result = ShardResult()
        self.ledger = Ledger()
        self.progress = Progress(Console(quiet=True))  # a stage of all shards is shown in the place of theirs
        self.resources = ShardResources(run.resources, {**engines, "progress": self.progress}, self.result)

    def save(self, kind: str, rows: Sequence[Record] | RowFile, count: StageCount) -> ArtifactRef:
        """Puts them into `result`."""
        if not isinstance(rows, RowFile):
            with RowFile() as given:
                given.extend(rows)
                return self.save(kind, given, count)
        self.result.kind, self.result.count = kind, count
        self.result.rows = ShardFile(rows.finish().read_bytes(), len(rows))
        return ArtifactRef(kind=kind, uri="", digest="", rows=len(rows), count=count)

    def report_skipped(self, rows: Sequence[SkippedRow | InvalidRow], what: str = "rows") -> None:
        """Keeps them for whoever reports those of all shards."""
        _ = what
        self.result.skipped.extend(rows)


def run_shard(run: RunContext, call: ShardCall, engines: Mapping[str, Engine]) -> ShardResult:
    """Runs the step on the shard. Raises what the step raises."""
    body = getattr(importlib.import_module(call.module), call.step).body
    ctx = ShardContext(run, call, engines)
    with tempfile.TemporaryDirectory(prefix="brevity-shard-") as scratch:
        written: dict[str, ArtifactRef] = {}

        def of_shard(ref: ArtifactRef) -> ArtifactRef:
            """The same artifact, with the shard's rows alone."""
            if ref.kind in MODEL_KINDS:
                return ref
            name = ref.fingerprint()
            if name not in written:
                file, path = call.files.get(name, NO_ROWS), Path(scratch) / f"{len(written)}.parquet"
                path.write_bytes(file.content)
                written[name] = ref.model_copy(update={"uri": str(path), "rows": file.rows})
            return written[name]

        body(ctx, **with_artifacts(call.inputs, of_shard))
    ctx.result.warnings = ctx.ledger.warnings
    return ctx.result


class ShardWorker:
    """Runs steps on shards, several side by side on the same servers, which stay between steps."""

    def __init__(self, plan: WorkerPlan, number: int):
        """`number`: of all workers that the run has started; no two of them sample with the same seeds."""
        plan.here.mkdir(parents=True, exist_ok=True)
        os.chdir(plan.here)
        settings = plan.engine
        stride = REPLICA_STRIDE * 64 * number  # more than the replicas of a worker
        self._run = RunContext(
            plan.run,
            plan.storage,
            settings.model_copy(update={"seed": (settings.seed + stride) % 2**32}),
            prompt=plan.prompt,
            retries=plan.retries,
            make_engine=plan.make_engine,
            progress=Progress(Console(quiet=True)),
            folder=plan.folder / f"worker-{number}",
        )
        self._run.directory.path.mkdir(parents=True, exist_ok=True)
        resources, views = self._run.resources, settings.workers.shards_at_once
        resources.gpu_slot = GpuSlot(self._run.progress.note, is_needed=False)  # the run has it
        self._engines = {name: SharedEngine(getattr(resources, name), views) for name in ENGINES}
        _ = resources.store, resources.verifier  # made once, for all shards
        self._opening = threading.Lock()

    def process(self) -> str:
        """Name of its process."""
        return process_name()

    def run(self, call: ShardCall) -> ShardResult | ShardFailure:
        """Runs a step on a shard."""
        try:
            with self._opening:
                for digest, name in call.base_models.items():
                    self._open(name, digest)
            return run_shard(self._run, call, {name: shared.view() for name, shared in self._engines.items()})
        except Exception as error:
            return ShardFailure(portable(error))

    def close(self) -> None:
        """Ends its servers, and waits until they have gone."""
        self._run.resources.close()

    def _open(self, name: str, digest: str) -> None:
        resources = self._run.resources
        if not resources.knows(digest) and (found := resources.model(name).digest) != digest:
            raise AnotherModel(
                f"{os.uname().nodename} has another model under the name {name} ({found[:12]}, the run has "
                f"{digest[:12]}); give all nodes the same"
            )
