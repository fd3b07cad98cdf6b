"""The paper presets on shape models, with the real vLLM and TRL and real problems.

The settings are a preset's, except for sizes, paths, the server's precision, and learning rates for few rows.
`BREVITY_SHAPES=all` runs all presets with all trainings. Otherwise CoT distillation runs here once, DTO in
test_end_to_end_stack.py and Long⊗Short in test_two_models_stack.py.
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
from tests.flows.real_runs import FLOAT32, Shapes, dto_changes, learning, long_short_changes, stages
from tests.flows.world import assist
from tests.models.chat import Answer, Chat

pytestmark = pytest.mark.usefixtures("prefect")
RUN_ALL = os.environ.get("BREVITY_SHAPES") == "all"


@pytest.fixture
def small_shapes(tmp_path: Path, real_tokenizers: Path, real_data: Path) -> Shapes:
    return Shapes(tmp_path, real_tokenizers, real_data)


def selected(*presets: tuple[str, ...]) -> Sequence[tuple[str, ...]]:
    """All presets, or the first one in a short run."""
    return presets if RUN_ALL else presets[:1]


def terse(body: dict[str, Any], number: int) -> Answer:
    """As `assist`, but every compressed thinking is short enough for any budget."""
    answer = assist(body, number)
    return Answer(json.dumps({"thinking": "We count."})) if "thinking" in json.loads(answer.content) else answer


@pytest.mark.parametrize(("preset", "model"), selected(("paper-1.5b", "qwen3"), ("paper-7b", "r1-distill-llama")))
def test_cot_distillation(preset: str, model: str, small_shapes: Shapes, chat: Callable[..., Chat], tmp_path: Path):
    """On real problems with real traces, in the columns of OpenMathReasoning."""
    server = chat(terse)
    benchmarks = {
        "AIME": small_shapes.problems("aime24", 1, None),
        "AMC": small_shapes.problems("amc23", 1, None),
        "MATH": small_shapes.problems("math500", 1),
        "GSM8K": small_shapes.problems("gsm8k_test", 1),
        "HMMT": small_shapes.problems("difficulty_aime_1983_2023", 1, None),
    }
    changes = (
        f"model={small_shapes.model(model)}",
        f"problems={small_shapes.traced_problems(8 if RUN_ALL else 4)}",
        *([] if RUN_ALL else ["variants=['sft']"]),
        *(f"benchmarks.{n}={b}" for n, b in benchmarks.items()),
        "benchmark_sampling.samples=1",
        "evaluation.samples={}",
        "judging.problems=1",
        f"llm.url={server.url}",
        *learning("sft", "dpo"),
        "prompt.template_arguments={enable_thinking=true}",
        FLOAT32,
        f"storage.root={tmp_path}",
    )
    settings = load(CotDistillation, preset, changes)
    report = json.loads(cot_distillation(settings=settings).read_text())
    lines = stages(report)
    assert lines["read-file-traces"]["rows_out"] > 4
    assert "sample-traces" not in lines
    assert lines["compress-by-llm"]["rows_out"] > 0
    assert lines["judge-completions"]["rows_out"] == 2 + len(settings.variants)
    assert [model["name"] for model in report["models"]] == ["base", "sft+dpo", *settings.variants]
    assert list(report["others"]) == list(benchmarks)[1:]


if RUN_ALL:

    @pytest.mark.parametrize(
        ("preset", "model"), [("paper-r1-1.5b", "r1-distill-qwen"), ("paper-deepscaler-1.5b", "r1-distill-llama")]
    )
    def test_dto(preset: str, model: str, small_shapes: Shapes, tmp_path: Path):
        settings = load(Dto, preset, (*dto_changes(small_shapes, model), f"storage.root={tmp_path}"))
        report = json.loads(dto(settings=settings).read_text())
        lines = stages(report)
        assert lines["sample-traces"]["rows_out"] == 16
        assert lines["train-simpo"]["rows_in"] > 0
        assert [(model["name"], model["samples"]) for model in report["models"]] == [("base", 8), ("dto", 8)]

    @pytest.mark.parametrize(
        ("preset", "model", "teacher"),
        [("paper-llama3.1-8b", "llama3.1", "r1-distill-llama"), ("paper-qwen2.5-7b", "qwen3", "r1-distill-qwen")],
    )
    def test_long_short(
        preset: str, model: str, teacher: str, small_shapes: Shapes, chat: Callable[..., Chat], tmp_path: Path
    ):
        changes = long_short_changes(small_shapes, model, teacher, chat(assist).url)
        settings = load(LongShort, preset, (*changes, f"storage.root={tmp_path}"))
        report = json.loads(long_short(settings=settings).read_text())
        lines = stages(report)
        assert lines["sample-traces"]["rows_out"] == 16
        assert lines["build-cold-start-dialogues"]["rows_out"] > 0
        assert lines["train-grpo"]["generated_tokens"] > 0
        rounds = [f"round {number}, {who}" for number, who in enumerate(settings.rl.rounds, start=1)]
        assert [model["name"] for model in report["models"]] == ["teacher", "cold start", *rounds]
