"""A small report, as `write_report` builds it, of scores that can be checked by hand."""

from typing import Any

import pandas as pd

from reasoning.cost import Shape
from reasoning.evaluation import score_frame
from reasoning.records import CostBounds, Score, StageCount, Verdict
from tasks.reports.pooling import figures, figures_by_seed

SHAPE = Shape(parameters=10, layers=1, attention_width=1)
MAIN, OTHER = "main", "far"


def score(problem: str, tokens: int, right: bool, level: int, subject: str | None) -> Score:
    return Score(
        problem_id=problem,
        level=level,
        subject=subject,
        sample=0,
        prompt_tokens=3,
        tokens=tokens,
        truncated=False,
        verdict=Verdict.RIGHT if right else Verdict.WRONG,
    )


def of_model(seed: int, benchmark: str, model: str, *rows: tuple[str, int, bool, int, str | None]) -> pd.DataFrame:
    frame = score_frame([score(*row) for row in rows], SHAPE)
    return frame.assign(seed=seed, benchmark=benchmark, model=model)


def scores() -> pd.DataFrame:
    """Problem "a" is in both seeds, "b" and "c" in one each."""
    return pd.concat(
        [
            of_model(0, MAIN, "base", ("a", 10, True, 1, "algebra"), ("b", 20, False, 2, "geometry")),
            of_model(0, MAIN, "dto", ("a", 5, True, 1, "algebra"), ("b", 10, True, 2, "geometry")),
            of_model(0, MAIN, "sft", ("a", 8, False, 1, "algebra"), ("b", 20, False, 2, "geometry")),
            of_model(0, OTHER, "base", ("z", 30, False, 9, None)),
            of_model(0, OTHER, "dto", ("z", 15, True, 9, None)),
            of_model(1, MAIN, "base", ("a", 30, False, 1, "algebra"), ("c", 40, True, 2, "geometry")),
            of_model(1, MAIN, "dto", ("a", 5, False, 1, "algebra"), ("c", 20, True, 2, "geometry")),
            of_model(1, MAIN, "sft", ("a", 12, True, 1, "algebra"), ("c", 40, True, 2, "geometry")),
            of_model(1, OTHER, "base", ("y", 30, False, 9, None)),
            of_model(1, OTHER, "dto", ("y", 25, True, 9, None)),
        ],
        ignore_index=True,
    )


def models() -> pd.DataFrame:
    rows = [
        (seed, benchmark, name, role, independent, seed * 1e12 + flops, 10.0 + seed)
        for seed in (0, 1)
        for benchmark in (MAIN, OTHER)
        for name, role, independent, flops in (
            ("base", "base", True, 0.0),
            ("dto", "method", True, 2e12),
            ("sft", "control", False, 4e12),
        )
        if (benchmark, name) != (OTHER, "sft")
    ]
    columns = ["seed", "benchmark", "model", "role", "independent", "build_flops", "trained_on"]
    return pd.DataFrame(rows, columns=columns)


def ledger_line(stage: str, **counts: Any) -> dict[str, Any]:
    count = StageCount(**{"rows_in": 4, "rows_out": 3, "dropped": {"too-long": 1}} | counts)
    return count.model_dump() | {"stage": stage, "version": "1", "cached": True, "artifact": "", "digest": "d"}


def report() -> dict[str, Any]:
    bounds = CostBounds(rollouts=8, rollouts_floor=4, rollouts_naive=32, prefill_floor=60, prefill_naive=600)
    return {
        "pipeline": "dto",
        "preset": "tiny",
        "warnings": ["a warning"],
        "seeds": [0, 1],
        "benchmark": MAIN,
        **figures(scores(), models(), benchmark=MAIN),
        "others": {OTHER: figures(scores(), models(), benchmark=OTHER)},
        "by_seed": figures_by_seed(scores(), models(), MAIN),
        "tables": [
            {"title": "Grades", "rows": [{"model": "dto", "a|b": "[red]4"}, {"model": "sft"}], "is_pooled": True}
        ],
        "ledger": [
            ledger_line("build-pairs", counts={"pairs": 2}),
            ledger_line(
                "probe-prefixes",
                cost_bounds=bounds,
                reused_completions=4,
                prompt_tokens=100,
                cached_prompt_tokens=40,
                engine_busy=3.0,
                engine_idle=1.0,
            ),
        ],
        "written_on": "2 CPU cores",
    }
