"""Rows of several artifacts in shards of problems, and put together again."""

import random
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.records import Problem, StageCount, TextPart, Trace, Verdict
from reasoning.token_ids import TokenIds
from tasks.runtime.artifacts import ArtifactRef, ArtifactStore
from tasks.runtime.fetched import FetchedFiles
from tasks.runtime.rows import RowFile, read_rows
from tasks.runtime.shards import Shards

COUNT = StageCount(rows_in=0, rows_out=0, dropped={})


def problem(name: str) -> Problem:
    return Problem(id=name, prompt=(TextPart(text="1 + 1?"),), answer="2", level=1)


def trace(name: str, sample: int) -> Trace:
    ids = TokenIds(range(sample, sample + len(name) % 5))
    return Trace(problem_id=name, sample=sample, token_ids=ids, text="a", truncated=False, verdict=Verdict.RIGHT)


def store(folder: Path) -> ArtifactStore:
    return ArtifactStore(str(folder), FetchedFiles(folder / "fetched", 1e9))


def shards_of(artifacts: ArtifactStore, refs: list[ArtifactRef], size: int) -> list[list[bytes]]:
    """The files of each shard, in the order of `refs`; empty where it has no rows of one."""
    with Shards(artifacts, refs, size) as shards:
        assert sum(shards.problems_in(number) for number in range(len(shards))) == shards.problems
        found = [shards.files(number) for number in range(len(shards))]
    for files in found:
        assert all(pq.ParquetFile(BytesIO(file.content)).metadata.num_rows == file.rows for file in files.values())
    return [
        [files[ref.fingerprint()].content if ref.fingerprint() in files else b"" for ref in refs] for files in found
    ]


@settings(max_examples=25, deadline=None)
@given(samples=st.lists(st.integers(0, 4), min_size=1, max_size=40), size=st.integers(1, 12), seed=st.integers(0, 9))
def test_each_shard_has_all_rows_of_its_problems_and_together_they_are_the_whole(
    samples: list[int], size: int, seed: int, tmp_path_factory
):
    """Problems in any order, traces grouped by problem in another, some problems without any."""
    artifacts = store(tmp_path_factory.mktemp("store"))
    names = [f"p{'x' * (number % 7)}{number}" for number in range(len(samples))]
    rows = [trace(name, sample) for name, count in zip(names, samples, strict=True) for sample in range(count)]
    shuffled = random.Random(seed).sample(names, len(names))
    problems = artifacts.publish_rows("problems", [problem(name) for name in shuffled], COUNT)
    traces = artifacts.publish_rows("traces", rows, COUNT)

    made = shards_of(artifacts, [problems, traces], size)
    with RowFile() as whole:
        for of_problems, of_traces in made:
            known = {row.id for row in read_rows(BytesIO(of_problems), Problem)} if of_problems else set()
            held = [*read_rows(BytesIO(of_traces), Trace)] if of_traces else []
            assert {row.problem_id for row in held} == known
            if of_traces:
                whole.extend_from(BytesIO(of_traces))
        again = artifacts.publish_rows("traces", whole, COUNT)
    assert again.digest == traces.digest

    with RowFile() as whole:
        for (of_problems,) in shards_of(artifacts, [problems], size):
            whole.extend_from(BytesIO(of_problems))
        assert artifacts.publish_rows("problems", whole, COUNT).digest == problems.digest


def test_a_file_does_not_show_in_how_many_parts_it_was_made(tmp_path: Path):
    """More rows than a group of the file holds, in parts of all sizes."""
    artifacts, rows = store(tmp_path), [trace(f"p{number}", number) for number in range(700)]
    whole = artifacts.publish_rows("traces", rows, COUNT)
    for size in (1, 100, 255, 256, 257, 699):
        with RowFile() as parts:
            for first in range(0, len(rows), size):
                with RowFile() as part:
                    part.extend(rows[first : first + size])
                    parts.extend_from(part.finish())
            assert len(parts) == 700
            assert artifacts.publish_rows("traces", parts, COUNT).digest == whole.digest
