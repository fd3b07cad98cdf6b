"""The workers of a run: whoever has a shard finds one that is free.

It knows when workers are there, lost and replaced. It must not know how a worker is started, nor what shards are of.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Protocol

from tasks.runtime.failures import WorkerLost, is_transient
from tasks.runtime.shard_worker import ShardCall, ShardFailure, ShardResult

MAX_LOSSES = 3
"""Workers that a shard may lose. More are its own fault, as when a node runs out of memory each time."""
MAX_STARTS = 10
"""Attempts to start a worker whose node goes before it is there, or that fails for a reason that may pass."""
SAY_SO_AFTER = 60.0
"""Seconds between two notes that there is no worker yet."""


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
