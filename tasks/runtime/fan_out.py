"""A step on shards of its problems: who makes each, and how their results become one artifact.

It knows shards, the pool of workers and the ledger. It must not know where workers are, nor what a step computes.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from io import BytesIO
from typing import Any

from models.inference.engine import FailedRequest
from models.inference.stored_only import EngineNeeded, StoredOnly
from reasoning.records import CostBounds, Usage
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import StepContext
from tasks.runtime.rows import RowFile
from tasks.runtime.shard_worker import ShardCall, ShardResult, StageFailures, run_shard
from tasks.runtime.shards import Shards
from tasks.runtime.step_inputs import MODEL_KINDS, artifacts_in
from tasks.runtime.worker_pool import WorkerPool

STORED = {"engine": StoredOnly(), "partner_engine": StoredOnly(), "remote_servers": StoredOnly()}
AHEAD = 8
"""Shards for each that is in hand, between the oldest that is not done and the newest: their results wait in memory."""


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
        with closing(_all(of_worker, range(done, len(shards)), at_once, ctx.resources.close_engines)) as results:
            for result in results:
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
    run: Callable[[int], ShardResult], shards: Iterable[int], at_once: int, end_workers: Callable[[], None]
) -> Generator[ShardResult]:
    """The results of shards, in order. Whatever ends this early ends the workers: nobody waits for their shards."""
    threads, waiting = ThreadPoolExecutor(at_once), deque[Future[ShardResult]]()
    try:
        for number in shards:
            waiting.append(threads.submit(copy_context().run, run, number))
            if len(waiting) == AHEAD * at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        end_workers()
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
    """Zeros are kept, which Counter's own sum drops: reports name them."""
    total = Counter(one)
    total.update(other)
    return dict(total)


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
    if failures.must_serve:
        failed = {str(kind): FailedRequest(0, reason, kind) for kind, reason in failures.first.items()}
        ctx.resources.validate_some_served(stage, failed, failures.served)
