"""Where a plan finds the result of a step, as a run with Prefect does."""

import pytest
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[reportPrivateImportUsage]

from conf.engine import Engine, Storage
from conf.errors import ReadableError
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.caching import step
from tasks.runtime.context import RunContext, StepContext
from tasks.runtime.planning import Planner, find_result, read_index
from tasks.runtime.result_records import VerifiedRef
from tests.tasks.runtime.step_results import StepResults


@step()
def make_nothing(ctx: StepContext) -> ArtifactRef:
    return ctx.publish("problems", [], rows_in=0)


def test_prefects_record_is_enough_and_a_damaged_one_is_none(tmp_path):
    root = tmp_path / "root"
    results = StepResults(str(root), root)
    key, _ = results.add("count", 1, 0)
    with RunContext("test", Storage(root=str(root)), Engine(), folder=tmp_path) as run:
        ctx = StepContext(run, key, {})
        ref = find_result(ctx)
        assert ref
        record = ResultRecord(result=ref, metadata=ResultRecordMetadata(storage_key=key, serializer=VerifiedRef()))
        (root / "cache" / key).write_bytes(record.serialize())
        (root / "manifests" / f"{key}.json").unlink()
        assert find_result(ctx) == ref
        (root / results.object_name(ref)).unlink()
        assert find_result(ctx) is None


def test_no_result_counts_where_prefect_is_told_to_refresh(tmp_path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "root"
    monkeypatch.setattr("tasks.runtime.planning.is_refresh_wanted", lambda: True)
    for _ in range(2):
        planner = Planner(str(root), 0)
        with RunContext("test", Storage(root=str(root)), Engine(), folder=tmp_path, run_step=planner.run_step) as run:
            make_nothing(run)
        assert [list(one.reasons) for one in planner.steps] == [["PREFECT_TASKS_REFRESH_CACHE is set"]]


def test_an_unreadable_root_is_told(tmp_path):
    assert list(read_index(str(tmp_path / "none")).results) == []
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "a.json").write_text("{")
    with pytest.raises(ReadableError, match="not a manifest"):
        read_index(str(tmp_path))
