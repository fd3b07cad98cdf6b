"""CoT distillation, with a scripted model and a scripted auxiliary model."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.cot_distillation import CotDistillation
from conf.load import load
from conf.tiny_model import Teacher
from flows.cot_distillation import run_cot_distillation
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import FailedRequest, Finished, Request
from models.inference.scripted_engine import ScriptedEngine
from models.llm.client import CapReached, TooManyInvalidReplies
from reasoning.records import (
    CompressedTrace,
    Demonstration,
    Match,
    Pair,
    PairKind,
    Problem,
    Rating,
    Trace,
    Verdict,
    by_trace,
)
from reasoning.stories import OverThinker, Split, draw_stories
from reasoning.thinking import final_answer
from tasks.steps.problems import ProblemsRefused
from tests.flows.world import LEVELS, STORIES, ScriptedRun, assist, scripted, speak
from tests.models.chat import Answer, Chat, Script
from tests.tasks.reports.page.pages import contents

pytestmark = pytest.mark.usefixtures("plain_steps")
SMALL = (
    "problems.count=12",
    "problems.levels=[1,2,3,4]",
    "sampling.samples=2",
    "selection.max_traces=2",
    "benchmark_sampling.samples=2",
    'benchmarks={"main"={count=8,levels=[1,2,3,4]},"far"={count=2,levels=[9]}}',
)
CURATION = ["sample-traces", "select-traces", "estimate-prefix-values", "rate-by-effort", "compress-by-value"]
GATE = ["draw-problems"] * 3 + ["drop-long-prompts"] * 3 + ["find-overlap", "drop-problems"]


class Run(ScriptedRun):
    def __init__(self, root: Path, *changes: str, make: Callable[[], ScriptedEngine] = scripted):
        settings = load(CotDistillation, "tiny", (*SMALL, f"storage.root={root}", *changes))
        super().__init__("cot-distillation", settings, run_cot_distillation, make)

    def table(self, title: str) -> list[dict[str, str]]:
        return next(table["rows"] for table in self.report["tables"] if title in table["title"])


@pytest.fixture(scope="module")
def first(root: Path) -> Run:
    return Run(root)


def test_a_run_takes_every_step_and_reports_it(first: Run):
    training = ["build-sft-rows", "train-sft", "pair-compressed", "train-dpo"]
    assert first.redone[: len(GATE + CURATION)] == GATE + CURATION
    assert first.redone[len(GATE + CURATION) :][:4] == training
    roles = [(model["name"], model["role"]) for model in first.report["models"]]
    assert roles == [
        ("base", "base"),
        ("sft+dpo", "method"),
        ("sft", "control"),
        ("dpo", "control"),
        ("sft-uncompressed", "control"),
        ("shuffled-ratings", "control"),
    ]
    assert first.report["benchmark"] == "main"
    assert [model["problems"] for model in first.report["others"]["far"]["models"]] == [2] * 6
    assert first.report["warnings"] == []


def test_compressed_traces_are_right_shorter_and_within_budget(first: Run):
    traces = {(row.problem_id, row.sample): row for row in first.rows("select-traces", Trace)}
    answers = {row.id: row.answer for row in first.rows("drop-problems", Problem)}
    budget, model = load(CotDistillation, "tiny").compression.budget, Checkpoint.open(TINY_MODEL)
    compressed = first.rows("compress-by-value", CompressedTrace)
    assert compressed
    for row in compressed:
        assert len(row.token_ids) < row.original_tokens == len(traces[row.problem_id, row.sample].token_ids)
        assert row.kept[0] == 0
        text = model.decode(row.token_ids)
        assert final_answer(text) == answers[row.problem_id]
        kept = text.split("Therefore the answer is")[0]
        assert 0 < len(model.encode(kept)) <= budget.by_level[row.level - 1]
    line = next(line for line in first.report["ledger"] if line["stage"] == "compress-by-value")
    assert line["rows_in"] == line["rows_out"] + sum(line["dropped"].values()) == len(traces)


def test_training_rows_are_complete_completions_of_the_same_traces(first: Run):
    names = [(row.problem_id, row.sample) for row in first.rows("compress-by-value", CompressedTrace)]
    for which, source in ((0, "compress-by-value"), (1, "uncompressed")):
        kind = CompressedTrace if which == 0 else Trace
        token_ids_of = {(row.problem_id, row.sample): row.token_ids for row in first.rows(source, kind)}
        rows = first.rows("build-sft-rows", Demonstration, which)
        assert [(row.problem_id, row.sample) for row in rows] == names
        assert all(row.completion_ids == token_ids_of[row.problem_id, row.sample] for row in rows)
    pairs = first.rows("pair-compressed", Pair)
    assert {pair.kind for pair in pairs} == {PairKind.COMPRESSED}
    assert all(len(pair.chosen_ids) < len(pair.rejected_ids) for pair in pairs)


def test_the_page_shows_rating_budget_and_compressed_text(first: Run):
    held = contents(first.ctx.directory.page)["problems"]
    training = {one["id"]: one for one in held if one["set"] == "training"}
    model = first.ctx.resources.checkpoint(first.ctx.resources.model("tiny"))
    compressed = by_trace(first.rows("compress-by-value", CompressedTrace))
    levels = {row.problem_id: row.level for row in first.rows("rate-by-effort", Rating)}
    for trace in first.rows("select-traces", Trace):
        views = {view["name"]: view for view in training[trace.problem_id]["traces"]}
        view = views[f"trace {trace.sample}"]
        row = compressed.get((trace.problem_id, trace.sample))
        assert view["facts"]["rating"] == f"{levels[trace.problem_id]} of 10"
        assert [text["text"] for text in view["texts"]] == ([model.decode(row.token_ids)] if row else [])
        if row:
            kept = "".join(piece["text"] for piece in view["pieces"] if piece["state"] == "kept")
            assert view["texts"][0]["text"].startswith(kept)


def test_dpo_starts_from_the_sft_checkpoint(first: Run):
    steps = [entry.step for entry in first.ctx.ledger]
    dpo = next(entry for entry in first.ctx.ledger if entry.step == "train-dpo")
    assert steps.index("train-sft") in dpo.inputs


def test_tables_of_the_report(first: Run):
    assert [row["from"] for row in first.table("true level")] == [
        "rating",
        "length of the text",
        "rating, length held fixed",
    ]
    levels = first.table("Compression by level")
    assert sum(int(row["traces"]) for row in levels) == len(first.rows("compress-by-value", CompressedTrace))


def test_an_unchanged_run_starts_no_engine(first: Run, root: Path):
    again = Run(root)
    assert (again.redone, again.engines) == ([], [])
    assert again.report["models"] == first.report["models"]


class FailingEngine(ScriptedEngine):
    """Refuses its hundredth probe."""

    probes = 0

    def serve(self, model: Checkpoint, request_id: int, request: Request) -> Finished | FailedRequest:
        self.probes += model.decode(request.prompt_ids[-8:]).endswith("boxed{")
        return FailedRequest(request_id, "a test") if self.probes == 100 else super().serve(model, request_id, request)


def test_a_trace_without_values_is_dropped_and_counted(tmp_path: Path):
    run = Run(tmp_path, "variants=[]", make=lambda: FailingEngine(speak))
    lines = {line["stage"]: line for line in run.report["ledger"]}
    assert lines["estimate-prefix-values"]["dropped"] == {"refused": 1}
    compressed = lines["compress-by-value"]
    assert compressed["rows_in"] == lines["select-traces"]["rows_out"]
    assert compressed["dropped"]["no-values"] == 1


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ("dpo.beta=0.2", {"train-dpo", "evaluate"}),
        (
            "compression.budget.by_level=[50,50,50,50,50,50,50,50,50,90]",
            {
                "compress-by-value",
                "build-sft-rows",
                "train-sft",
                "pair-compressed",
                "train-dpo",
                "uncompressed",
                "evaluate",
            },
        ),
        ("engine.max_num_seqs=7", set()),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(first: Run, root: Path, change: str, redone: set[str]):
    assert set(Run(root, change).redone) == redone


def write_problems(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text(
        "".join(json.dumps({"id": f"{i}", "problem": p, "answer": a}) + "\n" for i, (p, a) in enumerate(rows))
    )
    return path


def respelled(text: str) -> str:
    """The same text with other spacing and case, and numbers as formulas."""
    return re.sub(r"(\d+)", r"$\\displaystyle{\1}$", text.upper().replace(" ", "  "))


def test_planted_benchmark_problems_are_removed_before_anything_is_sampled(tmp_path: Path):
    stories = draw_stories(Split.TRAIN, 0, 6, LEVELS)
    benchmark = draw_stories(Split.BENCHMARK, 0, 8, LEVELS)
    rows = [(story.text, str(story.answer)) for story in stories]
    planted = [
        (benchmark[0].text, str(benchmark[0].answer)),
        (respelled(benchmark[1].text), str(benchmark[1].answer)),
        rows[0],
    ]
    path = write_problems(tmp_path / "rows.jsonl", [*rows, *planted])
    run = Run(tmp_path / "root", "problems={type='file'}", f"problems.path={path}")
    assert {row.problem_id for row in run.rows("find-overlap", Match)} == {"6", "7"}
    assert [row.id for row in run.rows("drop-problems", Problem)] == [str(n) for n in range(6)]
    line = next(line for line in run.report["ledger"] if line["stage"] == "drop-problems")
    assert line["dropped"] == {"in-a-benchmark": 2, "duplicate": 1}
    assert "2 problems also occur in a benchmark" in run.report["warnings"][0]
    only = write_problems(tmp_path / "only.jsonl", planted[:2])
    with pytest.raises(ProblemsRefused, match="all 2 problems also occur in a benchmark"):
        Run(tmp_path / "other", "problems={type='file'}", f"problems.path={only}")


def test_without_decontamination_the_report_warns(tmp_path: Path):
    run = Run(tmp_path, "decontamination.type=off", "decontamination.reason=made-up problems", "variants=[]")
    assert run.report["warnings"] == ["problems were not compared with the benchmarks: made-up problems"]
    assert "find-overlap" not in run.redone


def by_llm(server: Chat, *more: str) -> tuple[str, ...]:
    return (
        "rating.type=llm",
        "compression.by.type=llm",
        "judging.problems=3",
        f"llm.url={server.url}",
        "llm.model=m",
        "llm.price_in=1.0",
        "llm.price_out=1.0",
        "variants=['sft']",
        "compression.by.max_invalid_fraction=0.5",
        "probing={}",
        *more,
    )


def test_an_auxiliary_model_in_all_roles(tmp_path: Path, chat: Callable[[Script], Chat]):
    server = chat(assist)
    run = Run(tmp_path, *by_llm(server))
    assert {"rate-by-llm", "compress-by-llm", "judge-completions"} <= set(run.redone)
    assert "estimate-prefix-values" not in run.redone  # no step uses values
    assert run.rows("compress-by-llm", CompressedTrace)
    grades = run.table("Grades")
    assert [row["model"] for row in grades] == ["base", "sft+dpo", "sft"]
    assert {row["completions"] for row in grades} == {"3"}
    assert all(row["redundancy"].startswith("2.00") for row in grades)
    judged = [m for m in server.asked if m["response_format"]["json_schema"]["name"] == "Grades"]
    assert not any(
        name in json.dumps(judged) for name in ("sft", "base", "dpo")
    )  # the judge does not see which model wrote a completion
    money = sum(line["money"] for line in run.report["ledger"])
    assert money == pytest.approx(len(server.asked) * 110e-6)
    again = len(server.asked)
    assert Run(tmp_path, *by_llm(server)).redone == []
    assert len(server.asked) == again


@pytest.mark.parametrize(
    ("thinking", "reason"),
    [
        (" \n ", "empty"),
        ("It is 4.</think>", "control-token"),
        ("It is 4.<|endoftext|>", "control-token"),
        ("Let me think. " * 20, "over-budget"),
    ],
)
def test_an_invalid_rewritten_trace_is_dropped(tmp_path: Path, chat: Callable[..., Chat], thinking: str, reason: str):
    def script(body: dict[str, Any], number: int) -> Answer:
        kind = body["response_format"]["json_schema"]["name"]
        valid = assist(body, number)
        is_invalid = kind == "Shortened" and len(body["messages"][1]["content"]) % 3 == 0
        return Answer(json.dumps({"thinking": thinking})) if is_invalid else valid

    run = Run(tmp_path, *by_llm(chat(script), "variants=[]"))
    line = next(line for line in run.report["ledger"] if line["stage"] == "compress-by-llm")
    assert line["dropped"][reason] > 0
    assert line["rows_in"] == line["rows_out"] + sum(line["dropped"].values())
    model = run.ctx.resources.checkpoint(run.made("train-sft"))
    texts = [model.decode(row.token_ids) for row in run.rows("compress-by-llm", CompressedTrace)]
    assert all(text.count("</think>") == 1 and text.split("</think>")[0].strip() for text in texts)


def lecture(body: dict[str, Any], number: int) -> Answer:
    """A scripted teacher: solves each problem as the over-thinker does; every seventh reply has no thinking."""
    assert "response_format" not in body
    assert (body["temperature"], body["max_tokens"]) == (0.6, 768)
    solution = OverThinker(Teacher(), random.Random(number)).think(STORIES[body["messages"][1]["content"]])
    if number % 7 == 3:
        return Answer(solution.reply)
    return Answer(f"<think>\n{solution.text}</think>{solution.reply}" + "<|user|>" * (number == 5))


def test_an_endpoint_as_teacher(tmp_path: Path, chat: Callable[[Script], Chat]):
    server = chat(lecture)
    run = Run(
        tmp_path,
        "teacher.type=endpoint",
        f"teacher.llm.url={server.url}",
        "teacher.llm.model=big",
        "variants=[]",
        "teacher.max_invalid_fraction=0.5",
    )
    assert len(server.asked) == 24
    line = next(line for line in run.report["ledger"] if line["stage"] == "write-traces")
    assert (line["rows_in"], line["dropped"]) == (24, {"without-thinking": 3, "control-token": 1})
    traces = run.rows("write-traces", Trace)
    assert all(trace.text.startswith("Start with") for trace in traces)
    assert {trace.verdict for trace in traces} <= {Verdict.RIGHT, Verdict.WRONG}
    assert run.rows("compress-by-value", CompressedTrace)
    model = run.ctx.resources.checkpoint(run.made("train-sft"))
    assert all(model.decode(trace.token_ids) == trace.text for trace in traces)
    assert (
        Run(
            tmp_path,
            "teacher.type=endpoint",
            f"teacher.llm.url={server.url}",
            "teacher.llm.model=big",
            "variants=[]",
            "teacher.max_invalid_fraction=0.5",
        ).redone
        == []
    )


def test_a_teacher_without_thinking_ends_the_run_early(tmp_path: Path, chat: Callable[..., Chat]):
    server = chat(lambda body, number: Answer("The answer is \\boxed{4}."))
    with pytest.raises(TooManyInvalidReplies, match=r"3 replies of big cannot be used \(3 × without-thinking"):
        Run(
            tmp_path,
            "teacher.type=endpoint",
            f"teacher.llm.url={server.url}",
            "teacher.llm.model=big",
            "teacher.llm.max_concurrency=1",
        )
    assert len(server.asked) == 3


def test_a_run_stopped_by_the_cap_resumes_without_paying_twice(tmp_path: Path, chat: Callable[[Script], Chat]):
    short = (
        "rating.max_tokens=32",
        "compression.by.max_tokens=32",
        "judging.max_tokens=32",
    )  # higher limits would reserve the whole cap
    whole = chat(assist)
    need = sum(line["money"] for line in Run(tmp_path / "whole", *by_llm(whole, *short)).report["ledger"])
    server = chat(assist)
    with pytest.raises(CapReached, match=r"raise llm\.cap"):
        Run(tmp_path / "capped", *by_llm(server, f"llm.cap={need / 2}", *short))
    assert 0 < len(server.asked) * 110e-6 <= need / 2
    run = Run(tmp_path / "capped", *by_llm(server, "llm.cap=100.0", *short))
    assert len(server.asked) == len(whole.asked)
    assert sum(line["money"] for line in run.report["ledger"]) == pytest.approx(need)


def test_a_model_with_malformed_replies_ends_the_run(tmp_path: Path, chat: Callable[[Script], Chat]):
    server = chat(lambda body, number: Answer("I would rather not."))
    with pytest.raises(TooManyInvalidReplies, match=r"\d replies of m cannot be used \(\d × malformed"):
        Run(tmp_path, *by_llm(server))
