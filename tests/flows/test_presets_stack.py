"""The paper's presets, dry: the whole pipeline with a scripted model, and stand-ins for the hub and the trainer."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from rich.console import Console

from conf.load import load
from conf.settings import Dto
from flows.dto import run_dto
from models.checkpoint import TINY_MODEL, Checkpoint
from models.trainer import TrainJob
from models.vllm_server import VllmServer
from reasoning.stories import Split, draw_stories
from tasks.progress import Progress
from tasks.workplace import Workplace
from tests.flows.world import LEVELS, pretend_training, scripted

pytestmark = pytest.mark.usefixtures("prefect")
MATH = [
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
]  # fmt: skip


def hub_rows(name: str, subset: str | None, *, split: str, revision: str) -> list[dict[str, Any]]:
    """Stories, in the columns of the data sets that the presets name."""
    assert revision == "c" * 40
    if name == "HuggingFaceH4/MATH-500":
        assert (subset, split) == (None, "test")
        stories = draw_stories(Split.BENCHMARK, 0, 8, LEVELS)
        return [
            {"unique_id": f"u{n}", "problem": story.text, "answer": str(story.answer), "level": story.level}
            for n, story in enumerate(stories)
        ]
    assert (name, split) == ("EleutherAI/hendrycks_math", "train")
    part = MATH.index(str(subset))
    stories = draw_stories(Split.TRAIN, 0, 28, LEVELS)[4 * part : 4 * part + 4]
    return [
        {"problem": story.text, "solution": rf"So it is \boxed{{{story.answer}}}.", "level": f"Level {story.level}"}
        for story in stories
    ]


@pytest.mark.parametrize("preset", ["paper-r1-1.5b", "paper-deepscaler-1.5b"])
def test_a_paper_preset_runs_dry(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.load_dataset", hub_rows)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha="c" * 40))
    asked: list[str] = []

    def hub_model(name: str) -> Path:
        asked.append(name)
        return TINY_MODEL

    monkeypatch.setattr("tasks.workplace.found_checkpoint", hub_model)
    settings = load(Dto, preset, (f"storage.root={tmp_path}",))
    jobs: list[TrainJob] = []

    def trainer(job: TrainJob, folder: Path, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
        jobs.append(job)
        return pretend_training(job, folder, progress)

    with Workplace(
        "dto", settings.storage, settings.engine, make_engine=lambda *_: scripted(), trainer=trainer,
        progress=Progress(Console(file=StringIO())),
    ) as place:  # fmt: skip

        @flow(name="test")
        def run() -> Path:
            return run_dto(place, settings)

        report = json.loads(run().read_text())
    assert asked == [settings.model]
    lines = {line["stage"]: line for line in report["ledger"]}
    assert lines["sample-traces"]["rows_out"] == 28 * 4
    assert lines["train-simpo"]["rows_in"] > 28
    assert (report["models"][0]["problems"], report["models"][0]["samples"]) == (8, 32)
    (job,) = jobs
    # The paper's one epoch; what it leaves open is as conf/settings.py says.
    assert (job.epochs, job.learning_rate, job.beta, job.gamma, job.max_length) == (1, 5e-7, 2.0, 0.3, 9216)
    assert job.batch % job.micro_batch == 0


@pytest.mark.parametrize("preset", ["paper-r1-1.5b", "paper-deepscaler-1.5b"])
def test_its_server_is_started_for_a_gpu(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.vllm_server.on_cpu", lambda: False)
    settings = load(Dto, preset).engine
    command = " ".join(VllmServer(settings, tmp_path / "log")._command(Checkpoint.open(TINY_MODEL), 8000))
    for words in ("--dtype bfloat16", "--max-model-len 16384", "--gpu-memory-utilization 0.85", "--host 127.0.0.1"):
        assert words in command
    assert "--enforce-eager" not in command
