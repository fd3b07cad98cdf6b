"""Skipped rows are counted in the ledger and listed in a file; too many of them end the run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.engine import Engine, Storage
from models.checkpoints.token_texts import Undecodable
from models.inference.engine import FailedRequest, Failure
from models.inference.rollout_executor import TooManyFailed
from models.inference.scripted_engine import ScriptedEngine
from reasoning.records import SkippedRow, Trace, Verdict
from reasoning.token_ids import TokenIds
from tasks.runtime.context import RunContext, StepContext
from tasks.steps.prefix_sampling import skipped_rows
from tasks.steps.trace_segments import TokenAligner
from tests.flows.world import speak


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[StepContext]:
    settings = Engine(max_failed_fraction=0.25)
    with RunContext("test", Storage(root=str(tmp_path)), settings, make_engine=lambda *_: ScriptedEngine(speak)) as run:
        yield StepContext(run, "a-step-of-tests", {})


class FakeCheckpoint:
    """Raises Undecodable for traces that begin with token 13."""

    def token_texts(self, token_ids: TokenIds) -> list[str]:
        if token_ids[0] == 13:
            raise Undecodable(f"{len(token_ids)} tokens")
        return ["ab"] * len(token_ids)


def trace(number: int) -> Trace:
    return Trace(
        problem_id=f"p{number}",
        sample=0,
        token_ids=TokenIds((number, 1, 2)),
        text="ababab",
        truncated=False,
        verdict=Verdict.RIGHT,
    )


def ends(ctx: StepContext, numbers: list[int]) -> tuple[dict[str, list[int] | None], list[SkippedRow]]:
    model: Any = FakeCheckpoint()
    aligner = TokenAligner(ctx, model, len(numbers), lambda row: [row.text[:2], row.text[2:]])
    found = {row.id: aligner.ends(row) for row in map(trace, numbers)}
    return found, aligner.undecodable


def test_undecodable_traces_are_skipped(ctx: StepContext):
    found, skipped = ends(ctx, [1, 2, 13, 4])
    assert found == {"p1/0": [1, 3], "p2/0": [1, 3], "p13/0": None, "p4/0": [1, 3]}
    with pytest.raises(TooManyFailed, match=r"^read tokens: 2 of 4 failed.*2 undecodable \(3 tokens\)"):
        ends(ctx, [1, 13, 13, 4])
    ref = ctx.publish(
        "traces",
        [trace(1)],
        rows_in=4,
        dropped={"truncated": 1},
        skipped=skipped + skipped_rows({"p7/0": FailedRequest(0, "no reply within 9 s", Failure.TIMED_OUT)}),
    )
    assert ref.count
    assert ref.count.dropped == {"truncated": 1, "undecodable": 1, "timed-out": 1}
    listed = (ctx.directory.local_root / "set-aside" / "a-step-of-tests.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in listed] == [
        {"id": "p13/0", "reason": "undecodable", "detail": "3 tokens"},
        {"id": "p7/0", "reason": "timed-out", "detail": "no reply within 9 s"},
    ]


def test_no_file_without_skipped_rows(ctx: StepContext):
    ctx.publish("traces", [trace(1)], rows_in=1)
    assert not (ctx.directory.local_root / "set-aside").exists()
