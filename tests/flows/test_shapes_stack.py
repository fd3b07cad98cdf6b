"""The paper presets on shape models, with the real vLLM and TRL and real problems.

The settings are a preset's, except for sizes, paths, the server's precision, and learning rates for few rows. The
models' texts are scripted (`tests.bigrams`), so figures say nothing about behaviour. `BREVITY_SHAPES=all` runs all
presets with all trainings; otherwise each pipeline runs once, and each shape at least once.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from conf.cot_distillation import CotDistillation
from conf.dto import Dto
from conf.load import load
from conf.long_short import LongShort
from flows.cot_distillation import cot_distillation
from flows.dto import dto
from flows.long_short import long_short
from tests.bigrams import ANSWER, ScriptedText, teach, traces, turns
from tests.flows.world import assist
from tests.models.chat import Answer, Chat
from tests.shapes import make_shape

MakeModel = Callable[[str, list[ScriptedText]], Path]
pytestmark = pytest.mark.usefixtures("prefect")
FLOAT32 = "engine.dtype='float32'"
"""Half precision is many times slower on CPUs without native support."""
THINKERS = {
    "r1-distill-qwen": traces("<think>\n", ["<｜end▁of▁sentence｜>"]),
    "r1-distill-llama": traces("<think>\n", ["<｜end▁of▁sentence｜>"]),
    "qwen3": traces("<think>", ["<|im_end|>", "<|endoftext|>"]),
}
"""Texts of the shapes that solve problems alone."""
RUN_ALL = os.environ.get("BREVITY_SHAPES") == "all"


def selected(*presets: tuple[str, ...]) -> Sequence[tuple[str, ...]]:
    """All presets, or the first one in a short run."""
    return presets if RUN_ALL else presets[:1]


def shortened(change: str) -> list[str]:
    """`change`, which removes similar trainings from a preset, in a short run; nothing in a full run."""
    return [] if RUN_ALL else [change]


@pytest.fixture
def make_model(tmp_path: Path, real_tokenizers: Path) -> MakeModel:
    """Makes a shape model that writes the given texts. Returns its folder."""
    return lambda name, texts: teach(make_shape(tmp_path / "models", name, real_tokenizers), texts)


@pytest.fixture
def real(tmp_path: Path, real_data: Path) -> Callable[..., str]:
    """Settings for a source of `count` real problems: the first of a file with the scripted answer, or with any."""

    def source(name: str, count: int, answer: str | None = ANSWER, **columns: str) -> str:
        rows = [json.loads(line) for line in (real_data / f"{name}.jsonl").read_text().splitlines()]
        fitting = [row for row in rows if answer in (None, row["answer"])][:count]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in fitting))
        mapping = ", ".join(f'{field}="{column}"' for field, column in columns.items())
        return f'{{type="file", path="{path}", columns={{{mapping}}}}}'

    return source


def learning(*sections: str) -> list[str]:
    """Training settings for few rows: several steps, and a learning rate that visibly changes the weights."""
    changes = {"global_batch_size": 2, "learning_rate": 1e-4}
    return [f"{section}.{name}={value}" for section in sections for name, value in changes.items()]


def terse(body: dict[str, Any], number: int) -> Answer:
    """As `assist`, but every compressed thinking is short enough for any budget."""
    answer = assist(body, number)
    return Answer(json.dumps({"thinking": "We count."})) if "thinking" in json.loads(answer.content) else answer


def stages(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The last ledger line of each stage."""
    return {line["stage"]: line for line in report["ledger"]}


@pytest.mark.parametrize(
    ("preset", "model"),
    selected(("paper-r1-1.5b", "r1-distill-qwen"), ("paper-deepscaler-1.5b", "r1-distill-llama")),
)
def test_dto(preset: str, model: str, make_model: MakeModel, real: Callable[..., str], tmp_path: Path):
    changes = (
        f"model={make_model(model, THINKERS[model])}",
        f"problems={real('math_train_sample2000', 4)}",
        f"benchmark.problems={real('math500', 2)}",
        *learning("training"),
        FLOAT32,
        f"storage.root={tmp_path}",
    )
    report = json.loads(dto(load(Dto, preset, changes)).read_text())
    lines = stages(report)
    assert lines["sample-traces"]["rows_out"] == 16
    assert lines["train-simpo"]["rows_in"] > 0
    assert [(model["name"], model["samples"]) for model in report["models"]] == [("base", 8), ("dto", 8)]


@pytest.mark.parametrize(
    ("preset", "model", "teacher"),
    selected(("paper-1.5b", "qwen3", "r1-distill-qwen"), ("paper-7b", "r1-distill-llama", "qwen3")),
)
def test_cot_distillation(
    preset: str,
    model: str,
    teacher: str,
    make_model: MakeModel,
    real: Callable[..., str],
    chat: Callable[..., Chat],
    tmp_path: Path,
):
    server = chat(terse)
    benchmarks = {
        "AIME": real("aime24", 1, None),
        "AMC": real("amc23", 1, None),
        "MATH": real("math500", 1),
        "GSM8K": real("gsm8k_test", 1),
        "HMMT": real("difficulty_aime_1983_2023", 1, None),
    }
    changes = (
        f"model={make_model(model, THINKERS[model])}",
        f"teacher.model={make_model(teacher, THINKERS[teacher])}",
        f"problems={real('math_train_sample2000', 8)}",
        *shortened("variants=['sft']"),
        *(f"benchmarks.{n}={b}" for n, b in benchmarks.items()),
        "benchmark_sampling.samples=1",
        "judging.problems=1",
        f"llm.url={server.url}",
        *learning("sft", "dpo"),
        "prompt.template_arguments={enable_thinking=true}",
        FLOAT32,
        f"storage.root={tmp_path}",
    )
    settings = load(CotDistillation, preset, changes)
    report = json.loads(cot_distillation(settings).read_text())
    lines = stages(report)
    assert lines["sample-traces"]["rows_out"] == 16
    assert lines["compress-by-llm"]["rows_out"] > 0
    assert lines["judge-completions"]["rows_out"] == 2 + len(settings.variants)
    assert [model["name"] for model in report["models"]] == ["base", "sft+dpo", *settings.variants]
    assert list(report["others"]) == list(benchmarks)[1:]


@pytest.mark.parametrize(
    ("preset", "model", "teacher"),
    selected(("paper-llama3.1-8b", "llama3.1", "r1-distill-llama"), ("paper-qwen2.5-7b", "qwen3", "r1-distill-qwen")),
)
def test_long_short(
    preset: str,
    model: str,
    teacher: str,
    make_model: MakeModel,
    real: Callable[..., str],
    chat: Callable[..., Chat],
    tmp_path: Path,
):
    server = chat(assist)
    benchmarks = {
        "MATH500": real("math500", 1),
        "AIME24": real("aime24", 1, None),
        "AIME25": real("difficulty_aime_1983_2023", 1, None),
        "AMC23": real("amc23", 1, None),
        "GPQA-Diamond": real("mmlu_pro_sample", 1, None, choices="choices"),
    }
    # The scripted texts vary at random from step to step, so collapse limits are disabled.
    steps = (
        "max_steps=2",
        "problems_per_step=2",
        "num_generations=4",
        "warmup_ratio=0.0",
        "learning_rate=1e-4",
    )
    bounds = ("min_tokens=0.0", "max_tokens=1e6", "min_quality_reward=0.0")
    changes = (
        f"model={make_model(model, turns())}",
        f"teacher={make_model(teacher, THINKERS[teacher])}",
        f"problems={real('math_train_sample2000', 8)}",
        "rollouts.samples=2",
        *(f"benchmarks.{n}={b}" for n, b in benchmarks.items()),
        "benchmark_sampling.samples=1",
        f"llm.url={server.url}",
        *learning("sft"),
        *(f"rl.{one}" for one in steps),
        *(f"rl.collapse_limits.{one}" for one in bounds),
        *shortened("rl.rounds=['long']"),
        FLOAT32,
        f"storage.root={tmp_path}",
    )
    settings = load(LongShort, preset, changes)
    report = json.loads(long_short(settings).read_text())
    lines = stages(report)
    assert lines["sample-traces"]["rows_out"] == 16
    assert lines["build-cold-start-dialogues"]["rows_out"] > 0
    assert lines["reinforce"]["generated_tokens"] > 0
    rounds = [f"round {number}, {who}" for number, who in enumerate(settings.rl.rounds, start=1)]
    assert [model["name"] for model in report["models"]] == ["teacher", "cold start", *rounds]
    assert list(report["others"]) == list(benchmarks)[1:]
