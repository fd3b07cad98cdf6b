"""Workers in processes of this machine, each with GPUs of its own.

It knows processes, and which GPUs each may see. It must not know what the workers do.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.managers import BaseManager
from queue import SimpleQueue
from typing import Any

import psutil

from models.inference.devices import VISIBLE, TooFewGpus, visible_gpus
from models.processes import threads
from tasks.runtime.failures import WorkerLost
from tasks.runtime.shard_worker import ShardCall, ShardFailure, ShardResult, ShardWorker, WorkerPlan
from tasks.runtime.worker_pool import Worker

UNTIL_GONE = 60.0
"""Seconds to wait for the end of a worker's servers, whose GPUs another then needs."""
WITHOUT_GPUS = 2
"""Workers where there are no GPUs, unless the settings say how many."""


class LocalWorkers:
    """Room for as many workers as there are GPUs for."""

    def __init__(self, plan: WorkerPlan, before_start: Callable[[], None]):
        """`before_start` is called before each start, and may wait. Raises TooFewGpus."""
        settings, gpus = plan.engine.workers, visible_gpus()
        self._plan, self._before_start = plan, before_start
        self.gpus_each = plan.engine.gpus_of_worker if gpus else 0
        most = len(gpus) // self.gpus_each if gpus else WITHOUT_GPUS
        self.count = settings.count or most
        if gpus and not 0 < self.count <= most:
            raise TooFewGpus(
                f"engine.workers needs {max(1, self.count) * self.gpus_each} GPUs (count × gpus_each), and {len(gpus)} "
                "are there; lower one of the two"
            )
        self._free: SimpleQueue[tuple[str, ...]] = SimpleQueue()
        """GPUs of the workers that are not there."""
        for first in range(self.count):
            self._free.put(gpus[first * self.gpus_each : (first + 1) * self.gpus_each])

    def start(self, number: int) -> Worker:
        """See `Place.start`."""
        self._before_start()
        gpus = self._free.get()
        environment = {"OMP_NUM_THREADS": str(max(1, threads() // self.count))}
        if gpus:
            environment[VISIBLE] = ",".join(gpus)
        try:
            return _LocalWorker(self._plan, number, environment, lambda: self._free.put(gpus))
        except (EOFError, OSError) as error:
            raise WorkerLost(f"a worker has ended before it was there ({error!r})") from None

    def close(self) -> None:
        """See `Place.close`: a worker that is still starting is ended when it is there."""


class _Processes(BaseManager):
    """One process that holds a worker; each thread that calls it is served by a thread there."""


_Processes.register("ShardWorker", ShardWorker)


class _LocalWorker:
    def __init__(self, plan: WorkerPlan, number: int, environment: Mapping[str, str], on_end: Callable[[], None]):
        self._manager, self._on_end = _Processes(ctx=multiprocessing.get_context("spawn")), on_end
        self._child: Any = None
        try:
            self._manager.start(_prepare, (dict(environment),))
            self._child = self._manager._process  # type: ignore[attr-defined]  # no other way leads to it
            self._worker: Any = self._manager.ShardWorker(plan, number)  # type: ignore[attr-defined]
            self.process: str = self._worker.process()
        except BaseException:
            self.end()
            raise

    def run(self, call: ShardCall) -> ShardResult | ShardFailure:
        """See `Worker.run`."""
        try:
            return self._worker.run(call)
        except (EOFError, OSError) as error:  # errors of the step come as a ShardFailure
            raise WorkerLost(f"the worker in process {self._child.pid} has gone ({error!r})") from None

    def end(self) -> None:
        """See `Worker.end`. A worker that is frozen ends too, and its servers with it."""
        if self._child:
            servers = _descendants(self._child.pid)
            self._child.kill()
            psutil.wait_procs(servers, UNTIL_GONE)
            self._child.join()
        self._on_end()


def _descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _prepare(environment: Mapping[str, str]) -> None:
    """In the new process, before it has a worker."""
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A run that is killed takes its workers along, and their servers with them."""
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)
