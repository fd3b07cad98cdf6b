"""Dry runs of the paper presets: whole pipelines with a scripted model and stand-ins for hub and trainer."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.load import load
from conf.long_short import LongShort
from conf.problems import Hub
from conf.tiny_model import Teacher
from flows.cot_distillation import run_cot_distillation
from flows.dto import run_dto
from flows.long_short import run_long_short
from models.checkpoints.checkpoint import TINY_MODEL, Checkpoint
from models.inference.scripted_engine import ScriptedEngine
from models.inference.vllm_server import VllmServer
from models.training.launcher import GrpoJob, TrainerJob
from reasoning.problem_rows import LETTERS
from reasoning.stories import OverThinker, Split, Story, draw_stories
from tasks.runtime.context import RunContext
from tasks.steps.problem_hub import DataFile
from tests.flows.world import LEVELS, ScriptedRun, assist, scripted, speaking
from tests.models.chat import Answer, Chat

pytestmark = pytest.mark.usefixtures("plain_steps")
MATH = [
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
]


def solution(story: Story, number: int) -> str:
    """A trace by the over-thinker, as a data set holds it."""
    thinking = OverThinker(Teacher(), random.Random(number)).think(story)
    return f"<think>\n{thinking.text}</think>{thinking.reply}"


IN_COLUMNS_OF: dict[str, tuple[str | None, str, Callable[[Story, int], dict[str, Any]]]] = {
    "HuggingFaceH4/MATH-500": (
        None,
        "test",
        lambda story, n: {
            "unique_id": f"u{n}",
            "problem": story.text,
            "answer": str(story.answer),
            "level": story.level,
        },
    ),
    "nvidia/OpenMathReasoning": (
        None,
        "cot",
        lambda story, n: {
            "problem": story.text,
            "expected_answer": str(story.answer),
            "generated_solution": solution(story, n),
        },
    ),
    "HuggingFaceH4/aime_2024": (
        None,
        "train",
        lambda story, n: {"id": n, "problem": story.text, "answer": str(story.answer)},
    ),
    "math-ai/amc23": (
        None,
        "test",
        lambda story, n: {"id": n, "question": story.text, "answer": str(story.answer)},
    ),
    "openai/gsm8k": (
        "main",
        "test",
        lambda story, _: {"question": story.text, "answer": f"So it is.\n#### {story.answer}"},
    ),
    "MARIO-Math-Reasoning/Gaokao2023-Math-En": (
        None,
        "train",
        lambda story, n: {"id": n, "question": story.text, "answer": str(story.answer)},
    ),
    "TIGER-Lab/MMLU-Pro": (
        None,
        "test",
        lambda story, n: {
            "question_id": n,
            "question": story.text,
            "options": list(map(str, story.options(10))),
            "answer": LETTERS[story.options(10).index(story.answer)],
            "category": story.item,
        },
    ),
    "math-ai/aime25": (
        None,
        "test",
        lambda story, n: {"id": str(n), "problem": story.text, "answer": str(story.answer)},
    ),
    "Idavidrein/gpqa": (
        "gpqa_diamond",
        "train",
        lambda story, n: (
            {"Record ID": f"r{n}", "Question": story.text, "Correct Answer": str(story.answer)}
            | {f"Incorrect Answer {k}": str(story.answer + k) for k in (1, 2, 3)}
        ),
    ),
    "MathArena/hmmt_feb_2025": (
        None,
        "train",
        lambda story, n: {"problem_idx": n, "problem": story.text, "answer": str(story.answer)},
    ),
}
"""By data set: the subset and split that presets use, and a function that writes a story in its columns."""


def hub_rows(name: str, subset: str | None, *, split: str, revision: str) -> list[dict[str, Any]]:
    """Stories in the columns of a data set that presets name."""
    assert revision == "c" * 40
    if name == "EleutherAI/hendrycks_math":
        part = MATH.index(str(subset))
        return [
            {"problem": story.text, "solution": rf"So it is \boxed{{{story.answer}}}.", "level": f"Level {story.level}"}
            for story in draw_stories(Split.TRAIN, 0, 28, LEVELS)[4 * part : 4 * part + 4]
        ]
    *expected, row_of = IN_COLUMNS_OF[name]
    assert [subset, split] == expected
    is_train = name == "nvidia/OpenMathReasoning"
    stories = draw_stories(Split.TRAIN, 0, 28, LEVELS) if is_train else draw_stories(Split.BENCHMARK, 0, 8, LEVELS)
    return [row_of(story, n) for n, story in enumerate(stories)]


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Replaces the hub. Returns the list of requested models, which fills as the run goes."""

    def files(source: Hub, commit: str) -> list[DataFile]:
        found = []
        for subset in source.subsets or (None,):
            rows = hub_rows(source.name, subset, split=source.split, revision=commit)
            path = tmp_path / f"{source.name.replace('/', '-')}-{subset}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            found.append(DataFile(f"{subset}/0", subset or "", str(path)))
        return found

    for module in ("problems", "dataset_traces"):
        monkeypatch.setattr(f"tasks.steps.{module}.files_of_hub", files)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha="c" * 40))
    requested: list[str] = []
    model = shutil.copytree(TINY_MODEL, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32768}))

    def hub_model(name: str) -> Path:
        requested.append(name)
        return model

    monkeypatch.setattr("tasks.runtime.resources.found_checkpoint", hub_model)
    return requested


def obey(body: dict[str, Any], number: int) -> Answer:
    """As `assist`, but compressed thinking has half of the words asked for: shuffled ratings lead to other texts."""
    answer, task = assist(body, number), body["messages"][0]["content"]
    if "thinking" not in (reply := json.loads(answer.content)):
        return answer
    (words,) = re.findall(r"at most (\d+) words", task)
    return Answer(json.dumps({"thinking": " ".join(reply["thinking"].split()[: max(1, int(words) // 2)])}))


class DryRun(ScriptedRun):
    """Records the training jobs."""

    def __init__(
        self, settings: Any, body: Callable[[RunContext, Any], Path], make: Callable[[], ScriptedEngine] = scripted
    ):
        self.jobs: list[Any] = []
        super().__init__(settings.pipeline, settings, body, make)

    def train(self, job: TrainerJob, folder: Path, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
        self.jobs.append(job)
        return super().train(job, folder, progress)


@pytest.mark.parametrize("preset", ["paper-r1-1.5b", "paper-deepscaler-1.5b"])
def test_a_paper_preset_of_dto_runs_dry(preset: str, tmp_path: Path, requested: list[str]):
    settings = load(Dto, preset, (f"storage.root={tmp_path}",))
    run = DryRun(settings, run_dto)
    assert requested == [settings.model]
    lines = {line["stage"]: line for line in run.report["ledger"]}
    assert lines["sample-traces"]["rows_out"] == 28 * 4
    assert lines["train-simpo"]["rows_in"] > 28
    assert (run.report["models"][0]["problems"], run.report["models"][0]["samples"]) == (8, 32)
    others = run.report["others"]
    assert list(others) == ["GSM8K", "Gaokao", "AMC23", "AIME24", "AIME25", "MMLU-Pro"]
    assert [others[name]["models"][0]["samples"] for name in others] == [32, 32, 128, 128, 128, 32]
    domains = {story.item for story in draw_stories(Split.BENCHMARK, 0, 8, LEVELS)}
    assert set(others["MMLU-Pro"]["models"][0]["by_subject"]) == domains
    assert list(run.report["models"][0]["by_budget"]) == ["512", "1024", "2048", "4096", "8192"]
    (job,) = run.jobs
    # The paper's one epoch; what it leaves open is as conf/training.py says.
    assert (job.num_train_epochs, job.learning_rate, job.beta, job.simpo_gamma, job.max_length) == (
        1,
        5e-7,
        2.0,
        0.3,
        9216,
    )
    assert job.global_batch_size % job.per_device_train_batch_size == 0


@pytest.mark.parametrize("preset", ["paper-1.5b", "paper-7b"])
def test_a_paper_preset_of_cot_distillation_runs_dry(
    preset: str, tmp_path: Path, requested: list[str], chat: Callable[..., Chat]
):
    server = chat(obey)
    settings = load(CotDistillation, preset, (f"storage.root={tmp_path}", f"llm.url={server.url}"))
    run = DryRun(settings, run_cot_distillation)
    assert requested == [settings.model]  # the traces are the data set's
    assert run.report["benchmark"] == "AIME"
    assert list(run.report["others"]) == ["AMC", "MATH", "GSM8K", "HMMT"]
    lines = {line["stage"]: line for line in run.report["ledger"]}
    assert lines["read-hub-traces"]["rows_out"] == 28
    assert "sample-traces" not in lines
    assert {"rate-by-llm", "compress-by-llm", "judge-completions"} <= lines.keys()
    assert "estimate-prefix-values" not in lines
    # SFT, then DPO; DPO alone; the control; and both with shuffled ratings.
    assert [job.method for job in run.jobs] == ["sft", "dpo", "dpo", "sft", "sft", "dpo"]
    assert {job.max_length for job in run.jobs} == {9216}
    assert [job.lora is not None for job in run.jobs] == [preset == "paper-7b"] * 6


@pytest.mark.parametrize("preset", ["paper-qwen2.5-7b", "paper-llama3.1-8b"])
def test_a_paper_preset_of_long_short_runs_dry(
    preset: str, tmp_path: Path, requested: list[str], chat: Callable[..., Chat]
):
    server = chat(assist)
    settings = load(LongShort, preset, (f"storage.root={tmp_path}", f"llm.url={server.url}"))
    run = DryRun(settings, run_long_short, speaking)
    assert list(dict.fromkeys(requested)) == [settings.model, settings.teacher]
    # The base is a reference: it does not think between the tags, so the teacher is what results are compared with.
    roles = {model["name"]: model["role"] for model in run.report["models"]}
    assert (roles["teacher"], roles[settings.model]) == ("base", "reference")
    assert list(run.report["others"]) == ["AIME24", "AIME25", "AMC23", "GPQA-Diamond"]
    assert "chunk-by-llm" in {line["stage"] for line in run.report["ledger"]}
    sft, rl = run.jobs[:2], run.jobs[2:]
    assert [job.method for job in sft] == ["sft", "sft"]
    assert [job.trains for job in rl] == ["long", "short"]
    assert all(isinstance(job, GrpoJob) and job.learning_rate == 5e-6 and job.lora for job in rl)
    assert {job.max_length for job in sft} == {settings.engine.max_model_len}


@pytest.mark.parametrize("preset", ["paper-r1-1.5b", "paper-deepscaler-1.5b"])
def test_vllm_arguments_for_a_gpu(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.inference.vllm_server.on_cpu", lambda: False)
    settings = load(Dto, preset).engine
    settings = settings.model_copy(update={"tensor_parallel_size": 2, "vllm_args": ("--kv-cache-dtype", "fp8")})
    command = " ".join(VllmServer(settings, tmp_path / "log")._command(Checkpoint.open(TINY_MODEL)))
    assert command.endswith("--kv-cache-dtype fp8 --tensor-parallel-size 2 --gpu-memory-utilization 0.85")
    for words in ("--dtype bfloat16", "--max-model-len 16384", "--gpu-memory-utilization 0.85", "--uds /"):
        assert words in command
    assert "--enforce-eager" not in command
