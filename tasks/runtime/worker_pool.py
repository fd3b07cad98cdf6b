"""The workers of a run, and a step's shards on their way through them.

It knows when workers are there, lost and replaced, and how the results of shards become one artifact. It must not know
how a worker is started, nor what a step computes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from io import BytesIO
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from models.inference.rollout_executor import TooManyFailed
from models.inference.stored_only import EngineNeeded, StoredOnly
from reasoning.records import CostBounds, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import StepContext
from tasks.runtime.failures import WorkerLost, is_transient
from tasks.runtime.rows import RowFile
from tasks.runtime.shard_worker import ShardCall, ShardFailure, ShardResult, StageFailures, run_shard
from tasks.runtime.shards import Shards
from tasks.runtime.step_inputs import MODEL_KINDS, artifacts_in

STORED = {"engine": StoredOnly(), "partner_engine": StoredOnly(), "remote_servers": StoredOnly()}
MAX_LOSSES = 3
"""Workers that a shard may lose. More are its own fault, as when a node runs out of memory each time."""
MAX_STARTS = 10
"""Attempts to start a worker whose node goes before it is there, or that fails for a reason that may pass."""
SAY_SO_AFTER = 60.0
"""Seconds between two notes that there is no worker yet."""
AHEAD = 8
"""Shards for each that is in hand, between the oldest that is not done and the newest: their results wait in memory."""


class Worker(Protocol):
    """A `ShardWorker` somewhere else."""

    process: str
    """`process_name` there."""

    def run(self, call: ShardCall) -> ShardResult | ShardFailure:
        """Raises WorkerLost."""
        ...

    def end(self) -> None:
        """Ends its process and its servers, and waits until their GPUs are free."""
        ...


class Place(Protocol):
    """Where workers run."""

    count: int
    """Workers that it has room for."""
    gpus_each: int

    def start(self, number: int) -> Worker:
        """Makes the worker of this number, and waits until it is there."""
        ...

    def close(self) -> None:
        """Ends also workers that are not there yet."""
        ...


class WorkerPool:
    """Workers that start when the first shard needs one. A lost one is replaced, and its shards go to the others."""

    def __init__(
        self,
        place: Callable[[], Place],
        at_once: int,
        numbers: Iterator[int],
        note: Callable[..., None],
        release: Callable[[str], None],
    ):
        """`at_once`: shards that each worker has in hand. `numbers`: for workers, each once in a run. `release` frees
        what a process that has gone had claimed."""
        self._make_place, self._at_once, self._numbers = place, at_once, numbers
        self._note, self._release = note, release
        self._place: Place | None = None
        self._free: SimpleQueue[Worker | Exception] = SimpleQueue()
        """Each worker as often as it can take a shard; an error where none is left."""
        self._workers: set[Worker] = set()
        self._starting = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self._told = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether workers were asked for."""
        return self._place is not None

    @property
    def gpus(self) -> int:
        """Of all workers."""
        return self._place.count * self._place.gpus_each if self._place else 0

    def open(self) -> int:
        """Asks for workers, unless that was done. Returns how many shards they can have in hand. Raises what the place
        raises."""
        with self._lock:
            if is_first := self._place is None:
                self._place = self._make_place()
        if is_first:
            self._start_more(self._place.count)
        return self._place.count * self._at_once

    def run(self, call: ShardCall) -> ShardResult:
        """Runs a shard on a worker that is free. Raises what the step raises, what its start raises where no worker is
        left, and WorkerLost for a shard that loses each worker, or when the pool is closed."""
        for _ in range(MAX_LOSSES):
            worker = self._next()
            try:
                result = worker.run(call)
            except WorkerLost as lost:
                self._replace(worker, lost)
                continue
            self._free.put(worker)
            if isinstance(result, ShardFailure):
                raise result.error
            return result
        raise WorkerLost(f"{call.key}: a shard has lost {MAX_LOSSES} workers")

    def close(self) -> None:
        """Ends all workers; shards that are running raise WorkerLost."""
        with self._lock:
            self._is_closed, workers = True, [*self._workers]
            self._workers.clear()
        self._free.put(WorkerLost("the run's workers were ended"))
        if self._place:
            with ThreadPoolExecutor(self._place.count) as threads:
                list(threads.map(lambda worker: worker.end(), workers))
            self._place.close()

    def _start_more(self, count: int) -> None:
        with self._lock:
            self._starting += count
            numbers = [next(self._numbers) for _ in range(count)]
        for number in numbers:
            threading.Thread(target=copy_context().run, args=(self._add, number), daemon=True).start()

    def _add(self, number: int) -> None:
        """Starts one worker, or says why that fails."""
        try:
            worker = self._start(number)
        except Exception as error:
            with self._lock:
                self._starting -= 1
                is_last, is_wanted = not (self._starting or self._workers), not self._is_closed
            if is_wanted:
                text = f"the run goes on without a worker that cannot be started: {error}"
                self._note(text, logging.WARNING)
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
        for _ in range(self._at_once):
            self._free.put(worker)

    def _start(self, number: int) -> Worker:
        assert self._place
        attempts = 1
        while True:
            try:
                return self._place.start(number)
            except Exception as error:
                if attempts == MAX_STARTS or self._is_closed or not is_transient(error):
                    raise
                self._note(f"{error}; another is started", logging.WARNING)
            attempts += 1
            with self._lock:
                number = next(self._numbers)

    def _next(self) -> Worker:
        """Waits for a worker that is free and there."""
        while True:
            try:
                found = self._free.get(timeout=SAY_SO_AFTER)
            except Empty:
                self._say_that_none_is_there()
                continue
            if isinstance(found, Exception):
                self._free.put(found)  # for the others that wait
                raise found
            with self._lock:
                if found in self._workers:
                    return found

    def _say_that_none_is_there(self) -> None:
        with self._lock:
            is_due = not self._workers and time.monotonic() - self._told > SAY_SO_AFTER / 2
            self._told = time.monotonic() if is_due else self._told
        if is_due:
            self._note("workers: none has a place yet; waits for GPUs")

    def _replace(self, worker: Worker, lost: WorkerLost) -> None:
        """The first shard to notice starts another in its place."""
        with self._lock:
            if self._is_closed:
                raise lost
            is_first = worker in self._workers
            self._workers.discard(worker)
            self._starting += is_first  # nobody may think meanwhile that none is left
        if is_first:
            self._note(f"{lost}; its shards go to the other workers, and another is started", logging.WARNING)
            worker.end()
            self._release(worker.process)  # else the others would wait until the claims expire
            self._start_more(1)
            with self._lock:
                self._starting -= 1


def run_in_shards(
    ctx: StepContext, pool: WorkerPool, body: Callable[..., ArtifactRef], inputs: dict[str, Any]
) -> ArtifactRef:
    """Runs the body of a step on shards of its problems, and publishes what all have made, in the problems' order.

    Shards whose completions are all stored need no worker. Raises what the step and `WorkerPool` raise.
    """
    refs = [ref for ref in artifacts_in(inputs) if ref.kind not in MODEL_KINDS]
    size = ctx.resources.engine_settings.workers.problems_per_shard
    whole = ShardResult()
    with Shards(ctx.artifacts, refs, size) as shards, RowFile() as rows:
        parts = f"{len(shards)} shard{'s' * (len(shards) > 1)}"
        stage = ctx.progress.stage(f"{ctx.recipe['step']} in {parts}", shards.problems, "problems")

        def call_of(number: int) -> ShardCall:
            files, models = shards.files(number), dict(ctx.resources.base_models)
            return ShardCall(body.__module__, body.__name__, ctx.key, ctx.recipe, inputs, files, models)

        done = 0
        while done < len(shards) and not pool.is_open and (stored := _from_store(ctx, call_of(done))):
            _add_result(whole, rows, stored)
            stage(shards.problems_in(done))
            done += 1
        counted = threading.Lock()

        def of_worker(number: int) -> ShardResult:
            result = pool.run(call_of(number))
            with counted:
                stage(shards.problems_in(number), result.count.generated_tokens)
            return result

        at_once = min(pool.open(), len(shards) - done) if done < len(shards) else 1
        for result in _all(of_worker, range(done, len(shards)), at_once, pool):
            _add_result(whole, rows, result)
        return _publish(ctx, rows, whole, at_once)


def _from_store(ctx: StepContext, call: ShardCall) -> ShardResult | None:
    """What the step makes of a shard whose completions are all stored; None for others. Only asked before there are
    workers: those that are there have their GPUs in any case, and more processors than this one process."""
    try:
        return run_shard(ctx, call, STORED)
    except EngineNeeded:
        return None


def _all(
    run: Callable[[int], ShardResult], shards: Iterable[int], at_once: int, pool: WorkerPool
) -> Iterator[ShardResult]:
    """The results of shards, in order. Whatever ends this ends the workers too, which do not wait to be done."""
    threads, waiting = ThreadPoolExecutor(at_once), deque[Future[ShardResult]]()
    try:
        for number in shards:
            waiting.append(threads.submit(copy_context().run, run, number))
            if len(waiting) == AHEAD * at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        pool.close()
        raise
    finally:
        threads.shutdown(cancel_futures=True)


def _add_result(whole: ShardResult, rows: RowFile, new: ShardResult) -> None:
    """Adds to `whole` and `rows` what is `new`."""
    if new.rows.rows:
        rows.extend_from(BytesIO(new.rows.content))
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
        known.must_serve |= failures.must_serve
        known.served += failures.served
        known.kinds += failures.kinds
        known.first = failures.first | known.first


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Zeros are kept: reports name them."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in [*one, *(set(other) - set(one))]}


def _publish(ctx: StepContext, rows: RowFile, whole: ShardResult, at_once: int) -> ArtifactRef:
    """`at_once`: shards that ran side by side. Raises TooManyFailed."""
    for stage, failures in whole.failures.items():
        _validate_failures(ctx, stage, failures)
    ctx.report_skipped(whole.skipped)
    for text in whole.warnings:
        ctx.warn(text)
    told = whole.count
    # Seconds of engines are those of one: shards side by side share the time. Their tails overlap, and are no tail of
    # the whole.
    engine = {"engine_busy": told.engine_busy / at_once, "engine_idle": told.engine_idle / at_once, "engine_tail": 0.0}
    count = ctx.count(told.rows_in, len(rows), told.dropped, (told + Usage()).model_copy(update=engine))
    counts = {"counts": told.counts, "cost_bounds": told.cost_bounds}
    return ctx.save(whole.kind, rows, count.model_copy(update=counts))


def _validate_failures(ctx: StepContext, stage: str, failures: StageFailures) -> None:
    """Raises TooManyFailed, also when all have failed, whatever the settings allow."""
    budget = ctx.resources.failure_budget(stage, failures.total)
    for kind in failures.kinds.elements():
        budget.add(kind, failures.first[kind])
    if failures.must_serve and failures.first and not failures.served:
        raise TooManyFailed(f"{stage}: there is no completion of any problem: {next(iter(failures.first.values()))}")
