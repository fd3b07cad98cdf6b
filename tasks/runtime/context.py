"""Context of a run: directory, resources, ledger, artifacts, progress."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from conf.engine import Engine as EngineSettings
from conf.engine import Storage
from conf.errors import ReadableError
from conf.prompts import Prompt
from conf.retries import Retries
from conf.workers import Workers
from models.inference.own_servers import OwnServers
from models.training.launcher import train
from reasoning.records import CostBounds, InvalidRow, Record, SkippedRow, StageCount, Usage
from tasks.runtime.artifacts import ArtifactRef, ArtifactStore
from tasks.runtime.fetched import FetchedFiles
from tasks.runtime.leases import Lease
from tasks.runtime.ledger import Ledger
from tasks.runtime.live import LIVE_FILE, LiveFile
from tasks.runtime.object_storage import is_local
from tasks.runtime.progress import Progress
from tasks.runtime.resources import MakeEngine, Resources, Train
from tasks.runtime.rows import RowFile
from tasks.runtime.run_directory import FETCHED, RunDirectory, local_root, rollout_store_url

StepRunner = Callable[[Any, "StepContext", dict[str, Any]], tuple[ArtifactRef, bool]]
"""From a step, its context and its inputs to its result, and whether that came from the cache."""


def open_artifacts(storage: Storage) -> ArtifactStore:
    """The artifacts of a storage; copies of remote ones go to this machine's folder of runs. Raises NoStorage."""
    here = local_root(storage.root, is_local(storage.root))
    return ArtifactStore(storage.root, FetchedFiles(here / FETCHED, 1e9 * storage.max_fetched_gb))


class NoRay(ReadableError):
    """An extra of this package is missing."""


def _trainer(workers: Workers, note: Callable[[str], None]) -> Train:
    """What trains: this machine, or nodes of a Ray cluster."""
    if workers.kind != "ray":
        return train
    try:
        from tasks.runtime.ray_training import RayTrainer
    except ImportError:
        raise NoRay("engine.workers.kind is ray, and Ray is not installed; install the extra `ray`") from None
    return RayTrainer(workers, note)


class RunContext:
    """The parts of one run. A context manager: exit ends every process that the run started.

    Steps in several threads may share it, except that an auxiliary model answers one step at a time. When one of them
    fails or has to wait, the servers of all end; the others are retried.
    """

    def __init__(
        self,
        name: str,
        storage: Storage,
        engine: EngineSettings,
        *,
        prompt: Prompt | None = None,
        retries: Retries | None = None,
        make_engine: MakeEngine = OwnServers,
        trainer: Train | None = None,
        progress: Progress | None = None,
        run_step: StepRunner | None = None,
        folder: Path | None = None,
    ):
        """`run_step`: replaces Prefect as what runs the steps. `folder`: this run's own; default: a new one in the
        storage."""
        self.storage, self.artifacts = storage, open_artifacts(storage)
        self.directory = RunDirectory(name, storage, self.artifacts.is_local, folder)
        self.run_step = run_step
        self.ledger = Ledger()
        self.progress = progress or Progress(live=LiveFile(self.directory.path / LIVE_FILE))
        self.resources = Resources(
            engine,
            rollout_store_url(storage, self.directory.local_root),
            prompt or Prompt(),
            self.artifacts,
            self.directory.path,
            self.progress,
            self.warn,
            retries or Retries(),
            make_engine,
            trainer or _trainer(engine.workers, self.progress.note),
        )

    def warn(self, text: str) -> None:
        """Prints a warning now and adds it to the report."""
        self.ledger.warnings.append(text)
        self.progress.note(f"warning: {text}", logging.WARNING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resources.close()
        self.artifacts.close()
        if self.progress.live:
            self.progress.live.end()


class StepContext(RunContext):
    """The run context of one attempt of a step, with the step's cache key and the attempt's start."""

    def __init__(self, run: RunContext, key: str, recipe: dict[str, Any], lease: Lease | None = None):
        self.storage, self.artifacts = run.storage, run.artifacts
        self.directory, self.ledger = run.directory, run.ledger
        self.progress, self.resources, self.run_step = run.progress, run.resources, run.run_step
        self.key = key
        """Cache key. Names scratch folders and lists, so that a repeated step finds them."""
        self.recipe = recipe
        """What the key is the digest of."""
        self.was_made_elsewhere = False
        """Whether another run made the result while this one waited."""
        self._lease = lease
        self.started = time.monotonic()

    def publish(
        self,
        kind: str,
        rows: Sequence[Record] | RowFile,
        *,
        rows_in: int,
        dropped: dict[str, int] | None = None,
        usage: Usage | None = None,
        counts: dict[str, int] | None = None,
        cost_bounds: CostBounds | None = None,
        billed_to: str = "",
        skipped: Sequence[SkippedRow] = (),
    ) -> ArtifactRef:
        """Writes `rows` as an artifact with its ledger line. Many or large rows come as a RowFile.

        `skipped` rows are listed in a file, and added to `dropped` by their reason.
        """
        self.report_skipped(skipped)
        all_dropped = Counter(dropped or {}) + Counter(row.reason for row in skipped)
        count = self.count(rows_in, len(rows), dict(all_dropped), usage)
        count = count.model_copy(update={"counts": counts or {}, "cost_bounds": cost_bounds, "billed_to": billed_to})
        return self.save(kind, rows, count)

    def save(self, kind: str, rows: Sequence[Record] | RowFile, count: StageCount) -> ArtifactRef:
        """Puts the rows of an artifact where they belong."""
        return self.artifacts.publish_rows(kind, rows, count)

    @property
    def lease(self) -> Lease:
        """The lease of the key, which an attempt holds."""
        assert self._lease
        return self._lease

    def report_skipped(self, rows: Sequence[SkippedRow | InvalidRow], what: str = "rows") -> None:
        """Lists rows with their reasons in a file, and prints its path. `what` names the rows."""
        if rows:
            path = self.directory.save_skipped(self.key, rows)
            self.progress.note(f"{len(rows)} {what} set aside in {path}")

    def count(
        self, rows_in: int, rows_out: int, dropped: dict[str, int] | None = None, usage: Usage | None = None
    ) -> StageCount:
        """The step's ledger line, with the seconds since its start."""
        cost = (usage or Usage()).model_dump() | {"seconds": time.monotonic() - self.started}
        rows = {"rows_in": rows_in, "rows_out": rows_out, "dropped": dropped or {}}
        return StageCount.model_validate({**rows, **cost, "gpus": self.resources.gpus})
