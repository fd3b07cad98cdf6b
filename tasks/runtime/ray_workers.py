"""Workers on a Ray cluster: Ray places them, keeps their GPUs for them, and says when their node has gone."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from conf.errors import ReadableError
from tasks.runtime.failures import WorkerLost
from tasks.runtime.object_storage import is_local
from tasks.runtime.ray_cluster import NoCluster, connect, gpus_of_nodes, machines, result
from tasks.runtime.shard_worker import ShardCall, ShardFailure, ShardResult, ShardWorker, WorkerPlan
from tasks.runtime.worker_pool import Worker

UNTIL_GONE = 60.0
"""Seconds to wait for the end of a worker's servers, whose GPUs another then needs."""


class NotShared(ReadableError):
    """Nodes do not share what they must."""


class RayWorkers:
    """Room for as many workers as the cluster has GPUs for."""

    def __init__(self, plan: WorkerPlan):
        """Raises NoCluster, NotShared."""
        settings = plan.engine.workers
        self._plan, self._made = plan, list[_RayWorker]()
        connect(settings.ray_address)
        if plan.storage.rollout_store.startswith("sqlite") and machines() > 1:
            raise NotShared(
                f"the Ray cluster has {machines()} machines, which cannot share an SQLite file as rollout store; "
                "set storage.rollout_store to a PostgreSQL database"
            )
        gpus = gpus_of_nodes()
        self.gpus_each = plan.engine.gpus_of_worker if any(gpus) else 0
        room = sum(of_node // self.gpus_each for of_node in gpus) if self.gpus_each else len(gpus)
        self.count = settings.count or room
        if not self.count:
            raise NoCluster(
                f"no node of the Ray cluster has {self.gpus_each} GPUs, which a worker asks for; lower "
                "engine.workers.gpus_each or engine.tensor_parallel_size"
            )

    def start(self, number: int) -> Worker:
        """See `Place.start`. Waits until Ray has room for it."""
        # Ray does not start it again: the pool starts another, and its shards do not wait for that.
        actor = ray.remote(_Actor).options(
            num_gpus=self.gpus_each,
            max_restarts=0,
            max_concurrency=self._plan.engine.workers.shards_at_once + 1,  # and its end
            scheduling_strategy="SPREAD",
        )
        worker = _RayWorker(actor.remote())
        self._made.append(worker)
        worker.open(self._plan, number)
        return worker

    def close(self) -> None:
        """See `Place.close`."""
        for worker in self._made:
            worker.kill()


class _Actor:
    """On a node: its worker."""

    def open(self, plan: WorkerPlan, number: int) -> str:
        """Returns `Worker.process`. Raises what the worker raises, and NotShared."""
        if is_local(plan.storage.root) and not plan.folder.is_dir():
            raise NotShared(
                f"node {os.uname().nodename} does not see {plan.folder}; set storage.root to a folder that all nodes "
                "share, or to a URL"
            )
        self._worker = ShardWorker(plan, number)
        return self._worker.process()

    def run(self, call: ShardCall) -> ShardResult | ShardFailure:
        return self._worker.run(call)

    def close(self) -> None:
        self._worker.close()


class _RayWorker:
    def __init__(self, actor: Any):
        self._actor, self.process = actor, "that was to start"

    def open(self, plan: WorkerPlan, number: int) -> None:
        """Raises what the worker raises, and WorkerLost."""
        try:
            self.process = self._result(self._actor.open.remote(plan, number))
        except BaseException:
            self.kill()
            raise

    def run(self, call: ShardCall) -> ShardResult | ShardFailure:
        """See `Worker.run`."""
        return self._result(self._actor.run.remote(call))

    def _result(self, call: Any) -> Any:
        try:
            return result(call)
        except RayError:  # its process, its node, or what lay in the node's memory
            raise WorkerLost(f"the worker {self.process} has gone") from None

    def end(self) -> None:
        """See `Worker.end`."""
        with suppress(Exception):  # it may have gone
            ray.get(self._actor.close.remote(), timeout=UNTIL_GONE)
        self.kill()

    def kill(self) -> None:
        with suppress(Exception):  # it may have gone, and its cluster too
            ray.kill(self._actor)
