"""DTO on the real Prefect with a scripted model: caching across runs, verified results."""

from pathlib import Path

import fsspec
import pytest

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
