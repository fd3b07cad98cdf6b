"""The pool of workers: who takes a shard when workers are lost, cannot be started, or are ended."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import pytest

from models.inference.engine import Failure
from reasoning.records import CostBounds, SkippedRow, StageCount
from tasks.runtime.failures import WorkerLost, is_transient
from tasks.runtime.fan_out import _add_result
from tasks.runtime.rows import RowFile
from tasks.runtime.shard_worker import ShardCall, ShardFailed, ShardFailure, ShardResult, StageFailures, portable
from tasks.runtime.worker_pool import MAX_LOSSES, Worker, WorkerPool


def call(name: str) -> ShardCall:
    return ShardCall("module", "step", name, {"step": "step"}, {}, {}, {})


class Fake:
    """A worker that does what it is told for each shard, by name."""

    def __init__(self, number: int, do: Callable[[int, str], Any]):
        self.process, self.ended, self._number, self._do = f"process {number}", threading.Event(), number, do

    def run(self, call: ShardCall) -> ShardResult | ShardFailure:
        if self.ended.is_set():
            raise WorkerLost("ended")
        try:
            self._do(self._number, call.key)
        except ValueError as error:
            return ShardFailure(portable(error))
        return ShardResult(kind=f"{call.key} by {self._number}")

    def end(self) -> None:
        self.ended.set()


class Place:
    gpus_each = 2

    def __init__(self, count: int, do: Callable[[int, str], Any], start: Callable[[int], Any] = lambda number: None):
        self.count, self._do, self._start = count, do, start
        self.workers: list[Fake] = []

    def start(self, number: int) -> Worker:
        self._start(number)
        self.workers.append(worker := Fake(number, self._do))
        return worker

    def close(self) -> None:
        """Nothing to do."""


def pool(place: Place, at_once: int = 1) -> tuple[WorkerPool, list[str], list[str]]:
    """The pool, its notes, and the processes whose claims were released."""
    notes, released = list[str](), list[str]()
    made = WorkerPool(lambda: place, at_once, count(), lambda text, *_: notes.append(text), released.append)
    assert not made.is_open
    made.open()
    return made, notes, released


def no_work(_number: int, _shard: str) -> None:
    """Succeeds."""


def test_workers_start_with_the_first_shard_and_not_before():
    place = Place(3, no_work)
    made = WorkerPool(lambda: place, 2, count(5), print, print)
    assert (made.gpus, made.is_open, place.workers) == (0, False, [])
    assert made.open() == made.open() == 6
    assert made.gpus == 6
    assert made.run(call("a")).kind in ("a by 5", "a by 6", "a by 7")
    made.close()
    assert all(worker.ended.is_set() for worker in place.workers)


def test_a_shard_goes_to_another_worker_and_a_lost_one_is_replaced_once():
    """Worker 0 dies with two shards in hand: both go elsewhere, its claims are released, one new worker is started."""
    both = threading.Barrier(2)

    def do(number: int, _shard: str) -> None:
        if number == 0:
            both.wait()
            raise WorkerLost("worker 0 has gone")

    place = Place(1, do)
    made, notes, released = pool(place, at_once=2)
    with ThreadPoolExecutor(2) as threads:
        found = [result.kind for result in threads.map(made.run, [call("a"), call("b")])]
    assert found == ["a by 1", "b by 1"]
    assert (released, len(place.workers), len(notes)) == (["process 0"], 2, 1)
    assert place.workers[0].ended.is_set()
    made.close()


def test_a_shard_that_loses_every_worker_is_given_up():
    lost = Counter[str]()

    def do(_number: int, shard: str) -> None:
        lost[shard] += 1
        raise WorkerLost("out of memory")

    made, *_ = pool(Place(1, do))
    with pytest.raises(WorkerLost, match=f"lost {MAX_LOSSES} workers"):
        made.run(call("poison"))
    assert lost == {"poison": MAX_LOSSES}
    made.close()


def test_an_error_of_the_step_is_raised_and_the_worker_goes_on():
    def do(_number: int, shard: str) -> None:
        if shard == "bad":
            raise ValueError("bad rows")

    place = Place(1, do)
    made, *_ = pool(place)
    with pytest.raises(ValueError, match="bad rows"):
        made.run(call("bad"))
    assert made.run(call("good")).kind == "good by 0"
    assert len(place.workers) == 1
    made.close()


def test_the_run_goes_on_without_a_worker_that_cannot_be_started():
    def start(number: int) -> None:
        if number != 1:
            raise RuntimeError(f"no library on node {number}")

    made, notes, _ = pool(Place(3, no_work, start))
    assert made.run(call("a")).kind == "a by 1"
    made.close()
    assert all("cannot be started: no library" in note for note in notes)


def test_where_none_can_be_started_every_shard_is_told_why():
    def start(number: int) -> None:
        raise RuntimeError("no library")

    made, *_ = pool(Place(2, no_work, start))
    with ThreadPoolExecutor(3) as threads:
        attempts = [threads.submit(made.run, call(name)) for name in "abc"]
    assert [str(attempt.exception()) for attempt in attempts] == ["no library"] * 3


def test_a_worker_whose_node_goes_before_it_is_there_is_started_again():
    def start(number: int) -> None:
        if number == 0:
            raise WorkerLost("the node has gone")

    made, *_ = pool(Place(1, no_work, start))
    assert made.run(call("a")).kind == "a by 1"
    made.close()


def test_ended_workers_take_no_shard_and_shards_that_wait_are_told():
    """One shard runs, one waits for the only worker."""
    running, release = threading.Event(), threading.Event()

    def do(_number: int, _shard: str) -> None:
        running.set()
        release.wait()
        raise WorkerLost("ended")

    made, *_ = pool(Place(1, do))
    with ThreadPoolExecutor(2) as threads:
        attempts = [threads.submit(made.run, call(name)) for name in "ab"]
        running.wait()
        made.close()
        release.set()
    assert all(isinstance(attempt.exception(), WorkerLost) for attempt in attempts)


def test_what_shards_tell_adds_up():
    def told(rows: int, **more: Any) -> StageCount:
        return StageCount(rows_in=rows, rows_out=rows, dropped={"bad": rows}, generated_tokens=10 * rows, **more)

    whole, rows = ShardResult(), RowFile()
    skipped = [SkippedRow(id="p", reason="refused", detail="400")]
    failures = {"sample": StageFailures(8, Counter({Failure.REFUSED: 1}), {Failure.REFUSED: "400"})}
    bounds = CostBounds(rollouts=3)
    _add_result(whole, rows, ShardResult("traces", count=told(1, counts={"audited": 0, "left": 2}, cost_bounds=bounds)))
    _add_result(
        whole, rows, ShardResult("traces", count=told(2, counts={"audited": 0}), skipped=[*skipped], warnings=["w"])
    )
    _add_result(
        whole, rows, ShardResult("traces", count=told(4, cost_bounds=bounds), failures=failures, warnings=["w"])
    )
    _add_result(whole, rows, ShardResult("traces", count=told(0), failures=failures))
    assert whole.count == told(7, counts={"audited": 0, "left": 2}, cost_bounds=CostBounds(rollouts=6)).model_copy(
        update={"rows_out": 0}
    )
    assert (whole.skipped, whole.warnings) == (skipped, ["w"])
    assert whole.failures == {"sample": StageFailures(16, Counter({Failure.REFUSED: 2}), {Failure.REFUSED: "400"})}


def test_errors_of_a_worker_are_read_again_or_told_in_words():
    """httpx's status errors cannot be unpickled; whether they may pass is known still."""
    request = httpx.Request("POST", "http://localhost")
    for status, may_pass in ((503, True), (400, False)):
        error = httpx.HTTPStatusError(f"status {status}", request=request, response=httpx.Response(status))
        found = portable(error)
        assert isinstance(found, ShardFailed)
        assert (str(found), is_transient(found)) == (f"HTTPStatusError: status {status}", may_pass)
    known = portable(TimeoutError("slow"))
    assert isinstance(known, TimeoutError)
    assert "TimeoutError: slow" in known.__notes__[0]
