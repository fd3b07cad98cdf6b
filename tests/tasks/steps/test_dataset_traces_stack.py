"""Traces from a data set: matched, checked, tokenized, counted; files and the hub give the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.cot_distillation import DatasetTeacher, TraceSelection
from conf.engine import Engine, Storage
from conf.problems import Hub, ProblemFile
from reasoning.records import Trace, Verdict
from reasoning.stories import Split
from tasks.runtime.artifacts import ArtifactRef
from tasks.runtime.context import RunContext
from tasks.steps.dataset_traces import read_traces
from tasks.steps.distillation import select_traces
from tasks.steps.problem_files import ProblemsRefused
from tasks.steps.problem_hub import pinned
from tasks.steps.problems import load_problems

pytestmark = pytest.mark.usefixtures("plain_steps")


def row(problem: str, answer: str, said: str, thinking: str = "Ann has 2.") -> dict[str, Any]:
    trace = f"<think>\n{thinking}\n</think>\n\nThe answer is \\boxed{{{said}}}."
    return {"problem": problem, "expected_answer": answer, "generated_solution": trace}


ROWS = [
    row("1 + 1?", "2", "2"),
    row("1 + 2?", "3", "3", "Wait, 3."),
    row("1 + 1?", "2", "5"),  # a second trace of the first problem, wrong
    row("1 + 3?", "4", "4", "Ann " * 600),  # longer than the limit
    *(row(f"10 + {n}?", f"{10 + n}", f"{10 + n}") for n in range(20)),
    {"problem": "1 + 4?", "expected_answer": "5", "generated_solution": "So 5."},
    row("1 + 5?", "6", "6", "Ann has <think> 2."),
]


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[RunContext]:
    with RunContext("test", Storage(root=str(tmp_path / "root")), Engine()) as ctx:
        yield ctx


def source(path: Path, rows: list[dict[str, Any]], **settings: Any) -> ProblemFile:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns: Any = {"id": "", "answer": "expected_answer"}
    return ProblemFile(path=str(path), columns=columns, **settings)


def read(ctx: RunContext, source: ProblemFile | Hub, **teacher: Any) -> ArtifactRef:
    problems, tiny = load_problems(ctx, source, Split.TRAIN, 0), ctx.resources.model("tiny")
    how = DatasetTeacher(max_tokens=600, **{"max_invalid_fraction": 0.1, **teacher})
    return read_traces(ctx, model=tiny, problems=problems, source=source, teacher=how, seed=0)


def test_traces_are_matched_checked_tokenized_and_counted(ctx: RunContext, tmp_path: Path):
    ref = read(ctx, source(tmp_path / "rows.jsonl", ROWS))
    traces = ctx.artifacts.rows(ref, Trace)
    tiny = ctx.resources.checkpoint(ctx.resources.model("tiny"))
    first, other, second = traces[:3]
    assert first.text == "Ann has 2.\n</think>\n\nThe answer is \\boxed{2}."
    assert list(first.token_ids) == [*tiny.encode(first.text), tiny.end_id]
    assert tiny.decode(first.token_ids) == first.text
    assert (first.id, second.id, other.id) == ("row-0/0", "row-0/1", "row-1/0")
    assert [t.verdict for t in (first, second, other)] == [Verdict.RIGHT, Verdict.WRONG, Verdict.RIGHT]
    count = ref.count
    assert count
    assert (count.rows_in, count.rows_out) == (26, 23)
    assert count.dropped == {"too-long": 1, "thinking-not-closed": 1, "control-token": 1}
    assert count.counts == {"problems": 26, "problems without a trace": 4}
    skipped = [
        json.loads(line) for line in next(tmp_path.glob("root/set-aside/read-file-traces-*")).read_text().splitlines()
    ]
    assert [one["location"].rpartition(":")[2] for one in skipped] == ["25", "26"]


def test_parquet_gives_the_same_traces(ctx: RunContext, tmp_path: Path):
    lines, parquet = (read(ctx, source(tmp_path / name, ROWS)) for name in ("rows.jsonl", "rows.parquet"))
    assert lines.digest == parquet.digest


def test_too_many_unusable_traces_end_the_run_and_name_the_remedy(ctx: RunContext, tmp_path: Path):
    with pytest.raises(ProblemsRefused, match=r"rows.jsonl:25: the trace does not contain '</think>'; set .*2 of 26"):
        read(ctx, source(tmp_path / "rows.jsonl", ROWS), max_invalid_fraction=0.05)


def test_a_column_that_is_not_there(ctx: RunContext, tmp_path: Path):
    with pytest.raises(ProblemsRefused, match="field 'solution' holds no trace; the row's fields: 'problem'"):
        read(ctx, source(tmp_path / "rows.jsonl", ROWS), column="solution")
    with pytest.raises(ProblemsRefused, match="no field 'solution'"):
        read(ctx, source(tmp_path / "rows.parquet", ROWS), column="solution")


def test_a_selection_reads_the_traces_of_its_problems_alone(ctx: RunContext, tmp_path: Path):
    chosen = source(tmp_path / "rows.jsonl", ROWS, count=5)
    names = {trace.problem_id for trace in ctx.artifacts.rows(read(ctx, chosen, max_invalid_fraction=1), Trace)}
    assert len(names) <= 5


def test_a_data_set_on_the_hub_gives_the_traces_of_one_commit(
    ctx: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commits = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr(
        "huggingface_hub.HfApi",
        lambda: SimpleNamespace(dataset_info=lambda *_, **__: SimpleNamespace(sha=next(commits))),
    )
    file = source(tmp_path / "rows.parquet", ROWS)
    built: list[str] = []

    def builder(_name: str, _subset: str | None, revision: str) -> Any:
        built.append(revision)
        return SimpleNamespace(config=SimpleNamespace(data_files={"cot": [file.path]}))

    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    hub = pinned(Hub(name="nvidia/OpenMathReasoning", split="cot", count=6))
    traces = ctx.artifacts.rows(read(ctx, hub, max_invalid_fraction=1), Trace)
    assert built == ["a" * 40] * 2
    assert {trace.verdict for trace in traces} <= {Verdict.RIGHT, Verdict.WRONG}
    assert 3 <= len({trace.problem_id for trace in traces}) <= 6


def test_selected_traces_of_a_problem_come_together(ctx: RunContext, tmp_path: Path):
    rows = [row("1 + 1?", "2", "2"), row("1 + 2?", "3", "3"), row("1 + 1?", "2", "2", "Two."), row("1 + 2?", "3", "4")]
    traces = read(ctx, source(tmp_path / "rows.jsonl", rows))
    selected = select_traces(ctx, traces=traces, selection=TraceSelection(max_traces=2))
    assert [trace.id for trace in ctx.artifacts.rows(selected, Trace)] == ["row-0/0", "row-0/1", "row-1/0"]


def test_traces_that_are_all_too_long(ctx: RunContext, tmp_path: Path):
    with pytest.raises(ProblemsRefused, match=r"all 1 traces are longer than teacher\.max_tokens \(600\)"):
        read(ctx, source(tmp_path / "rows.jsonl", [row("1 + 1?", "2", "2", "Ann " * 600)]))
