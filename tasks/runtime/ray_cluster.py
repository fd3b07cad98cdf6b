"""The Ray cluster of a run: its address, its nodes, and calls of its actors. It must not know what actors do."""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray
from ray.exceptions import RayTaskError

from conf.errors import ReadableError

_connecting = threading.Lock()


class NoCluster(ReadableError):
    """There is no Ray cluster at the address, or it has no room for what is asked."""


def connect(address: str) -> None:
    """Joins the cluster, unless that is done. Raises NoCluster."""
    with _connecting:
        if ray.is_initialized():
            return
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise NoCluster(
                f"no Ray cluster answers at {address} ({error}); start the run on one of its nodes, or correct "
                "engine.workers.ray_address"
            ) from None


def machines() -> int:
    """That the cluster has; several nodes may be on one, in tests."""
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


def gpus_of_nodes() -> list[int]:
    """GPUs of each node that is there, most first."""
    return sorted((int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]), reverse=True)


def result(call: Any) -> Any:
    """What a call of an actor returns. Raises what it raises, and RayActorError where the actor has gone."""
    try:
        return ray.get(call)
    except RayTaskError as error:
        raise error.cause from None
