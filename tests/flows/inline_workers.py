"""Workers in this process: the same calls, with nothing between them and the run."""

from models.processes import process_name
from tasks.runtime.shard_worker import ShardCall, ShardFailure, ShardResult, ShardWorker, WorkerPlan
from tasks.runtime.worker_pool import Worker


class InlineWorkers:
    """A place for two workers; `calls` counts the shards that they were given."""

    count, gpus_each, calls = 2, 0, 0

    def __init__(self, plan: WorkerPlan, _before_start: object):
        self._plan = plan

    def start(self, number: int) -> Worker:
        return _InlineWorker(self._plan, number)

    def close(self) -> None:
        """Nothing to do."""


class _InlineWorker:
    process = process_name()

    def __init__(self, plan: WorkerPlan, number: int):
        self._worker = ShardWorker(plan, number)

    def run(self, call: ShardCall) -> ShardResult | ShardFailure:
        InlineWorkers.calls += 1
        return self._worker.run(call)

    def end(self) -> None:
        """Nothing to do."""
