"""Loading problems: files, the hub, invalid rows, and errors before any model is loaded."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.engine import Engine, Storage
from conf.problems import Hub, ProblemFile
from reasoning.problem_rows import LETTERS
from reasoning.records import InvalidRow, Problem
from reasoning.stories import Split
from tasks.runtime.context import RunContext
from tasks.steps.problem_files import ProblemsRefused
from tasks.steps.problems import filter_by_prompt_length, load_problems, load_sources

pytestmark = pytest.mark.usefixtures("plain_steps")
GOOD: list[dict[str, Any]] = [{"id": f"p{n}", "problem": f"{n}+1?", "answer": str(n + 1)} for n in range(30)]


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[RunContext]:
    with RunContext("test", Storage(root=str(tmp_path / "root")), Engine()) as ctx:
        yield ctx


def load(ctx: RunContext, path: Path, **settings: Any) -> list[Problem]:
    source = ProblemFile(path=str(path), **settings)
    return ctx.artifacts.rows(load_problems(ctx, source, Split.TRAIN, 0), Problem)


def jsonl(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_file_and_the_same_rows_as_parquet_give_the_same_problems(ctx: RunContext, tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "rows.parquet")
    problems = load(ctx, jsonl(tmp_path / "rows.jsonl", [*GOOD]), count=7)
    assert len({problem.id for problem in problems}) == 7
    assert load(ctx, tmp_path / "rows.parquet", count=7) == problems
    assert load(ctx, tmp_path / "rows.jsonl") == load(ctx, tmp_path / "rows.parquet")


def test_a_selection_depends_on_the_seed_and_nests(ctx: RunContext, tmp_path: Path):
    path = jsonl(tmp_path / "rows.jsonl", [*GOOD])
    small, large, other = (
        ctx.artifacts.rows(load_problems(ctx, ProblemFile(path=str(path), count=count), Split.TRAIN, seed), Problem)
        for count, seed in ((7, 0), (8, 0), (7, 1))
    )
    assert large[:7] == small
    assert {problem.id for problem in small} != {problem.id for problem in other}
    load(ctx, path, count=7)
    assert [entry.cached for entry in ctx.ledger] == [False, False, False, True]
    count = ctx.ledger[0].artifact.count
    assert count
    assert (count.rows_in, count.rows_out, count.dropped) == (30, 7, {"beyond-count": 23})


def test_all_problems_of_a_file_are_the_same_for_every_seed_and_split(ctx: RunContext, tmp_path: Path):
    source = ProblemFile(path=str(jsonl(tmp_path / "rows.jsonl", [*GOOD])))
    for split, seed in ((Split.TRAIN, 0), (Split.BENCHMARK, 1)):
        load_problems(ctx, source, split, seed)
    assert [entry.cached for entry in ctx.ledger] == [False, True]


def test_training_and_benchmark_from_one_file_share_nothing(ctx: RunContext, tmp_path: Path):
    source = ProblemFile(path=str(jsonl(tmp_path / "rows.jsonl", [*GOOD])), count=15)
    sources = load_sources(ctx, source, {"held out": source}, 0)
    ids = [
        {problem.id for problem in ctx.artifacts.rows(ref, Problem)}
        for ref in (sources.train, sources.eval_sets["held out"])
    ]
    assert len(ids[0] | ids[1]) == 30


def test_several_files_by_a_pattern(ctx: RunContext, tmp_path: Path):
    nameless = [{"problem": row["problem"], "answer": row["answer"]} for row in GOOD]
    jsonl(tmp_path / "a.jsonl", [*nameless[:20]])
    jsonl(tmp_path / "b.jsonl", [*nameless[20:]])
    problems = load(ctx, tmp_path / "*.jsonl")
    assert [problem.id for problem in problems] == [f"row-{n}" for n in range(30)]
    jsonl(tmp_path / "b.jsonl", [*nameless[20:25]])
    assert len(load(ctx, tmp_path / "*.jsonl")) == 25


def test_problems_with_long_prompts_are_dropped_with_a_warning(ctx: RunContext, tmp_path: Path):
    rows: list[dict[str, Any] | str] = [*GOOD, {"id": "long", "problem": "1+" * 60 + "1?", "answer": "61"}]
    source = ProblemFile(path=str(jsonl(tmp_path / "rows.jsonl", rows)))
    tiny, loaded = ctx.resources.model("tiny"), load_problems(ctx, source, Split.TRAIN, 0)
    fitting = filter_by_prompt_length(ctx, "amc", loaded, [tiny], 9)  # 9 tokens: user 2 9 + 1 ? assistant think newline
    assert ctx.artifacts.rows(fitting, Problem)[-1].id == "p29"
    assert fitting.count
    assert fitting.count.dropped == {"prompt-too-long": 1}
    assert ctx.ledger.warnings == [
        "amc: 1 of 31 are dropped: their prompts are longer than 9 tokens, which leaves no room for a completion in "
        "engine.max_model_len"
    ]
    with pytest.raises(ProblemsRefused, match=r"all 31 problems are longer than 9 tokens; raise engine\.max_model_len"):
        filter_by_prompt_length(ctx, "amc", loaded, [tiny], 9, ("1", "1+1+1=3"))


def test_invalid_rows_are_listed_with_id_and_reason(ctx: RunContext, tmp_path: Path):
    rows: list[dict[str, Any] | str] = [
        *GOOD,
        '{"id": "broken"',
        {"id": "p3", "problem": "again?", "answer": "4"},
        {"id": "x", "problem": "1?"},
        {"id": "y", "problem": "?", "answer": "\\frac{"},
    ]
    problems = load(ctx, jsonl(tmp_path / "rows.jsonl", rows), max_invalid_fraction=0.2)
    assert [problem.id for problem in problems] == [row["id"] for row in GOOD]
    count = ctx.ledger[-1].artifact.count
    assert count
    assert count.rows_in == 34
    assert count.dropped == {"malformed-json": 1, "duplicate-id": 1, "missing-field": 1, "unreadable-answer": 1}
    (file,) = (ctx.directory.local_root / "set-aside").iterdir()
    invalid = [InvalidRow.model_validate_json(line) for line in file.read_text().splitlines()]
    assert [(row.location.rpartition(":")[2], row.id, row.reason) for row in invalid] == [
        ("31", None, "malformed-json"),
        ("32", "p3", "duplicate-id"),
        ("33", "x", "missing-field"),
        ("34", "y", "unreadable-answer"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, ["none.jsonl: no such file", "problems.path"]),
        ("rows.xlsx", "id,problem", ["rows.xlsx: problems come from .jsonl or .parquet"]),
        ("empty.jsonl", "\n", ["empty.jsonl: no rows"]),
        ("rows.parquet", "no parquet", ["rows.parquet: not a Parquet file"]),
        ("rows.jsonl", '{"problem": "1?", "answer": "1"}\n{"problem"\n', ["rows.jsonl:2: not JSON", "1 of 2 rows"]),
        ("rows.jsonl", '{"question": "1?", "answer": "1"}\n', ["rows.jsonl:1: no field 'problem'", "columns.problem"]),
        ("rows.jsonl", '{"problem": "", "answer": "1"}\n', ["rows.jsonl:1: field 'problem' is empty"]),
        ("rows.jsonl", '{"problem": "1?", "answer": "\\\\sqrt{"}\n', ["rows.jsonl:1: the right answer '\\\\sqrt{'"]),
        ("rows.jsonl", '{"id":"a","problem":"1?","answer":"1"}\n' * 2, ["rows.jsonl:2: id 'a' was already seen at"]),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_in_one_clear_line(
    ctx: RunContext, tmp_path: Path, name: str, content: str | None, words: list[str]
):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ProblemsRefused) as refused:
        load(ctx, tmp_path / name)
    for word in words:
        assert word in str(refused.value)


def test_a_hub_data_set_is_read_at_the_commit_that_its_branch_names(
    ctx: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for subset in "xy":
        (tmp_path / subset).mkdir()
        row = {"problem": f"{subset}+1?", "solution": r"It is \boxed{2}."}
        jsonl(tmp_path / subset / "train.jsonl", [row])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in "xy")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    commits = iter(["a" * 40, "a" * 40, "b" * 40])
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha=next(commits)))
    columns = {"id": "", "answer": "solution", "answer_is": "boxed"}
    source = Hub.model_validate({"name": str(tmp_path), "subsets": ["x", "y"], "columns": columns})
    problems = [ctx.artifacts.rows(load_problems(ctx, source, Split.TRAIN, 0), Problem) for _ in range(3)]
    assert [(problem.id, problem.text, problem.answer) for problem in problems[0]] == [
        ("x/0:0", "x+1?", "2"),
        ("y/0:0", "y+1?", "2"),
    ]
    assert [entry.cached for entry in ctx.ledger] == [False, True, False]
    one = source.model_copy(update={"count": 1, "revision": "c" * 40})
    seeds = [ctx.artifacts.rows(load_problems(ctx, one, Split.TRAIN, seed), Problem)[0].id for seed in range(6)]
    assert set(seeds) == {"x/0:0", "y/0:0"}


def test_an_unreachable_hub_is_a_one_line_error(ctx: RunContext, monkeypatch: pytest.MonkeyPatch):
    def dataset_info(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    with pytest.raises(ProblemsRefused, match="some/set at 'main', split 'train': no network"):
        load_problems(ctx, Hub(name="some/set"), Split.TRAIN, 0)


def test_a_changed_file_is_read_again_and_a_moved_one_is_not(ctx: RunContext, tmp_path: Path):
    path = jsonl(tmp_path / "rows.jsonl", [*GOOD])
    load(ctx, path)
    load(ctx, path.rename(tmp_path / "moved.jsonl"))
    load(ctx, jsonl(tmp_path / "moved.jsonl", [*GOOD, {"id": "new", "problem": "?", "answer": "1"}]))
    assert [entry.cached for entry in ctx.ledger] == [False, True, False]


def test_a_draw_of_each_domain_of_mmlu_pro(ctx: RunContext, real_data: Path):
    columns: Any = {"choices": "choices"}
    source = ProblemFile(path=str(real_data / "mmlu_pro_sample.jsonl"), columns=columns, per_subject=3)
    drawn = {seed: ctx.artifacts.rows(load_problems(ctx, source, Split.BENCHMARK, seed), Problem) for seed in (0, 1)}
    for problems in drawn.values():
        assert Counter(problem.subject for problem in problems) == dict.fromkeys(
            {problem.subject for problem in problems}, 3
        )
        assert len(problems) == 14 * 3
        assert all(problem.choices and problem.answer in LETTERS for problem in problems)
    assert {problem.id for problem in drawn[0]} != {problem.id for problem in drawn[1]}
