"""Where the workers of a run are started: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

from tasks.runtime.context import RunContext
from tasks.runtime.local_workers import LocalWorkers
from tasks.runtime.shard_worker import WorkerPlan
from tasks.runtime.worker_pool import Place, WorkerPool

_opening = threading.Lock()
"""Steps side by side share the workers."""


def workers_of(ctx: RunContext) -> WorkerPool | None:
    """The workers of a run, which start when a shard needs one; None where the run itself samples.

    What a place raises, it raises when a worker is needed.
    """
    resources = ctx.resources
    settings = resources.engine_settings.workers
    if settings.kind == "none":
        return None
    with _opening:
        if resources.workers is None:
            _ = resources.verifier  # one for all shards that are looked up
            resources.workers = WorkerPool(
                partial(_place, ctx),
                settings.shards_at_once,
                resources.worker_numbers,
                ctx.progress.note,
                resources.store.release_claims_of,
            )
    assert isinstance(resources.workers, WorkerPool)
    return resources.workers


def _place(ctx: RunContext) -> Place:
    resources = ctx.resources
    plan = WorkerPlan(
        run=ctx.directory.path.name,
        storage=ctx.storage.model_copy(update={"root": ctx.directory.root, "rollout_store": resources.rollouts_url}),
        engine=resources.engine_settings,
        prompt=resources.prompt,
        retries=resources.retries,
        make_engine=resources.make_engine,
        here=Path.cwd(),
        folder=ctx.directory.path,
    )
    if plan.engine.workers.kind == "ray":
        from tasks.runtime.ray_workers import RayWorkers  # an extra of this package

        return RayWorkers(plan)
    return LocalWorkers(plan, resources.gpu_slot.take)
