"""Leases between runs: one at a time, and none is stuck behind a holder that is dead or frozen."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conf.engine import Engine, Storage
from reasoning.records import Problem, TextPart
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import Step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.leases import Lease, LeaseLost, Leases
from tests.flows.world import silent_progress

KILLED = """
import os, sys
from tasks.runtime.leases import Leases
with Leases(sys.argv[1]).hold("a step", print):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    return request.getfixturevalue("postgres")()


@pytest.fixture
def leases(url: str) -> Iterator[Callable[..., Leases]]:
    """Makes the leases of one more run."""
    made: list[Leases] = []

    def make(**settings: Any) -> Leases:
        made.append(Leases(url, poll=0.01, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_runs_hold_a_key_one_after_the_other(leases: Callable[..., Leases]):
    inside: list[int] = []
    most: list[int] = []
    waited: list[str] = []

    def run(number: int) -> None:
        with leases().hold("a step", waited.append):
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(run, range(6)))
    assert most == [1] * 6


def test_other_keys_are_not_in_the_way(leases: Callable[..., Leases]):
    with leases().hold("a step", pytest.fail), leases().hold("another", pytest.fail):
        pass


def test_who_waits_is_told_for_whom(leases: Callable[..., Leases]):
    free = threading.Event()
    holders: list[str] = []
    mine: list[str] = []

    def first() -> None:
        with leases().hold("a step", pytest.fail) as lease:
            mine.append(lease.owner)
            held.set()
            free.wait(60)

    def told(holder: str) -> None:
        holders.append(holder)
        free.set()

    held = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(60)
    with leases().hold("a step", told):
        pass
    thread.join()
    assert holders == mine


def test_a_lease_counts_from_the_end_of_the_wait(leases: Callable[..., Leases]):
    other = ExitStack()
    other.enter_context(leases().hold("a step", pytest.fail))

    def outwait(_: str) -> None:
        threading.Event().wait(0.6)  # longer than the lease
        other.close()

    with leases(seconds=0.5).hold("a step", outwait) as lease:
        lease.check()


def test_a_killed_holder_is_not_waited_for(url: str, leases: Callable[..., Leases]):
    killed = subprocess.run([sys.executable, "-c", KILLED, url], capture_output=True)
    assert killed.returncode == -9
    with leases().hold("a step", pytest.fail):
        pass


class Frozen(Leases):
    """Of a process that does not get to run: nothing is renewed until `thaw`."""

    def __init__(self, url: str):
        super().__init__(url, seconds=0.05, poll=0.01)
        self.thaw, self.has_renewed = threading.Event(), threading.Event()

    def _renew(self, key: str, lease: Lease, ended: threading.Event) -> None:
        self.thaw.wait(60)
        super()._renew(key, lease, ended)
        self.has_renewed.set()


def test_a_frozen_holder_loses_its_lease_and_is_told(url: str, leases: Callable[..., Leases]):
    frozen, other = Frozen(url), leases()
    with frozen.hold("a step", pytest.fail) as lease, other.hold("a step", lambda _: None) as taken:
        with pytest.raises(LeaseLost, match="another run may have taken over"):
            lease.check()
        frozen.thaw.set()
        assert frozen.has_renewed.wait(60)
        with pytest.raises(LeaseLost):
            lease.check()
        taken.check()
    frozen.close()


def count_calls(ctx: StepContext) -> ArtifactRef:
    CALLS.append(ctx.key)
    problem = Problem(id="1", prompt=(TextPart(text="1 + 1?"),), answer="2")
    return ctx.publish("problems", [problem], rows_in=1)


CALLS: list[str] = []


def quiet_run(root: Path) -> RunContext:
    return RunContext("test", Storage(root=str(root)), Engine(), progress=silent_progress())


def test_two_runs_that_race_for_a_step_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = Step(count_calls, "data")
    step.version = "1"
    # Both have looked into the cache before either is done.
    monkeypatch.setattr(
        Step, "run_task", lambda self, ctx, inputs: (self.attempt(ctx, **inputs), ctx.was_made_elsewhere)
    )

    def run(_: int) -> tuple[ArtifactRef, list[bool]]:
        with quiet_run(tmp_path) as ctx:
            return step(ctx), [entry.cached for entry in ctx.ledger]

    with ThreadPoolExecutor(2) as threads:
        (one, first), (two, second) = threads.map(run, range(2))
    assert len(CALLS) == 1
    assert one.digest == two.digest
    assert sorted([*first, *second]) == [False, True]


def test_work_that_a_holder_left_goes_to_the_next(tmp_path: Path):
    with quiet_run(tmp_path) as ctx:
        left = ctx.directory.scratch("train-sft-1", "host/1/aa")
        (left / "checkpoint").write_text("half done")
        taken = ctx.directory.scratch("train-sft-1", "host/2/bb")
        assert (taken / "checkpoint").read_text() == "half done"
        assert not left.exists()
        assert ctx.directory.scratch("train-sft-1", "host/2/bb") == taken
