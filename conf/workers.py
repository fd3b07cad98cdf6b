"""Settings of the workers that take shards of a step's problems."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from conf.base import Positive, Settings


class Workers(Settings):
    """Who samples: the run's own process, or workers that take shards of the problems, each with GPUs, servers and CPU
    of its own. The samples do not depend on it. Not from the papers."""

    kind: Literal["none", "processes", "ray"] = "none"
    """`none`: the run's own process. `processes`: several processes of this machine, where one is too slow for all
    GPUs. `ray`: actors of a Ray cluster; training runs there too (docs/operations.md)."""
    count: Positive | None = None
    """Number of workers. Default: as many as there are GPUs for; without GPUs one for each node of the Ray cluster, or
    two processes."""
    gpus_each: Positive | None = None
    """GPUs of each worker, for as many replicas of a model as fit. Default: `tensor_parallel_size` × `replicas`, or for
    one replica."""
    problems_per_shard: Positive = 64
    """Problems that a worker takes at a time; more where there would be more than 256 shards. A lost worker loses what
    it was sampling of its shards."""
    shards_at_once: Positive = 2
    """Shards that a worker has in hand, so that its servers stay full while the last completions of one end."""
    ray_address: str = "auto"
    """Address of the Ray cluster: `auto` on one of its nodes, or `ray://HOST:10001`."""
    training_nodes: Positive = 1
    """Nodes of the Ray cluster that SFT, DPO and SimPO train on together, each with all its GPUs. The folder of runs
    must lie on a file system that all of them see."""

    @model_validator(mode="after")
    def _validate_training(self) -> Self:
        if self.training_nodes > 1 and self.kind != "ray":
            raise ValueError(f"training_nodes ({self.training_nodes}) needs nodes of a Ray cluster; set kind to ray")
        return self
