"""Single failures do not end a run: pipelines with engines that refuse requests, and with undecodable traces."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.load import load
from conf.long_short import LongShort
from flows.cot_distillation import run_cot_distillation
from flows.dto import run_dto
from flows.long_short import run_long_short
from models.checkpoints.checkpoint import Checkpoint
from models.inference.engine import Completion, FailedRequest, Failure, Finished, Request, ScorableText
from models.inference.rollout_executor import TooManyFailed
from models.inference.scripted_engine import ScriptedEngine
from models.tiny_model import END
from reasoning.records import Scan, Score, Trace, Verdict
from reasoning.token_ids import TokenIds
from tasks.steps import pruning
from tests.flows.world import ScriptedRun, speak, speak_turn

pytestmark = pytest.mark.usefixtures("plain_steps")
SMALL = (
    "problems.count=40",
    "problems.levels=[1,2,3,4]",
    "sampling.samples=2",
    "engine.max_failed_fraction=0.9",
)
KINDS = tuple(Failure)


class FailingEngine(ScriptedEngine):
    """Every `every`th request fails, with the kinds of failure in turn."""

    def __init__(self, script: Any, every: int = 11):
        super().__init__(script)
        self._number, self._every = count(1), every

    def serve(self, model: Checkpoint, request_id: int, request: Request) -> Finished | FailedRequest:
        return self._failure(request_id) or super().serve(model, request_id, request)

    def log_probs(self, model: Checkpoint, texts: Sequence[ScorableText]) -> Iterator[list[float] | FailedRequest]:
        for request_id, found in enumerate(super().log_probs(model, texts)):
            yield self._failure(request_id) or found

    def _failure(self, request_id: int) -> FailedRequest | None:
        number = next(self._number)
        if number % self._every:
            return None
        return FailedRequest(request_id, f"failure {number}", KINDS[number // self._every % len(KINDS)])


def refusals_of(run: ScriptedRun) -> Counter[str]:
    return Counter(
        json.loads(line)["reason"]
        for path in (run.ctx.directory.local_root / "set-aside").glob("*.jsonl")
        for line in path.read_text().splitlines()
    )


def check(run: ScriptedRun, samples: int) -> None:
    """Skipped rows are in the ledger and in a file, and every evaluation has all its samples."""
    counted = Counter[str]()
    for line in [line for line in run.report["ledger"] if not line["cached"]]:
        counted.update({name: number for name, number in line["dropped"].items() if name in KINDS})
        counted.update(
            {name.removeprefix("not right: "): number for name, number in line["counts"].items() if "not right" in name}
        )
    assert counted == refusals_of(run)
    assert counted.total() > 3
    for model in run.report["models"]:
        assert (model["problems"], model["samples"]) == (20, 20 * samples)
    for kind in ("evaluate", "evaluate-early-stop", "score-dialogues"):
        for entry in run.ctx.ledger:
            if entry.step == kind:
                rows = run.ctx.artifacts.rows(entry.artifact, Score)
                assert len({(row.problem_id, row.sample) for row in rows}) == len(rows) == 20 * samples
    assert any(model["failed"] for model in run.report["models"])


def test_dto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = load(
        Dto,
        "tiny",
        (
            *SMALL,
            "benchmark.problems.count=20",
            "benchmark.problems.levels=[1,2,3,4]",
            "benchmark.sampling.samples=2",
            'controls.trained=["sft"]',
            "controls.early_stop=true",
            f"storage.root={tmp_path}",
        ),
    )
    monkeypatch.setattr(pruning, "PRUNED_TOGETHER", 2)
    run = ScriptedRun("dto", settings, run_dto, lambda: FailingEngine(speak))
    check(run, 2)
    lines = {line["stage"]: line for line in run.report["ledger"]}
    for name in ("probe-prefixes", "reestimate-crossings", "finalize-traces"):
        assert lines[name]["rows_in"] == lines[name]["rows_out"] + sum(lines[name]["dropped"].values()), name
    assert set(lines["finalize-traces"]["dropped"]) & set(KINDS)
    assert lines["prune-traces"]["counts"]["unchanged, the engine failed"] > 0
    assert lines["prune-traces"]["rows_in"] == lines["prune-traces"]["rows_out"]
    assert lines["sample-traces"]["rows_out"] == 2 * (40 - sum(lines["sample-traces"]["dropped"].values()))
    (stop,) = (entry for entry in run.ctx.ledger if entry.step == "evaluate-early-stop")
    failed = [row for row in run.ctx.artifacts.rows(stop.artifact, Score) if row.verdict is Verdict.NO_COMPLETION]
    assert {row.sample for row in failed} == {0, 1}  # all samples of a problem, and single traces whose probes failed


def test_cot_distillation(tmp_path: Path):
    settings = load(
        CotDistillation,
        "tiny",
        (
            *SMALL,
            'benchmarks={stories={type="stories",count=20,levels=[1,2,3,4]}}',
            "benchmark_sampling.samples=2",
            "variants=[]",
            "selection.max_traces=2",
            f"storage.root={tmp_path}",
        ),
    )
    run = ScriptedRun("cot-distillation", settings, run_cot_distillation, lambda: FailingEngine(speak, every=7))
    check(run, 2)
    lines = {line["stage"]: line for line in run.report["ledger"]}
    for name in ("estimate-prefix-values", "compress-by-value"):
        assert lines[name]["rows_in"] == lines[name]["rows_out"] + sum(lines[name]["dropped"].values()), name
    assert set(lines["compress-by-value"]["dropped"]) & set(KINDS)


def test_long_short(tmp_path: Path):
    settings = load(
        LongShort,
        "tiny",
        (
            *SMALL,
            'benchmarks={stories={type="stories",count=20,levels=[1,2,3,4]}}',
            "benchmark_sampling.samples=2",
            "early_stop={}",
            "rollouts.samples=3",
            f"storage.root={tmp_path}",
        ),
    )
    run = ScriptedRun("long-short", settings, run_long_short, lambda: FailingEngine(speak_turn, every=17))
    check(run, 2)
    (table,) = (table for table in run.report["tables"] if table["title"].startswith("Dialogues"))
    assert all(float(row["turns"]) >= 2 for row in table["rows"])  # failed dialogues do not count


def test_too_many_failures_end_the_run_with_their_reasons(tmp_path: Path):
    settings = load(Dto, "tiny", ("problems.count=40", "problems.levels=[1,2,3,4]", f"storage.root={tmp_path}"))
    with pytest.raises(TooManyFailed, match=r"^sample: 3 of 40 failed, more than engine.max_failed_fraction \(0.05\)"):
        ScriptedRun("dto", settings, run_dto, lambda: FailingEngine(speak))


def test_an_engine_that_serves_nothing_ends_the_run(tmp_path: Path):
    settings = load(Dto, "tiny", (*SMALL, "engine.max_failed_fraction=1", f"storage.root={tmp_path}"))
    with pytest.raises(TooManyFailed, match=r"^sample: there is no completion of any problem: failure \d+$"):
        ScriptedRun("dto", settings, run_dto, lambda: FailingEngine(speak, every=1))


def broken(cut: Callable[[TokenIds], TokenIds]) -> Any:
    """As `speak`, but every third trace ends in an emoji that `cut` has shortened, and the end token."""

    def script(model: Checkpoint, request: Request, number: int) -> Completion:
        completion = speak(model, request, number)
        if not model.decode(request.prompt_ids).endswith("<think>\n") or number % 3:
            return completion
        end = model.encode(END)
        return Completion(completion.token_ids[: -len(end)] + cut(model.encode(" 😀")) + end, True)

    return script


@pytest.mark.parametrize("repeat", [1, 300])
def test_a_trace_may_end_in_half_an_emoji(tmp_path: Path, repeat: int):
    settings = load(
        Dto,
        "tiny",
        (
            "problems.count=12",
            "problems.levels=[1,2,3,4]",
            "sampling.samples=2",
            "benchmark.problems.count=6",
            "benchmark.problems.levels=[1,2,3,4]",
            "benchmark.sampling.samples=2",
            "controls.early_stop=true",
            f"storage.root={tmp_path}",
        ),
    )
    run = ScriptedRun(
        "dto", settings, run_dto, lambda: ScriptedEngine(broken(lambda ids: TokenIds.join([ids[:-1]] * repeat)))
    )
    traces = run.rows("sample-traces", Trace)
    undecodable = {(row.problem_id, row.sample) for row in traces if "\ufffd" in row.text}
    assert len(undecodable) == 8
    assert undecodable <= {(row.problem_id, row.sample) for row in run.rows("probe-prefixes", Scan)}
