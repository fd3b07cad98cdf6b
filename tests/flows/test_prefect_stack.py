"""DTO on the real Prefect with a scripted model: caching across runs, verified results."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from sqlalchemy.exc import OperationalError

from conf.engine import Engine, Storage
from conf.errors import ReadableError
from conf.load import SettingsError
from conf.retries import Retries, Retry
from flows.cli import main
from models.inference.scripted_engine import ScriptedEngine
from models.inference.vllm_server import ServerFailed
from reasoning.records import Problem, TextPart
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.run_directory import keys_of_run
from tests.flows.test_dto_stack import EVERY_STEP, Run
from tests.flows.world import speak

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture(scope="module")
def first(root: Path) -> Run:
    return Run(root)


def test_an_unchanged_run_starts_no_engine(first: Run, root: Path):
    again = Run(root)
    assert first.redone == EVERY_STEP
    assert again.redone == []
    assert again.engines == []
    assert again.report["models"] == first.report["models"]


@pytest.mark.parametrize("harm", ["change", "delete"])
def test_a_damaged_artifact_is_made_again(first: Run, root: Path, harm: str):
    scans = next(line for line in first.report["ledger"] if line["stage"] == "probe-prefixes")
    files, path = fsspec.url_to_fs(scans["artifact"])
    if harm == "change":
        files.pipe_file(path, b"not what was written")
    else:
        files.rm(path)
    again = Run(root)
    assert again.redone == ["probe-prefixes"]
    assert again.completions == 0
    assert again.report["models"] == first.report["models"]


@step()
def write_problem(ctx: StepContext, number: int) -> ArtifactRef:
    problem = Problem(id=str(number), prompt=(TextPart(text="1 + 1?"),), answer="2")
    return ctx.publish("problems", [problem], rows_in=1)


def test_a_removed_result_is_made_again_and_a_pinned_one_is_not(tmp_path: Path):
    def run() -> tuple[list[bool], list[str]]:
        with RunContext("test", Storage(root=str(tmp_path)), Engine()) as ctx:
            for number in range(2):
                write_problem(ctx, number=number)
        return [entry.cached for entry in ctx.ledger], keys_of_run(ctx.directory.path)

    made, keys = run()
    assert made == [False, False]
    assert {path.name for path in (tmp_path / "cache").iterdir()} == set(keys)  # where `gc` looks for records
    main(["cache", "--root", str(tmp_path), "pin", keys[0]])
    main(["cache", "--root", str(tmp_path), "gc", "--days", "0"])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [keys[0]]
    assert run() == ([True, False], keys)
    assert run() == ([True, True], keys)


@step("sampling")
def fail_first(ctx: StepContext, failures: int) -> ArtifactRef:
    _ = ctx.resources.engine
    ATTEMPTS.append(ctx.key)
    if len(ATTEMPTS) <= failures:
        raise FAILURE[0]
    return ctx.publish("problems", [], rows_in=0)


@step("training")
def hang_first(ctx: StepContext) -> ArtifactRef:
    _ = ctx.resources.engine
    ATTEMPTS.append(ctx.key)
    if len(ATTEMPTS) == 1:
        threading.Event().wait(60)
    return ctx.publish("problems", [], rows_in=0)


ATTEMPTS: list[str] = []
FAILURE: list[Exception] = []


class Closing(ScriptedEngine):
    """Counts how often a server is ended."""

    closed = 0

    def close(self) -> None:
        Closing.closed += 1


def retried(tmp_path: Path, run: Callable[[RunContext], Any], **retry: Any) -> None:
    ATTEMPTS.clear()
    Closing.closed = 0
    retries = Retries(sampling=Retry(delay=0.01), training=Retry(delay=0.01, **retry))
    with RunContext(
        "test", Storage(root=str(tmp_path)), Engine(), retries=retries, make_engine=lambda *_: Closing(speak)
    ) as ctx:
        run(ctx)


@pytest.mark.parametrize(
    "failure",
    [
        ServerFailed("gone"),
        OSError(errno.EIO, "storage is away"),
        OperationalError("SELECT 1", {}, ConnectionError("database is away")),
    ],
    ids=["server", "storage", "database"],
)
def test_a_step_is_retried_with_new_servers_when_something_was_away(tmp_path: Path, failure: Exception):
    FAILURE[:] = [failure]
    retried(tmp_path, lambda ctx: fail_first(ctx, failures=2))
    assert len(ATTEMPTS) == 3
    assert Closing.closed == 3  # after each failure, and at the end


def test_retries_end(tmp_path: Path):
    FAILURE[:] = [ServerFailed("gone")]
    with pytest.raises(ServerFailed):
        retried(tmp_path, lambda ctx: fail_first(ctx, failures=9))
    assert len(ATTEMPTS) == 4


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (SettingsError("unknown setting"), "unknown setting"),
        (OSError(errno.ENOSPC, "No space left on device"), "fail-first: no space left .* start the run again"),
    ],
)
def test_what_stays_is_tried_once(tmp_path: Path, failure: Exception, told: str):
    FAILURE[:] = [failure]
    with pytest.raises(ReadableError, match=told):
        retried(tmp_path, lambda ctx: fail_first(ctx, failures=9))
    assert len(ATTEMPTS) == 1


def test_a_step_that_hangs_is_ended_and_retried(tmp_path: Path):
    retried(tmp_path, hang_first, timeout=1)
    assert len(ATTEMPTS) == 2
    assert Closing.closed == 2  # by the time-out, and at the end
