"""Sources of problems: what is refused before any model is loaded, and what is set aside."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.settings import Engine, Hub, ProblemFile, Storage
from reasoning.records import BadRow, Problem
from reasoning.stories import Split
from tasks.problems import ProblemsRefused, fitting_problems, problems_from
from tasks.workplace import Workplace

pytestmark = pytest.mark.usefixtures("prefect")
GOOD: list[dict[str, Any]] = [{"id": f"p{n}", "problem": f"{n}+1?", "answer": str(n + 1)} for n in range(30)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with Workplace("test", Storage(root=str(tmp_path / "root")), Engine()) as place:
        yield place


def load(place: Workplace, path: Path, **settings: Any) -> list[Problem]:
    source = ProblemFile(path=str(path), **settings)
    return place.rows(problems_from(place, source, Split.TRAIN, 0), Problem)


def jsonl(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_file_and_the_same_rows_as_parquet_give_the_same_problems(place: Workplace, tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "rows.parquet")
    problems = load(place, jsonl(tmp_path / "rows.jsonl", [*GOOD]), count=7)
    assert [problem.id for problem in problems] == [f"p{n}" for n in range(7)]
    assert load(place, tmp_path / "rows.parquet", count=7) == problems


def test_no_more_is_read_than_different_problems_are_wanted(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tasks.problems.CHUNK", 10)
    same = [{"id": f"same{n}", "problem": "2+2?", "answer": "4"} for n in range(25)]
    rows: list[dict[str, Any] | str] = [*same, *GOOD, "never read"]
    problems = load(place, jsonl(tmp_path / "rows.jsonl", rows), count=4)
    assert [problem.id for problem in problems] == ["same0", "p0", "p1", "p2"]
    count = place.ledger[-1].artifact.count
    assert count
    assert (count.rows_in, count.dropped) == (30, {"double": 24, "beyond-count": 2})


def test_problems_that_leave_no_room_are_left_out_and_told(place: Workplace, tmp_path: Path):
    rows: list[dict[str, Any] | str] = [*GOOD, {"id": "long", "problem": "1+" * 60 + "1?", "answer": "61"}]
    source = ProblemFile(path=str(jsonl(tmp_path / "rows.jsonl", rows)))
    tiny, drawn = place.model("tiny"), problems_from(place, source, Split.TRAIN, 0)
    fitting = fitting_problems(place, "amc", drawn, [tiny], 9)  # user 2 9 + 1 ? assistant think newline
    assert place.rows(fitting, Problem)[-1].id == "p29"
    assert fitting.count
    assert fitting.count.dropped == {"prompt-too-long": 1}
    assert place.warnings == [
        "amc: 1 of 31 are left out: with more than 9 tokens they leave no room in engine.context for what is to "
        "follow them"
    ]
    with pytest.raises(ProblemsRefused, match=r"all 31 problems are longer than 9 tokens; raise engine\.context"):
        fitting_problems(place, "amc", drawn, [tiny], 9, ("1", "1+1+1=3"))


def test_bad_rows_are_set_aside_with_id_and_reason(place: Workplace, tmp_path: Path):
    rows: list[dict[str, Any] | str] = [
        *GOOD, '{"id": "broken"', {"id": "p3", "problem": "again?", "answer": "4"}, {"id": "x", "problem": "1?"},
        {"id": "y", "problem": "?", "answer": "\\frac{"},
    ]  # fmt: skip
    problems = load(place, jsonl(tmp_path / "rows.jsonl", rows), most_bad=0.2)
    assert [problem.id for problem in problems] == [row["id"] for row in GOOD]
    count = place.ledger[-1].artifact.count
    assert count
    assert count.rows_in == 34
    assert count.dropped == {"malformed-json": 1, "duplicate-id": 1, "missing-field": 1, "unreadable-answer": 1}
    (aside,) = (place.local_root / "set-aside").iterdir()
    told = [BadRow.model_validate_json(line) for line in aside.read_text().splitlines()]
    assert [(row.place.rpartition(":")[2], row.id, row.reason) for row in told] == [
        ("31", None, "malformed-json"), ("32", "p3", "duplicate-id"), ("33", "x", "missing-field"),
        ("34", "y", "unreadable-answer"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, ["none.jsonl: no such file", "problems.path"]),
        ("rows.csv", "id,problem", ["rows.csv: problems come from .jsonl or .parquet"]),
        ("empty.jsonl", "\n", ["empty.jsonl: no rows"]),
        ("rows.parquet", "no parquet", ["rows.parquet: not a Parquet file"]),
        ("rows.jsonl", '{"problem": "1?", "answer": "1"}\n{"problem"\n', ["rows.jsonl:2: not JSON", "1 of 2 rows"]),
        ("rows.jsonl", '{"question": "1?", "answer": "1"}\n', ["rows.jsonl:1: no field 'problem'", "columns.problem"]),
        ("rows.jsonl", '{"problem": "", "answer": "1"}\n', ["rows.jsonl:1: field 'problem' is empty"]),
        ("rows.jsonl", '{"problem": "1?", "answer": "\\\\sqrt{"}\n', ["rows.jsonl:1: the right answer '\\\\sqrt{'"]),
        ("rows.jsonl", '{"id":"a","problem":"1?","answer":"1"}\n' * 2, ["rows.jsonl:2: id 'a' was already seen at"]),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_used_is_refused_in_one_clear_line(
    place: Workplace, tmp_path: Path, name: str, content: str | None, words: list[str]
):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ProblemsRefused) as refused:
        load(place, tmp_path / name)
    for word in words:
        assert word in str(refused.value)


def test_a_hub_data_set_is_read_at_the_commit_that_its_branch_names(place: Workplace, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, subset: str | None, *, split: str, revision: str) -> list[dict[str, Any]]:
        asked.append((name, subset, revision))
        return [{"problem": f"{subset}+{split}?", "solution": r"It is \boxed{2}."}]

    commits = iter(["a" * 40, "a" * 40, "b" * 40])
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha=next(commits)))
    source = Hub.model_validate({
        "name": "some/set", "subsets": ["x", "y"], "columns": {"id": "", "answer": "solution", "answer_is": "boxed"},
    })  # fmt: skip
    problems = [place.rows(problems_from(place, source, Split.TRAIN, 0), Problem) for _ in range(3)]
    assert [(problem.id, problem.text, problem.answer) for problem in problems[0]] == [
        ("row-0", "x+train?", "2"), ("row-1", "y+train?", "2"),
    ]  # fmt: skip
    assert [entry.cached for entry in place.ledger] == [False, True, False]
    assert asked == [("some/set", part, commit * 40) for commit in "ab" for part in ("x", "y")]


def test_a_hub_that_is_out_of_reach_is_told(place: Workplace, monkeypatch: pytest.MonkeyPatch):
    def dataset_info(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    with pytest.raises(ProblemsRefused, match="some/set at 'main', split 'train': no network"):
        problems_from(place, Hub(name="some/set"), Split.TRAIN, 0)


def test_a_changed_file_is_read_again_and_a_moved_one_is_not(place: Workplace, tmp_path: Path):
    path = jsonl(tmp_path / "rows.jsonl", [*GOOD])
    load(place, path)
    load(place, path.rename(tmp_path / "moved.jsonl"))
    load(place, jsonl(tmp_path / "moved.jsonl", [*GOOD, {"id": "new", "problem": "?", "answer": "1"}]))
    assert [entry.cached for entry in place.ledger] == [False, True, False]
