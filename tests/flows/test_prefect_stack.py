"""DTO on the real Prefect with a scripted model: caching across runs, verified results."""

from pathlib import Path

import fsspec
import pytest

from conf.engine import Engine, Storage
from flows.cli import main
from reasoning.records import Problem, TextPart
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.run_directory import keys_of_run
from tests.flows.test_dto_stack import EVERY_STEP, Run

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
