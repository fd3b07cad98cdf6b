"""The workers of a run, and a step's shards on their way through them.

It knows when workers are there, lost and replaced, and how the results of shards become one artifact. It must not know
how a worker is started, nor what a step computes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from io import BytesIO
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from conf.errors import ReadableError
from models.inference.stored_only import EngineNeeded, StoredOnly
from reasoning.records import CostBounds, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import StepContext
from tasks.runtime.rows import RowFile
from tasks.runtime.shard_worker import ShardCall, ShardResult, StageFailures, run_shard
from tasks.runtime.shards import Shards
from tasks.runtime.step_inputs import MODEL_KINDS, artifacts_in

STORED = {"engine": StoredOnly(), "partner_engine": StoredOnly(), "remote_servers": StoredOnly()}
MAX_LOSSES = 3
"""Workers that a shard may lose. More are its own fault, as when a node runs out of memory each time."""
SAY_SO_AFTER = 60.0
"""Seconds between two notes that there is no worker yet."""


class WorkerLost(ReadableError):
    """The process or the node of a worker has gone."""


class Worker(Protocol):
    """A `ShardWorker` somewhere else."""

    process: str
    """`process_name` there."""

    def run(self, call: ShardCall) -> ShardResult:
        """Raises what the step raises, and WorkerLost."""
        ...

    def end(self) -> None:
        """Ends its process and all that it has started."""
        ...


class Place(Protocol):
    """Where workers run."""

    count: int
    """Workers that it has room for."""
    gpus_each: int

    def start(self, number: int) -> Worker:
        """Makes the worker of this number, and waits until it is there."""
        ...


class WorkerPool:
    """Workers that start when the first shard needs one. A lost one is replaced, and its shards go to the others."""

    def __init__(self, place: Place, at_once: int, note: Callable[..., None], release: Callable[[str], None]):
        """`at_once`: shards that each worker has in hand. `release` frees what a process that has gone had claimed."""
        self._place, self.count, self.at_once = place, place.count, at_once
        self._note, self._release = note, release
        self.gpus = place.count * place.gpus_each
        self._free: SimpleQueue[Worker | Exception] = SimpleQueue()
        """Each worker as often as it can take a shard; the last worker's error where none is left."""
        self._workers: set[Worker] = set()
        self._starting = self._started = 0
        self.is_opened = self._is_closed = False
        """Whether workers were asked for."""
        self._lock = threading.Lock()

    def run(self, call: ShardCall) -> ShardResult:
        """Runs a shard on a worker that is free. Raises what the step raises, what its start raises where no worker is
        left, and WorkerLost for a shard that loses each worker, or when the pool is closed."""
        self._start_all()
        for _ in range(MAX_LOSSES):
            worker = self._next()
            try:
                result = worker.run(call)
            except WorkerLost as lost:
                self._replace(worker, lost)
                continue
            except BaseException:
                self._free.put(worker)
                raise
            self._free.put(worker)
            return result
        raise WorkerLost(f"{call.key}: a shard has lost {MAX_LOSSES} workers")

    def close(self) -> None:
        """Ends all workers; shards that are running raise WorkerLost."""
        with self._lock:
            self._is_closed, workers = True, [*self._workers]
            self._workers.clear()
        for worker in workers:
            worker.end()
        for _ in range(self.count * self.at_once):
            self._free.put(WorkerLost("the run's workers were ended"))

    def _start_all(self) -> None:
        with self._lock:
            is_first, self.is_opened = not self.is_opened, True
        if is_first:
            self._start_more(self.count)

    def _start_more(self, count: int) -> None:
        with self._lock:
            numbers = range(self._started, self._started + count)
            self._started, self._starting = self._started + count, self._starting + count
        for number in numbers:
            threading.Thread(target=copy_context().run, args=(self._add, number), daemon=True).start()

    def _add(self, number: int) -> None:
        try:
            worker = self._place.start(number)
        except WorkerLost as lost:  # its node has gone before it was there
            self._note(f"{lost}; another is started", logging.WARNING)
            self._start_more(1)
            with self._lock:
                self._starting -= 1
            return
        except Exception as error:
            with self._lock:
                self._starting -= 1
                is_last = not (self._starting or self._workers)
            self._note(f"the run goes on without a worker that cannot be started: {error}", logging.WARNING)
            if is_last:
                self._free.put(error)
            return
        with self._lock:
            self._starting -= 1
            is_wanted = not self._is_closed
            if is_wanted:
                self._workers.add(worker)
        if not is_wanted:
            worker.end()
            return
        for _ in range(self.at_once):
            self._free.put(worker)

    def _next(self) -> Worker:
        """Waits for a worker that is free and there."""
        while True:
            try:
                found = self._free.get(timeout=SAY_SO_AFTER)
            except Empty:
                if not self._workers:
                    self._note("workers: none has a place yet; waits for GPUs")
                continue
            if isinstance(found, Exception):
                self._free.put(found)  # for the others that wait
                raise found
            with self._lock:
                if found in self._workers:
                    return found

    def _replace(self, worker: Worker, lost: WorkerLost) -> None:
        """The first shard to notice starts another in its place."""
        with self._lock:
            if self._is_closed:
                raise lost
            is_first = worker in self._workers
            self._workers.discard(worker)
        if is_first:
            self._note(f"{lost}; its shards go to the other workers, and another is started", logging.WARNING)
            worker.end()
            self._release(worker.process)  # else the others would wait until the claims expire
            self._start_more(1)


def run_in_shards(
    ctx: StepContext, pool: WorkerPool, body: Callable[..., ArtifactRef], inputs: dict[str, Any]
) -> ArtifactRef:
    """Runs the body of a step on shards of its problems, and publishes what all have made, in the problems' order.

    A shard whose completions are all stored needs no worker. Raises what the step and `WorkerPool.run` raise.
    """
    refs = [ref for ref in artifacts_in(inputs) if ref.kind not in MODEL_KINDS]
    size, at_once = ctx.resources.engine_settings.workers.problems_per_shard, pool.count * pool.at_once
    with Shards(ctx.artifacts, refs, size) as shards, RowFile() as rows:
        parts = f"{len(shards)} shard{'s' * (len(shards) > 1)}"
        stage = ctx.progress.stage(f"{ctx.recipe['step']} in {parts}", shards.problems, "problems")

        stage_lock = threading.Lock()

        def of_shard(number: int) -> ShardResult:
            models = dict(ctx.resources.base_models)
            files = shards.files(number)
            call = ShardCall(body.__module__, body.__name__, ctx.key, ctx.recipe, inputs, files, models)
            result = (None if pool.is_opened else _from_store(ctx, call)) or pool.run(call)
            with stage_lock:
                stage(shards.problems_in(number), result.count.generated_tokens)
            return result

        whole = ShardResult()
        for result in _all(of_shard, len(shards), at_once, pool):
            if result.rows.rows:
                rows.extend_from(BytesIO(result.rows.content))
            _add_result(whole, result)
        return _publish(ctx, rows, whole)


def _from_store(ctx: StepContext, call: ShardCall) -> ShardResult | None:
    """What the step makes of a shard whose completions are all stored; None for others. Only asked before there are
    workers: those that are there have their GPUs in any case, and more processors than this one process."""
    try:
        return run_shard(ctx, call, STORED)
    except EngineNeeded:
        return None


def _all(run: Callable[[int], ShardResult], shards: int, at_once: int, pool: WorkerPool) -> Iterator[ShardResult]:
    """The results of all shards, in order. Whatever ends this ends the workers too, which do not wait to be done."""
    threads, contexts = ThreadPoolExecutor(at_once), [copy_context() for _ in range(shards)]
    try:
        yield from threads.map(lambda number: contexts[number].run(run, number), range(shards))
    except BaseException:
        pool.close()
        raise
    finally:
        threads.shutdown(cancel_futures=True)


def _add_result(whole: ShardResult, new: ShardResult) -> None:
    """Adds to `whole` what `new` says of its rows."""
    before, count = whole.count, new.count
    whole.kind, bounds = new.kind, before.cost_bounds or CostBounds()
    whole.count = before.model_copy(
        update={
            **(before + count).model_dump(),
            "rows_in": before.rows_in + count.rows_in,
            "dropped": _sum(before.dropped, count.dropped),
            "counts": _sum(before.counts, count.counts),
            "cost_bounds": bounds + count.cost_bounds if count.cost_bounds else before.cost_bounds,
        }
    )
    whole.skipped += new.skipped
    whole.warnings = list(dict.fromkeys([*whole.warnings, *new.warnings]))
    for stage, failures in new.failures.items():
        known = whole.failures.setdefault(stage, StageFailures())
        known.total += failures.total
        known.kinds += failures.kinds
        known.first = failures.first | known.first


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Zeros are kept: reports name them."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in [*one, *(set(other) - set(one))]}


def _publish(ctx: StepContext, rows: RowFile, whole: ShardResult) -> ArtifactRef:
    """Raises TooManyFailed."""
    for stage, failures in whole.failures.items():
        budget = ctx.resources.failure_budget(stage, failures.total)
        for kind in failures.kinds.elements():
            budget.add(kind, failures.first[kind])
    ctx.report_skipped(whole.skipped)
    for text in whole.warnings:
        ctx.warn(text)
    told = whole.count
    count = ctx.count(told.rows_in, len(rows), told.dropped, told + Usage())
    return ctx.save(whole.kind, rows, count.model_copy(update={"counts": told.counts, "cost_bounds": told.cost_bounds}))
