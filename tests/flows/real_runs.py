"""Settings of small runs on the real vLLM and TRL: a paper preset on shape models with real problems, or, where those
are absent, a preset of the bundled model.

A shape model's texts are scripted (`tests.bigrams`), so figures say nothing about behaviour.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bigrams import ANSWER, ScriptedText, teach, traces, turns
from tests.shapes import make_shape

FLOAT32 = "engine.dtype='float32'"
"""Half precision is many times slower on CPUs without native support."""


def all_tokens(*sections: str) -> list[str]:
    """Samples from all tokens: on a CPU, sorting 150,000 logits for top_p takes most of a token's time."""
    return [f"{section}.top_p=1.0" for section in sections]


TEXTS = {
    "r1-distill-qwen": traces("<think>\n", ["<｜end▁of▁sentence｜>"]),
    "r1-distill-llama": traces("<think>\n", ["<｜end▁of▁sentence｜>"]),
    "qwen3": traces("<think>", ["<|im_end|>", "<|endoftext|>"]),
}
"""Texts of the shapes that solve problems alone."""


class Shapes:
    """Makes shape models and sources of real problems in a folder."""

    def __init__(self, work: Path, tokenizers: Path, data: Path):
        self._work, self._tokenizers, self._data = work, tokenizers, data

    def model(self, name: str, texts: list[ScriptedText] | None = None) -> Path:
        """A shape model that writes `texts`. Returns its folder."""
        return teach(make_shape(self._work / "models", name, self._tokenizers), texts or TEXTS[name])

    def problems(self, name: str, count: int, answer: str | None = ANSWER, **columns: str) -> str:
        """A source of `count` real problems: the first of a file with the scripted answer, or with any."""
        rows = [json.loads(line) for line in (self._data / f"{name}.jsonl").read_text().splitlines()]
        fitting = [row for row in rows if answer in (None, row["answer"])][:count]
        path = self._work / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in fitting))
        mapping = ", ".join(f'{field}="{column}"' for field, column in columns.items())
        return f'{{type="file", path="{path}", columns={{{mapping}}}}}'

    def traced_problems(self, count: int) -> str:
        """A source of real problems with the scripted answer and their real traces, as OpenMathReasoning's rows."""
        path, rows = self._work / "traced.jsonl", list[dict[str, Any]]()
        for name in ("traces_r1_1p5b_math_3samples", "traces_mip_gsm8k_4models"):
            rows += map(json.loads, (self._data / f"{name}.jsonl").read_text().splitlines())
        fitting = [row for row in rows if row["gold"] == ANSWER and "</think>" in row["trace"]]
        fitting.sort(key=lambda row: len(row["trace"]))  # short ones first: training on a CPU is slow
        names = list(dict.fromkeys(row["problem"] for row in fitting))[:count]
        written = [
            {
                "expected_answer": row["gold"],
                "problem_type": "has_answer_extracted",
                "problem_source": row["dataset"],
                "generation_model": row["model"],
                "pass_rate_72b_tir": "n/a",
                "problem": row["problem"],
                "generated_solution": row["trace"],
                "inference_mode": "cot",
            }
            for row in fitting
            if row["problem"] in names
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in written))
        columns = 'id="", answer="expected_answer", subject="problem_source"'
        return f'{{type="file", path="{path}", columns={{{columns}}}}}'


def learning(*sections: str) -> list[str]:
    """Training settings for few rows: several steps, and a learning rate that visibly changes the weights."""
    changes = {"global_batch_size": 2, "learning_rate": 1e-4}
    return [f"{section}.{name}={value}" for section in sections for name, value in changes.items()]


def stages(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The last ledger line of each stage."""
    return {line["stage"]: line for line in report["ledger"]}


def options(changes: Sequence[str]) -> list[str]:
    """Settings as options of the command line."""
    return [part for change in changes for part in ("--set", change)]


def dto_changes(shapes: Shapes, model: str) -> list[str]:
    """Settings of DTO on four problems."""
    return [
        f"model={shapes.model(model)}",
        f"problems={shapes.problems('math_train_sample2000', 4)}",
        f"benchmark.problems={shapes.problems('math500', 2)}",
        f"benchmark.others={{MMLU-Pro={shapes.problems('mmlu_pro_sample', 1, None, choices='choices')}}}",
        "evaluation.samples={}",
        *learning("training"),
        *all_tokens("sampling", "probing.sampling", "finalizing.sampling", "benchmark.sampling"),
        FLOAT32,
    ]


def long_short_changes(shapes: Shapes, model: str, teacher: str, llm_url: str) -> list[str]:
    """Settings of Long⊗Short on eight problems, with two steps of GRPO a round."""
    benchmarks = {
        "MATH500": shapes.problems("math500", 1),
        "AIME24": shapes.problems("aime24", 1, None),
        "AIME25": shapes.problems("difficulty_aime_1983_2023", 1, None),
        "AMC23": shapes.problems("amc23", 1, None),
        "GPQA-Diamond": shapes.problems("mmlu_pro_sample", 1, None, choices="choices"),
    }
    steps = ("max_steps=2", "problems_per_step=2", "num_generations=2", "warmup_ratio=0.0", "learning_rate=1e-4")
    # The scripted texts vary at random from step to step, so collapse limits are disabled.
    bounds = ("min_tokens=0.0", "max_tokens=1e6", "min_quality_reward=0.0")
    return [
        f"model={shapes.model(model, turns())}",
        f"teacher={shapes.model(teacher)}",
        f"problems={shapes.problems('math_train_sample2000', 8)}",
        "rollouts.samples=2",
        *(f"benchmarks.{name}={source}" for name, source in benchmarks.items()),
        "benchmark_sampling.samples=1",
        "evaluation={}",
        f"llm.url={llm_url}",
        *learning("sft"),
        *all_tokens("sampling", "rollouts"),
        *(f"rl.{one}" for one in steps),
        *(f"rl.collapse_limits.{one}" for one in bounds),
        FLOAT32,
    ]
