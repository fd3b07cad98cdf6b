"""Reports and seed results as DataFrames: one row per completion, per model, per comparison, per step.

Figures are numbers with the bounds of their 95 % interval in `..._low` and `..._high`; NaN where there is no figure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from reasoning.evaluation import score_frame
from reasoning.records import CostBounds

if TYPE_CHECKING:  # the report of a run is shown without Prefect
    from tasks.reports.seed_results import SeedResult


def _bounded(*names: str) -> list[str]:
    return [name + end for name in names for end in ("", "_low", "_high")]


GROUPS = ("level", "subject", "budget")
FIGURES = [*_bounded("accuracy", "mean_tokens"), "truncated", "failed", "problems", "samples"]
MODELS = ["model", "role", *FIGURES, "attention_flops"]
PAIRED = ["model", "against", *_bounded("accuracy_delta", "tokens_ratio"), "efficiency", "aes"]
BY_BASE = ["attention_flops_right", "attention_flops_wrong", "wrong_to_right", "wrong_to_right_of_base"]
BREAK_EVEN = ["build_flops", *_bounded("saved_flops_per_query", "queries")]
COMPARISONS = [*PAIRED, *BY_BASE, *BREAK_EVEN, "trained_on"]
TEXT = {"model", "role", "against", "benchmark", "subject"}
COUNTS = {"problems", "samples"}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One dictionary per row, by the names of the columns."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


def seed_scores(results: Sequence[SeedResult]) -> pd.DataFrame:
    """All scores, one row per completion: `seed`, `benchmark`, `model`, and the columns of `score_frame`."""
    return pd.concat(
        [
            score_frame(model.rows, model.shape).assign(seed=result.seed, benchmark=benchmark, model=model.name)
            for result in results
            for benchmark, models in result.eval_sets.items()
            for model in models
        ],
        ignore_index=True,
    )


def seed_models(results: Sequence[SeedResult]) -> pd.DataFrame:
    """One row per seed, benchmark and model: what it is (`role`, `independent`) and what building it took."""
    return pd.DataFrame(
        [
            {"seed": result.seed, "benchmark": benchmark}
            | {"model": model.name, "role": model.role, "independent": model.independent}
            | {"build_flops": model.build_flops, "trained_on": model.trained_on}
            for result in results
            for benchmark, models in result.eval_sets.items()
            for model in models
        ]
    )


def report_frames(report: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The figures of `report.json`, by name. Raises LookupError, TypeError or ValueError if it is no report.

    `models`, `comparisons` (against the base), `vs_method` (controls against the method), `by_level`, `by_subject`,
    `by_budget`: over all seeds, a column `benchmark` first. `by_seed`: models and comparisons of each seed. `ledger`:
    one row per step. The marker pipeline's report has `sentence_openers` and `ledger`.
    """
    if "sentence_openers" in report:
        return {"sentence_openers": pd.DataFrame(report["sentence_openers"]), "ledger": ledger_frame(report["ledger"])}
    benchmarks = {report["benchmark"]: report, **report["others"]}
    groups = {
        f"by_{group}": _stacked(benchmarks, f"by_{group}", [group, "model", "role", *FIGURES]) for group in GROUPS
    }
    seeds = {entry["seed"]: entry for entry in report["by_seed"]}
    by_seed = _stacked(seeds, "models", MODELS, "seed"), _stacked(seeds, "comparisons", COMPARISONS, "seed")
    return {
        "models": _stacked(benchmarks, "models", MODELS),
        "comparisons": _stacked(benchmarks, "comparisons", COMPARISONS),
        "vs_method": _stacked(benchmarks, "vs_method", PAIRED),
        **groups,
        "by_seed": by_seed[0].merge(by_seed[1], how="left", on=["seed", "model"]),
        "ledger": ledger_frame(report["ledger"]),
    }


def result_frame(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per benchmark and model: the model's own figures, and those against the base (NaN for the base)."""
    return frames["models"].merge(frames["comparisons"], how="left", on=["benchmark", "model"])


def _stacked(
    parts: Mapping[Any, Mapping[str, Any]], key: str, columns: list[str], by: str = "benchmark"
) -> pd.DataFrame:
    """The entries under `key` of all parts, the part's name in the column `by`."""
    entries = [{by: name, **flat} for name, part in parts.items() for flat in _entries(part, key)]
    frame = pd.DataFrame(entries, columns=[by, *columns])
    return frame.astype({name: "float64" for name in frame if name not in TEXT | COUNTS | {by, "level", "budget"}})


def _entries(part: Mapping[str, Any], key: str) -> Iterable[dict[str, Any]]:
    """Rows of one part. A group's key is JSON text; levels and budgets are numbers."""
    if key not in {f"by_{group}" for group in GROUPS}:
        return [_flat(entry) for entry in part[key]]
    group = key.removeprefix("by_")
    return [
        {
            **_flat(figures),
            group: name if group == "subject" else int(name),
            "model": model["name"],
            "role": model["role"],
        }
        for model in part["models"]
        for name, figures in model.get(key, {}).items()
    ]


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Nested figures and the bounds of intervals, each as a column of its own."""
    flat = {**entry, **(entry.get("by_base_correctness") or {}), **entry.get("break_even", {})}
    bounds = {name.removesuffix("_ci"): value or (None, None) for name, value in flat.items() if name.endswith("_ci")}
    lows, highs = ({f"{name}_{end}": ci[at] for name, ci in bounds.items()} for at, end in enumerate(("low", "high")))
    return {"model": entry.get("name")} | flat | lows | highs


def ledger_frame(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per step. `dropped` and `counts` are JSON texts; the fields of `cost_bounds` are columns, NaN without."""
    frame = pd.DataFrame([dict(line) for line in lines])
    if frame.empty:
        return frame
    bounds = pd.DataFrame([line or {} for line in frame.pop("cost_bounds")], columns=list(CostBounds.model_fields))
    texts = {
        name: frame[name].map(lambda counts: json.dumps(counts, ensure_ascii=False)) for name in ("dropped", "counts")
    }
    columns = ["stage", *frame.columns.drop("stage")]
    return pd.concat([frame.assign(**texts)[columns], bounds.astype("float64")], axis=1)
