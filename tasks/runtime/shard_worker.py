"""A worker: a run context in a process of its own, which runs steps on shards of problems.

It knows how a shard's rows become inputs of a step, and what is told of its result. It must not know in whose process
it is, nor how calls reach it.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import threading
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
from models.inference.engine import Engine, Failure
from models.inference.rollout_executor import FailureBudget
from models.inference.shared_engine import SharedEngine
from models.inference.vllm_server import REPLICA_STRIDE
from models.processes import process_name
from reasoning.records import InvalidRow, Record, SkippedRow, StageCount
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.ledger import Ledger
from tasks.runtime.progress import Progress
from tasks.runtime.resources import ENGINES, MakeEngine, Resources
from tasks.runtime.rows import RowFile
from tasks.runtime.shards import ShardFile
from tasks.runtime.step_inputs import MODEL_KINDS, with_artifacts

NO_ROWS, NOTHING = ShardFile(b"", 0), StageCount(rows_in=0, rows_out=0, dropped={})


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
        names = ENGINES if settings.servers_per_gpu > 1 else ENGINES[:1]
        self._engines = {name: SharedEngine(getattr(resources, name), views) for name in names}
        _ = resources.store, resources.verifier  # made once, for all shards
        self._opening = threading.Lock()

    def process(self) -> str:
        """Name of its process."""
        return process_name()

    def run(self, call: ShardCall) -> ShardResult:
        """Runs a step on a shard. Raises what the step raises, and AnotherModel."""
        with self._opening:
            for digest, name in call.base_models.items():
                self._open(name, digest)
        return run_shard(self._run, call, {name: shared.view() for name, shared in self._engines.items()})

    def _open(self, name: str, digest: str) -> None:
        resources = self._run.resources
        if not resources.knows(digest) and (found := resources.model(name).digest) != digest:
            raise AnotherModel(
                f"{os.uname().nodename} has another model under the name {name} ({found[:12]}, the run has "
                f"{digest[:12]}); give all nodes the same"
            )
