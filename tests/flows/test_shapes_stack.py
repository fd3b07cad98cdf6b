"""The paper's presets on shape models, through the real vLLM and TRL, with real problems.

Everything is as a preset says but for the number of problems and of RL's steps, and where models, problems and the
auxiliary endpoint are. What the models say is scripted (`tests.bigrams`): no figure here is one of behaviour.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from conf.load import load
from conf.settings import Dto
from flows.dto import run_dto
from tasks.workplace import Workplace
from tests.bigrams import ANSWER, teach, traces
from tests.shapes import make_shape

SMALL = ("engine.dtype='float32'",)
"""In half precision a processor without such arithmetic takes many times as long."""
pytestmark = pytest.mark.usefixtures("prefect")
THINKERS = {
    "r1-distill-qwen": ("<think>\n", ["<｜end▁of▁sentence｜>"]),
    "r1-distill-llama": ("<think>\n", ["<｜end▁of▁sentence｜>"]),
    "qwen3": ("<think>", ["<|im_end|>", "<|endoftext|>"]),
}
"""Shapes that solve problems by themselves: what their prompts end with, and their replies."""


@pytest.fixture
def thinker(tmp_path: Path, real_tokenizers: Path) -> Callable[[str], Path]:
    """Makes a shape model that solves problems by itself."""

    def make(name: str) -> Path:
        return teach(make_shape(tmp_path / "thinkers", name, real_tokenizers), traces(*THINKERS[name]))

    return make


@pytest.fixture
def real(tmp_path: Path, real_data: Path) -> Callable[..., str]:
    """A source of real problems, as settings name it: the first of a file that have the scripted answer, or any."""

    def source(name: str, count: int, answer: str | None = ANSWER, **columns: str) -> str:
        rows = [json.loads(line) for line in (real_data / f"{name}.jsonl").read_text().splitlines()]
        fitting = [row for row in rows if answer in (None, row["answer"])][:count]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in fitting))
        told = ", ".join(f'{field}="{column}"' for field, column in columns.items())
        return f'{{type="file", path="{path}", columns={{{told}}}}}'

    return source


def learning(*sections: str) -> list[str]:
    """Several steps from few rows, at a rate that a server sees."""
    told = {"batch": 8, "learning_rate": 1e-4, "bf16": "false"}
    return [f"{section}.{name}={value}" for section in sections for name, value in told.items()]


def run(body: Callable[[Workplace, Any], Path], settings: Any) -> dict[str, Any]:
    """The report of a run."""
    with Workplace(settings.pipeline, settings.storage, settings.engine) as place:

        @flow(name="test")
        def whole() -> Path:
            return body(place, settings)

        return json.loads(whole().read_text())


@pytest.mark.parametrize(
    ("preset", "shape"), [("paper-r1-1.5b", "r1-distill-qwen"), ("paper-deepscaler-1.5b", "r1-distill-llama")]
)
def test_dto(preset: str, shape: str, tmp_path: Path, thinker: Callable[[str], Path], real: Callable[..., str]):
    changes = (
        f"model={thinker(shape)}", f"storage.root={tmp_path / 'runs'}", f"problems={real('math_train_sample2000', 8)}",
        f"benchmark.problems={real('math500', 4)}", *SMALL, *learning("training"),
    )  # fmt: skip
    report = run(run_dto, load(Dto, preset, changes))
    lines = {line["stage"]: line for line in report["ledger"]}
    assert lines["sample-traces"]["rows_out"] == 32
    assert lines["train-simpo"]["rows_in"] > 0
    assert [(model["name"], model["samples"]) for model in report["models"]] == [("base", 16), ("dto", 16)]
