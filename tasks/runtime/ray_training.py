"""Training on nodes of a Ray cluster: one placement group, and on each of its nodes PyTorch's launcher.

It knows where the launchers run and how they find each other. It must not know what they train.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayActorError
from ray.util import get_node_ip_address
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from conf.workers import Workers
from models.processes import GuardedProcess, free_port
from models.training.launcher import JOB, NodeOfMany, TrainerJob, TrainingFailed, start
from tasks.runtime.ray_cluster import NoCluster, connect, gpus_of_nodes, result

SAY_SO_AFTER = 60.0
"""Seconds between two notes that the cluster has no room yet."""
NODE_LOST = -1
"""Exit code of a training whose node has gone."""


class RayTraining:
    """A `Trainer` on one node, or on `engine.workers.training_nodes` for jobs that can be split. Use as a context
    manager."""

    def __init__(self, settings: Workers, note: Callable[[str], None], job: TrainerJob, folder: Path):
        """Waits until the cluster has room. `note` is told of that. Raises NoCluster, and TrainingFailed where a node
        does not see `folder`."""
        connect(settings.ray_address)
        nodes = settings.training_nodes if job.SPANS_NODES else 1
        gpus = gpus_of_nodes()
        if len(gpus) < nodes:
            raise NoCluster(f"engine.workers.training_nodes is {nodes}, and the Ray cluster has {len(gpus)} nodes")
        each = gpus[nodes - 1]
        self._group = _room_for(nodes, each, note)
        try:
            self._actors = [_actor(self._group, index, each) for index in range(nodes)]
            address, port = result(self._actors[0].meeting_point.remote())
            job = job.model_copy(update={"nodes": nodes})
            places = [NodeOfMany(nodes, rank, address, port) for rank in range(nodes)]
            started = [actor.start.remote(job, folder, at) for actor, at in zip(self._actors, places, strict=True)]
            self.processes = sum(result(processes) for processes in started)
        except BaseException:
            remove_placement_group(self._group)
            raise
        self._ended: Any = self._actors[0]

    def poll(self) -> int | None:
        """The exit code of the first launcher that has failed, 0 when all are done, None before."""
        codes = []
        for actor in self._actors:
            try:
                codes.append(result(actor.poll.remote()))
            except RayActorError:
                codes.append(NODE_LOST)
        failed = [(code, actor) for code, actor in zip(codes, self._actors, strict=True) if code]
        if failed:
            code, self._ended = failed[0]
            return code
        return None if None in codes else 0

    def log_tail(self) -> str:
        """Of the launcher that has failed, or the first."""
        try:
            return result(self._ended.log_tail.remote())
        except RayActorError:
            return "its node has gone"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            with suppress(Exception):  # it may have gone
                ray.kill(actor)
        remove_placement_group(self._group)


class _NodeTrainer:
    """On a node: its launcher, which ends with this process."""

    def meeting_point(self) -> tuple[str, int]:
        """Address and port at which the launchers of all nodes meet."""
        return get_node_ip_address(), free_port()

    def start(self, job: TrainerJob, folder: Path, node: NodeOfMany) -> int:
        """Returns the number of its processes. Raises TrainingFailed."""
        if not (folder / JOB).exists():
            raise TrainingFailed(
                f"node {get_node_ip_address()} does not see {folder}, where training writes; with Ray the folder of "
                "runs must lie on a file system that all nodes share"
            )
        self._process: GuardedProcess = start(job, folder, node)
        return job.processes

    def poll(self) -> int | None:
        return self._process.poll()

    def log_tail(self) -> str:
        return self._process.log_tail()


def _room_for(nodes: int, gpus: int, note: Callable[[str], None]) -> Any:
    bundle = {"CPU": 1.0, "GPU": float(gpus)} if gpus else {"CPU": 1.0}
    group = placement_group([bundle] * nodes, strategy="STRICT_SPREAD")
    while not group.wait(SAY_SO_AFTER):
        note(f"training: waits for {nodes} nodes of the Ray cluster with {gpus} free GPUs each")
    return group


def _actor(group: Any, index: int, gpus: int) -> Any:
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return ray.remote(_NodeTrainer).options(num_cpus=1, num_gpus=gpus, scheduling_strategy=strategy).remote()
