"""Data sets of the hub: local folders with the hub's layout, read by the same code."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.problems import Hub
from reasoning.problem_selection import ProblemSelection
from tasks.steps.problem_files import Fields, ProblemsRefused, Row
from tasks.steps.problem_hub import DataFile, files_of_hub, round_robin, rows_of_hub

FIELDS = Fields(frozenset({"problem", "answer"}), frozenset({"level"}))


def big_set(folder: Path, files: int = 40, groups: int = 5, size: int = 20) -> Hub:
    """Parquet files with one column far larger than the others, as in data sets of traces."""
    (folder / "data").mkdir(parents=True)
    for number in range(files):
        rows = [
            {"problem": f"{number}-{n}?", "answer": n, "trace": os.urandom(500).hex()} for n in range(groups * size)
        ]
        path = folder / "data" / f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=size, compression="gzip")
    return Hub(name=str(folder))


def read(source: Hub, selection: ProblemSelection | None = None) -> Iterator[tuple[DataFile, Row]]:
    return rows_of_hub(files_of_hub(source, "a" * 40), FIELDS, selection)


def problems(rows: Iterator[tuple[DataFile, Row]]) -> list[str]:
    return [row.content["problem"] for _, row in rows]


def test_without_a_selection_rows_come_in_stored_order(tmp_path: Path):
    source = big_set(tmp_path / "set", files=3)
    assert problems(read(source)) == [f"{number}-{n}?" for number in range(3) for n in range(100)]


def test_the_seed_decides_which_row_groups_are_read_first(tmp_path: Path):
    source = big_set(tmp_path / "set")
    first = {seed: problems(islice(read(source, ProblemSelection(seed, False)), 320)) for seed in (0, 1)}
    assert first[0] == problems(islice(read(source, ProblemSelection(0, False)), 320))
    assert len({*first[0]} & {*first[1]}) < 160  # less than half
    # 16 files in turn, 20 rows of each: one row group, which is not the first one in every file.
    numbers = Counter(problem.partition("-")[0] for problem in first[0])
    assert set(numbers.values()) == {20}
    assert len(numbers) == 16
    assert len({int(problem[:-1].partition("-")[2]) // 20 for problem in first[0]}) > 2
    everything = problems(read(source, ProblemSelection(0, False)))
    assert len(everything) == len({*everything}) == 4000


def test_a_selection_reads_neither_other_columns_nor_other_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = big_set(tmp_path / "set")
    reads: list[tuple[list[int], list[str]]] = []
    original = pq.ParquetFile.iter_batches

    def iter_batches(file: Any, size: int, groups: list[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
        reads.append((groups, columns))
        return original(file, size, groups, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    list(islice(read(source, ProblemSelection(0, False)), 320))
    assert len(reads) == 16  # of 200 row groups
    assert all(columns == ["problem", "answer"] and len(groups) == 1 for groups, columns in reads)


def test_a_benchmarks_selection_begins_at_the_other_end(tmp_path: Path):
    source = big_set(tmp_path / "set")
    training = {file.url for file, _ in islice(read(source, ProblemSelection(0, False)), 320)}
    benchmark = {file.url for file, _ in islice(read(source, ProblemSelection(0, True)), 320)}
    assert not training & benchmark


def test_subsets_and_splits_with_several_file_types(tmp_path: Path):
    (tmp_path / "README.md").write_text("""---
configs:
- config_name: algebra
  data_files:
  - split: train
    path: algebra/train.jsonl
  - split: test
    path: algebra/test.jsonl
- config_name: geometry
  data_files:
  - split: train
    path: geometry/*.csv
---
""")
    for subset in ("algebra", "geometry"):
        (tmp_path / subset).mkdir()
    (tmp_path / "algebra" / "train.jsonl").write_text(json.dumps({"problem": "a?", "answer": 1}) + "\n")
    (tmp_path / "algebra" / "test.jsonl").write_text(json.dumps({"problem": "t?", "answer": 1}) + "\n")
    (tmp_path / "geometry" / "part.csv").write_text("problem,answer\ng?,007\n")
    source = Hub(name=str(tmp_path), subsets=("algebra", "geometry"))
    found = [(file.name, file.subset, row.number, row.content["problem"]) for file, row in read(source)]
    assert found == [("algebra/0", "algebra", 0, "a?"), ("geometry/0", "geometry", 0, "g?")]
    with pytest.raises(ProblemsRefused, match=r"split 'test': its splits: train\. Check the source's name, subset"):
        files_of_hub(source.model_copy(update={"split": "test"}), "a" * 40)
    with pytest.raises(ProblemsRefused, match=r"split 'train': BuilderConfig 'none' not found"):
        files_of_hub(source.model_copy(update={"subsets": ("none",)}), "a" * 40)


def test_a_folder_that_is_no_data_set_is_a_one_line_error(tmp_path: Path):
    with pytest.raises(ProblemsRefused) as refused:
        files_of_hub(Hub(name=str(tmp_path / "none")), "a" * 40)
    assert "\n" not in str(refused.value)
    assert "Check the source's name" in str(refused.value)


def test_round_robin():
    texts = ("aaa", "", "b", "cc", "d")
    assert "".join(round_robin(map(iter, texts), 2)) == "aabacdc"  # b is opened for the empty one, cc for b, d for aaa
    assert "".join(round_robin(map(iter, texts), 1)) == "aaabccd"
    assert "".join(round_robin(map(iter, ()), 2)) == ""
