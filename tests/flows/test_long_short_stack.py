"""Long⊗Short with a scripted model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.load import load
from conf.long_short import LongShort
from flows.long_short import run_long_short
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.engine import Completion, Request
from models.inference.scripted_engine import ScriptedEngine
from models.training.launcher import GrpoJob, TrainerJob, TrainingFailed
from reasoning.dialogue import Speaker, turns_of
from reasoning.records import (
    ChunkedTrace,
    ColdStartDialogue,
    Demonstration,
    EvaluatedDialogue,
    PrefixValues,
    Problem,
    Score,
    Trace,
    Verdict,
    by_trace,
)
from tasks.reports.model_pair import MissingModelPair, load_model_pair
from tests.flows.world import ScriptedRun, assist, speak_turn, speaking
from tests.models.chat import Chat
from tests.tasks.reports.page.pages import contents

pytestmark = pytest.mark.usefixtures("plain_steps")
SMALL = (
    "problems.count=16",
    "problems.levels=[1,2,3,4]",
    "sampling.samples=2",
    "rollouts.samples=3",
    "benchmark_sampling.samples=2",
    'benchmarks={"main"={count=8,levels=[1,2,3,4]},"far"={count=2,levels=[9]}}',
    'rl.rounds=["long","short"]',
)
MODEL = Checkpoint.open(TINY_MODEL)


class Run(ScriptedRun):
    make = staticmethod(speaking)

    def __init__(self, root: Path, *changes: str):
        self.jobs: list[TrainerJob] = []
        settings = load(LongShort, "tiny", (*SMALL, f"storage.root={root}", *changes))
        super().__init__("long-short", settings, run_long_short, self.make)

    def train(self, job: TrainerJob, folder: Path, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
        self.jobs.append(job)
        costs = {"training_flops": 2e6, "prompt_tokens": 7, "generated_tokens": 5, "flops": 1e6}
        return [figures | costs for figures in super().train(job, folder, progress)]


@pytest.fixture(scope="module")
def first(root: Path) -> Run:
    return Run(root, "one_model=true", "early_stop={}")


def test_a_run_takes_every_step_and_reports_it(first: Run):
    roles = [(model["name"], model["role"]) for model in first.report["models"]]
    assert roles == [
        ("base", "base"),
        ("one model", "control"),
        ("cold start", "control"),
        ("round 1, long", "control"),
        ("round 2, short", "method"),
        ("early stop", "control"),
    ]
    assert [model["problems"] for model in first.report["others"]["far"]["models"]] == [2] * 5
    thoughts, dialogues = first.report["tables"]
    flags = [
        important for row in first.rows("build-cold-start-dialogues", ColdStartDialogue) for important in row.important
    ]
    numbers = {row["thoughts"]: int(row["number"]) for row in thoughts["rows"]}
    assert numbers == {"important": sum(flags), "others": len(flags) - sum(flags)}
    assert [row["pair"] for row in dialogues["rows"]] == ["cold start", "round 1, long", "round 2, short"]
    assert dialogues["rows"][0]["reward"] == "+0.000 [+0.000, +0.000]"


def test_thoughts_are_consecutive_parts_of_the_trace_and_each_has_a_value(first: Run):
    traces = {row.id: row for row in first.rows("select-traces", Trace)}
    chunked, values = first.rows("chunk-by-markers", ChunkedTrace), first.rows("value-thoughts", PrefixValues)
    assert len(chunked) == len(values) == len(traces)
    for cut, row in zip(chunked, values, strict=True):
        assert row.ends == (0, *cut.ends)
        text = MODEL.decode(traces[f"{row.problem_id}/{row.sample}"].token_ids[: row.ends[-1]])
        assert traces[f"{row.problem_id}/{row.sample}"].text.startswith(text + "</think>")
        assert all(0 <= right <= row.total == 3 for right in row.right)
        # The scripted model continues with its latest conclusion, so a prefix is always or never right. Without
        # thinking it samples a new trace each time.
        assert all(right in (0, 3) for right in row.right[1:])


def test_the_page_shows_thoughts_and_who_said_which_turn(first: Run):
    held = contents(first.ctx.directory.page)["problems"]
    dialogues = by_trace(first.rows("build-cold-start-dialogues", ColdStartDialogue))
    for trace in first.rows("select-traces", Trace):
        problem = next(one for one in held if one["id"] == trace.problem_id)
        view = next(view for view in problem["traces"] if view["name"] == f"trace {trace.sample}")
        assert "".join(piece["text"] for piece in view["pieces"]) == trace.text
        if row := dialogues.get((trace.problem_id, trace.sample)):
            states = [piece["state"] for piece in view["pieces"][:-1]]
            # Long opens the dialogue, with the first thought at least.
            assert states == ["long" if important else "short" for important in (True, *row.important[1:])]
            assert "".join(text["text"] for text in view["texts"]) == row.transcript
    answers = next(one["answers"] for one in held if one["answers"])
    spoken = [answer for answer in answers if answer["turns"][0]["speaker"]]
    assert {answer["turns"][0]["speaker"] for answer in spoken} == {"long"}
    assert all("rewards" in answer["facts"] for answer in spoken)
    assert len({answer["model"] for answer in spoken}) > 1


def test_each_turn_is_one_row_with_the_turns_before_as_prompt(first: Run):
    problems = {row.id: row for row in first.rows("drop-problems", Problem)}
    dialogues = first.rows("build-cold-start-dialogues", ColdStartDialogue)
    rows_of = {
        Speaker.LONG: first.rows("build-turn-sft-rows", Demonstration, 0),
        Speaker.SHORT: first.rows("build-turn-sft-rows", Demonstration, 1),
    }
    turns = [
        (row, turn, turns_of(row.transcript)[:n])
        for row in dialogues
        for n, turn in enumerate(turns_of(row.transcript))
    ]
    for speaker, rows in rows_of.items():
        own = [(row, turn, before) for row, turn, before in turns if turn.speaker is speaker]
        assert len(rows) == len(own)
        for demonstration, (row, turn, before) in zip(rows, own, strict=True):
            prompt = MODEL.decode(demonstration.prompt_ids)
            opening = "<think>" if speaker is Speaker.LONG else "<answer>"
            transcript = "".join(map(str, before))
            assert (
                prompt
                == f"<|system|><|{speaker}|><|user|>{problems[row.problem_id].text}<|assistant|>{transcript}{opening}"
            )
            assert MODEL.decode(demonstration.completion_ids) == str(turn).removeprefix(opening)
            assert demonstration.completion_ids[-1] == MODEL.end_id
            assert demonstration.prompt_ids.count(MODEL.end_id) == len(before)


def test_rounds_alternate_and_continue_from_each_other(first: Run):
    rounds = [job for job in first.jobs if isinstance(job, GrpoJob)]
    long, short, alone = rounds
    cold = [first.made("train-sft", which).uri for which in (0, 1)]
    trained = first.made("train-grpo", 0).uri
    assert (long.trains, str(long.model), str(long.partner)) == ("long", *cold)
    assert (short.trains, str(short.model), str(short.partner)) == ("short", cold[1], trained)
    assert (alone.trains, alone.model, alone.partner) == (None, TINY_MODEL, None)
    assert alone.rl.max_steps == 2 * long.rl.max_steps
    assert len({long.seed, short.seed}) == 2
    line = next(line for line in first.report["ledger"] if line["stage"] == "train-grpo")
    assert (line["generated_tokens"], line["prompt_tokens"]) == (5, 7)
    assert line["flops"] == pytest.approx(1e6 + 2e6)


def test_tokens_of_both_models_count(first: Run):
    dialogues, scores = first.rows("evaluate-dialogues", EvaluatedDialogue), first.rows("score-dialogues", Score)
    problems = {row.id: row for row in first.rows("draw-problems", Problem)}
    assert len(dialogues) == len(scores) == 16
    for row, score in zip(dialogues, scores, strict=True):
        problem = problems[row.problem_id]
        turns = turns_of(row.transcript)
        is_hard = (problem.level or 0) > 2  # then Long doubts its first conclusion and Short asks again
        assert len(turns) == (4 if is_hard else 2)
        assert (row.verdict is Verdict.RIGHT) == is_hard
        assert score.tokens == sum(len(MODEL.encode(str(turn).split(">", 1)[1])) + 1 for turn in turns)
        assert len(score.calls) == len(turns)
        assert score.prompt_tokens == sum(call.prompt_tokens for call in score.calls)
        assert row.is_well_formed
        assert not row.hit_cap


def test_an_unchanged_run_starts_no_engine(first: Run, root: Path):
    again = Run(root, "one_model=true", "early_stop={}")
    assert (again.redone, again.engines, again.jobs) == ([], [], [])
    assert again.report["models"] == first.report["models"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ("rl.save_steps=5", set()),
        ("rl.collapse_limits.max_tokens=9", set()),
        ("engine.max_num_seqs=7", set()),
        ("rl.max_steps=3", {"train-grpo", "evaluate-dialogues"}),
        ("sft.learning_rate=1e-4", {"train-sft", "train-grpo", "evaluate-dialogues"}),
        ("importance.decay=0", {"build-cold-start-dialogues"}),  # the scripted values give the same dialogues
        (
            "protocol.forced_answer_prefix=So \\boxed{",
            {"drop-long-prompts", "build-turn-sft-rows", "train-grpo", "evaluate-dialogues"},
        ),
        ("benchmark_sampling.temperature=0.5", {"evaluate", "evaluate-dialogues"}),
    ],
)
def test_a_change_redoes_what_depends_on_it(first: Run, root: Path, change: str, redone: set[str]):
    _ = first
    assert set(Run(root, change).redone) - {"pair-models"} == redone - {"pair-models"}


class WritesOpeningTag(Run):
    """The model writes the tag that opens its thinking, as models do whose chat template does not."""

    @staticmethod
    def make() -> ScriptedEngine:
        def opened(model: Checkpoint, request: Request, number: int) -> Completion:
            text = model.decode(request.prompt_ids)
            plain = model.encode(text.replace("<think>\n<think>\n", "<think>\n"))
            completion = speak_turn(model, replace(request, prompt_ids=plain), number)
            begins = text.endswith("<think>\n") and "<|system|>" not in text
            return (
                replace(completion, token_ids=model.encode("<think>\n") + completion.token_ids)
                if begins
                else completion
            )

        return ScriptedEngine(opened)


@pytest.mark.parametrize("cut_by", ["markers", "llm"])
def test_thoughts_begin_after_an_opening_tag_written_by_the_model(
    tmp_path: Path, chat: Callable[..., Chat], cut_by: str
):
    llm = ("chunking.type=llm", f"llm.url={chat(assist).url}", "llm.model=m") if cut_by == "llm" else ()
    run = WritesOpeningTag(tmp_path, "rl.rounds=[]", *llm)
    traces, dialogues = run.rows("select-traces", Trace), run.rows("build-cold-start-dialogues", ColdStartDialogue)
    assert traces
    assert all(row.text.startswith("<think>\n") for row in traces)
    assert len(dialogues) == len(traces)
    turns = [turn for row in dialogues for turn in turns_of(row.transcript)]
    assert all(turn.text.strip() for turn in turns)


def test_a_run_without_training_rows_lists_what_was_dropped(tmp_path: Path):
    class Wrong(Run):
        @staticmethod
        def make() -> ScriptedEngine:
            return ScriptedEngine(
                lambda model, *_: Completion(model.encode("Hmm.\n</think>\nI pass.<|endoftext|>"), True)
            )

    with pytest.raises(TrainingFailed, match=r"dropped on the way: select-traces: 32 not-right"):
        Wrong(tmp_path, "rl.rounds=[]")


def test_chunking_by_a_language_model(tmp_path: Path, chat: Callable[..., Chat]):
    server = chat(assist)
    run = Run(tmp_path, "chunking.type=llm", f"llm.url={server.url}", "llm.model=m", "rl.rounds=[]")
    traces = {row.id: row for row in run.rows("select-traces", Trace)}
    chunked = run.rows("chunk-by-llm", ChunkedTrace)
    assert len(chunked) == len(traces) == len(server.asked)
    for row in chunked:
        thinking = traces[f"{row.problem_id}/{row.sample}"].text.split("</think>")[0]
        lines = thinking.count("\n")
        assert len(row.ends) == max(1, lines - 1)
        assert MODEL.decode(traces[f"{row.problem_id}/{row.sample}"].token_ids[: row.ends[-1]]) == thinking
    assert run.report["models"][1]["role"] == "method"  # without rounds the cold start is the method


def test_the_model_pair_of_a_run_is_saved(first: Run, tmp_path: Path):
    folders, settings, _ = load_model_pair(first.ctx.directory.path)
    assert folders == {
        Speaker.LONG: Path(first.made("train-grpo", 0).uri),
        Speaker.SHORT: Path(first.made("train-grpo", 1).uri),
    }
    assert settings.protocol.long_role == "<|long|>"
    with pytest.raises(MissingModelPair, match="name the folder of a finished run"):
        load_model_pair(tmp_path)
    assert json.loads((first.ctx.directory.path / "model_pair.json").read_text()).keys() == {"long", "short"}
