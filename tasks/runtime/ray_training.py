"""Training on nodes of a Ray cluster: one placement group, and on each of its nodes PyTorch's launcher.

It knows where the launchers run and how they find each other. It must not know what they train.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util import get_node_ip_address
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from conf.workers import Workers
from models.processes import GuardedProcess, free_port
from models.training.launcher import JOB, NodeOfMany, TrainerCrashed, TrainerJob, TrainingFailed, start, train
from tasks.runtime.ray_cluster import connect, gpus_of_nodes, result

SAY_SO_AFTER = 60.0
"""Seconds between two notes that the cluster has no room yet."""
NODES_EVERY = 5.0
"""Seconds between two looks for nodes."""
UNTIL_GONE = 60.0
"""Seconds to wait for the end of the launchers."""
NODE_LOST = -1
"""Exit code of a training whose node has gone."""


class RayTrainer:
    """Trains as `models.training.launcher.train` does, on the cluster."""

    gpus = 0
    """Of the last training."""

    def __init__(self, settings: Workers, note: Callable[[str], None]):
        self._settings, self._note = settings, note

    def __call__(self, job: TrainerJob, folder: Path, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
        """Raises as `train`, and NoCluster."""
        return train(job, folder, progress, launch=self._launch)

    def _launch(self, job: TrainerJob, folder: Path) -> RayTraining:
        training = RayTraining(self._settings, self._note, job, folder)
        self.gpus = training.gpus
        return training


class RayTraining:
    """A `Trainer` on one node, or on `engine.workers.training_nodes` for jobs that can be split. Use as a context
    manager."""

    def __init__(self, settings: Workers, note: Callable[[str], None], job: TrainerJob, folder: Path):
        """Waits until the cluster has room. `note` is told of that. Raises NoCluster, TrainerCrashed where a node goes
        meanwhile, and TrainingFailed for a batch that the nodes cannot share, or a `folder` that one does not see."""
        nodes = settings.training_nodes if job.SPANS_NODES else 1
        if job.global_batch_size % nodes:
            raise TrainingFailed(
                f"global_batch_size ({job.global_batch_size}) must be a multiple of engine.workers.training_nodes "
                f"({nodes})"
            )
        connect(settings.ray_address)
        each = _gpus_of(nodes, note)
        self.gpus, self._actors = nodes * each, list[Any]()
        bundle = {"CPU": 1.0, "GPU": float(each)} if each else {"CPU": 1.0}
        self._group = placement_group([bundle] * nodes, strategy="STRICT_SPREAD")
        try:
            while not self._group.wait(SAY_SO_AFTER):
                note(f"training: waits for {nodes} nodes of the Ray cluster with {each} free GPUs each")
            self._actors = [_actor(self._group, index, each) for index in range(nodes)]
            self.processes = self._start(job.model_copy(update={"nodes": nodes}), folder)
        except BaseException as error:
            self._end()
            if isinstance(error, RayError):
                raise TrainerCrashed("a node has gone before the training began") from None
            raise
        self._ended: Any = self._actors[0]

    def _start(self, job: TrainerJob, folder: Path) -> int:
        """Returns the number of processes."""
        address, port = result(self._actors[0].meeting_point.remote())
        places = [NodeOfMany(job.nodes, rank, address, port) for rank in range(job.nodes)]
        started = [actor.start.remote(job, folder, at) for actor, at in zip(self._actors, places, strict=True)]
        return sum(result(processes) for processes in started)

    def poll(self) -> int | None:
        """The exit code of the first launcher that has failed, 0 when all are done, None before."""
        codes = []
        for actor in self._actors:
            try:
                codes.append(result(actor.poll.remote()))
            except RayError:
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
        except RayError:
            return "its node has gone"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Ends the launchers, waits until they have gone, and gives the GPUs back."""
        with suppress(Exception):  # a node may have gone
            ray.get([actor.end.remote() for actor in self._actors], timeout=UNTIL_GONE)
        for actor in self._actors:
            with suppress(Exception):
                ray.kill(actor)
        with suppress(Exception):
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

    def end(self) -> None:
        self._process.end()

    def log_tail(self) -> str:
        return self._process.log_tail()


def _gpus_of(nodes: int, note: Callable[[str], None]) -> int:
    """GPUs that each of the largest `nodes` has; waits until there are as many."""
    said = -1
    while len(gpus := gpus_of_nodes()) < nodes:
        if len(gpus) != said:
            said = len(gpus)
            note(f"training: waits for {nodes} nodes of the Ray cluster, which has {said}")
        time.sleep(NODES_EVERY)
    return gpus[nodes - 1]


def _actor(group: Any, index: int, gpus: int) -> Any:
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return ray.remote(_NodeTrainer).options(num_cpus=1, num_gpus=gpus, scheduling_strategy=strategy).remote()
