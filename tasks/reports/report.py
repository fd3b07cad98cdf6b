"""The report of a run: figures, intervals and ledger, as JSON, on the terminal and in Prefect.

Knows: outcomes, how a report is laid out. Must not know: how figures arose, or where outcomes come from.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conf.base import Settings
from reasoning.evaluation import break_even, by_base_correctness, comparison, model_figures
from reasoning.records import CostBounds, EvaluatedDialogue, completed
from reasoning.rewards import reward_gain
from reasoning.stats import Interval
from tasks.reports.seed_results import ModelScores, SeedResult
from tasks.runtime.context import RunContext

PLAIN_WIDTH = 160
"""Columns of a table where no terminal says how wide it is: in a log file."""


def write_report(ctx: RunContext, settings: Settings, results: Sequence[SeedResult]) -> dict[str, Any]:
    """Writes `report.json`, prints the tables, publishes Prefect artifacts; several seeds are pooled."""
    main, *others = results[0].eval_sets
    seen = {name: [result.eval_sets[name] for result in results] for name in results[0].eval_sets}
    report = {
        "pipeline": getattr(settings, "pipeline", ""),
        "preset": getattr(settings, "preset", ""),
        "warnings": [warning for result in results for warning in result.warnings],
        "seeds": [result.seed for result in results],
        "benchmark": main,
        **_figures(_pooled(seen[main])),
        "others": {name: _figures(_pooled(seen[name])) for name in others},
        "by_seed": _by_seed(results, main) if len(results) > 1 else [],
        "tables": [
            {"title": note.title + f", seed {one.seed}" * (len(results) > 1), "rows": note.rows, "is_pooled": False}
            for one in results
            for note in one.tables
        ]
        + model_pairs_table([result.dialogues for result in results]),
        "ledger": [line.model_dump() for result in results for line in result.ledger],
        "config": settings.model_dump(mode="json"),
        "versions": {name: _all_of(o.versions[name] for o in results) for name in results[0].versions},
        "written_on": _all_of(result.machine for result in results),
    }
    report = _finite(report)
    path = ctx.directory.save_report(report)
    _print(report, path)
    _publish(report)
    return report


def _all_of(told: Iterable[str]) -> str:
    """Each once: seeds may have run on several machines."""
    return "; ".join(dict.fromkeys(told))


def model_pairs_table(seeds: Sequence[Mapping[str, Sequence[EvaluatedDialogue]]]) -> list[dict[str, Any]]:
    """How couples talked, all seeds together; nothing where there were none."""
    states = {name: completed(row for seed in seeds for row in seed[name]) for name in seeds[0]}
    if not states:
        return []
    first = next(iter(states))
    rows = [_model_pair_row(name, rows, reward_gain(rows, states[first])) for name, rows in states.items()]
    return [{"title": f"Dialogues; rewards beside those of {first}", "rows": rows, "is_pooled": True}]


def _model_pair_row(name: str, rows: Sequence[EvaluatedDialogue], gained: tuple[float, Interval]) -> dict[str, str]:
    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(rows)

    more, (low, high) = gained
    return {
        "pair": name,
        "turns": f"{mean(len(row.calls) for row in rows):.2f}",
        "tokens of long": f"{mean(sum(call.tokens for call in row.long_calls) for row in rows):.1f}",
        "of short": f"{mean(sum(call.tokens for call in row.short_calls) for row in rows):.1f}",
        "prompt tokens": f"{mean(row.prompt_tokens for row in rows):.0f}",
        "well-formed %": f"{100 * mean(row.is_well_formed for row in rows):.1f}",
        "cap hit %": f"{100 * mean(row.hit_cap for row in rows):.2f}",
        "reward": f"{more:+.3f} [{low:+.3f}, {high:+.3f}]",
    }


def _by_seed(results: Sequence[SeedResult], main: str) -> list[dict[str, Any]]:
    """Each seed's own figures: how much one training differs from another does not show in the pooled intervals."""
    return [{"seed": result.seed, **_figures(result.eval_sets[main])} for result in results]


def _pooled(seeds: Sequence[Sequence[ModelScores]]) -> list[ModelScores]:
    """The scores of all seeds together. The problem stays the unit: stories of different seeds are different problems,
    those of a file or of the hub are the same, with more samples each."""
    return [
        same[0].model_copy(
            update={
                "rows": tuple(row for item in same for row in item.rows),
                "build_flops": sum(item.build_flops for item in same) / len(same),
                "trained_on": sum(item.trained_on for item in same) / len(same),
            }
        )
        for same in zip(*seeds, strict=True)
    ]


def _figures(scored: Sequence[ModelScores]) -> dict[str, Any]:
    """`models`; `comparisons`, each against the first; and `vs_method`, each control against the method."""
    base, method = scored[0], next(item for item in scored if item.role == "method")
    controls = [item for item in scored if item.role == "control"]
    return {
        "models": [model_figures(item.name, item.role, item.rows, item.shape) for item in scored],
        "comparisons": [_compared(item, base) for item in scored[1:]],
        "vs_method": [comparison(item.name, item.rows, method.name, method.rows) for item in controls],
    }


def _compared(item: ModelScores, base: ModelScores) -> dict[str, Any]:
    return {
        **comparison(item.name, item.rows, base.name, base.rows),
        "by_base_correctness": by_base_correctness(item.rows, base.rows, base.shape) if item.independent else None,
        "break_even": break_even(item.build_flops, item.rows, base.rows, base.shape),
        "trained_on": item.trained_on,
    }


def _finite(value: Any) -> Any:
    """Bounds of intervals over a single problem are infinite: None in JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """One line per model, as a person reads it."""
    against = {entry["model"]: entry for entry in report["comparisons"]}
    any_failed = any(model["failed"] for model in report["models"])
    rows = []
    for model in report["models"]:
        pair = against.get(model["name"])
        rows.append(
            {
                "model": model["name"],
                "role": model["role"],
                "accuracy %": percent(model["accuracy"], model["accuracy_ci"]),
                "tokens": f"{model['mean_tokens']:.1f}",
                "accuracy − base, points": percent(pair["accuracy_delta"], pair["accuracy_delta_ci"]) if pair else "",
                "tokens / base": ratio(pair["tokens_ratio"], pair["tokens_ratio_ci"]) if pair else "",
                "efficiency": f"{pair['efficiency']:.2f}" if pair and pair["efficiency"] else "",
                "truncated %": f"{100 * model['truncated']:.1f}",
                **({"failed %": f"{100 * model['failed']:.2f}"} if any_failed else {}),
                "built for, TFLOP": f"{pair['break_even']['build_flops'] / 1e12:.2f}" if pair else "",
                "paid back after, queries": queries(pair["break_even"]) if pair else "",
            }
        )
    return rows


def percent(value: float, interval: Sequence[float | None]) -> str:
    low, high = interval
    return (
        f"{100 * value:.1f}"
        if low is None or high is None
        else f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    )


def queries(even: dict[str, Any]) -> str:
    if even["queries"] is None:
        return "not for certain"
    low, high = even["queries_ci"]
    return f"{even['queries']:,.0f} [{low:,.0f}, {high:,.0f}]"


def ratio(value: float, interval: Sequence[float | None]) -> str:
    low, high = interval
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _ledger_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    paid = any(line["money"] for line in report["ledger"])
    return [
        {
            "stage": line["stage"],
            "cached": "yes" if line["cached"] else "",
            "in": str(line["rows_in"]),
            "out": str(line["rows_out"]),
            "dropped": ", ".join(f"{reason} {count}" for reason, count in line["dropped"].items()),
            "counted": ", ".join(f"{name} {count}" for name, count in line["counts"].items()),
            "prompt tokens": f"{line['prompt_tokens']:,}",
            "from cache": f"{line['cached_prompt_tokens']:,}",
            "generated": f"{line['generated_tokens']:,}",
            "seconds": f"{line['seconds']:.0f}",
            "FLOPs": f"{line['flops']:.2g}",
            "unverified": str(line["unverified"]),
        }
        | ({"money": f"{line['money']:.4g}"} if paid else {})
        for line in report["ledger"]
    ]


def engine_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """One line per stage that used an engine: its work beside the naive way and the floor, and how busy it was."""
    used = [line for line in report["ledger"] if line["engine_busy"] or line["cost_bounds"]]
    return [_engine_row(line) for line in used]


def _engine_row(line: dict[str, Any]) -> dict[str, str]:
    bill = CostBounds(**line["cost_bounds"] or {})
    prefilled = line["prompt_tokens"] - line["cached_prompt_tokens"]
    # What the store gave was not prefilled here: beside all that the stage needs, it would look like thrift.
    drawn = 1 - line["reused_completions"] / bill.rollouts if bill.rollouts else 0.0
    seconds = line["engine_busy"] + line["engine_idle"]
    return {
        "stage": line["stage"],
        "from the store": f"{line['reused_completions']:,}",
        "rollouts": f"{bill.rollouts:,}" if bill.rollouts else "",
        "÷ naive": times(bill.rollouts, bill.rollouts_naive),
        "÷ floor": times(bill.rollouts, bill.rollouts_floor),
        "prompt tokens computed": f"{prefilled:,}",
        "÷ naive ": times(prefilled, drawn * bill.prefill_naive),
        "÷ floor ": times(prefilled, drawn * bill.prefill_floor),
        "engine seconds": f"{seconds:.1f}",
        "busy %": f"{100 * line['engine_busy'] / seconds:.1f}" if seconds else "",
        "tail seconds": f"{line['engine_tail']:.1f}",
    }


def times(value: float, reference: float) -> str:
    return f"{value / reference:.3f}" if value and reference else ""


def benchmark_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """One line per model, one column per benchmark: accuracy and mean tokens, as the papers print them."""
    sets = {report["benchmark"]: report, **report["others"]}
    return [
        {"model": model["name"]} | {name: _cell(found, model["name"]) for name, found in sets.items()}
        for model in report["models"]
    ]


def _cell(found: dict[str, Any], name: str) -> str:
    """Nothing for a model that was not examined there."""
    told = (f"{100 * m['accuracy']:.1f} ({m['mean_tokens']:.0f})" for m in found["models"] if m["name"] == name)
    return next(told, "")


def _print(report: dict[str, Any], path: Path) -> None:
    for warning in report["warnings"]:
        _console().print(Text(f"Warning: {warning}", style="bold"), soft_wrap=True)
    print_table("Result", summary_rows(report))
    if report["others"]:
        print_table("Pass@1, % (mean tokens)", benchmark_rows(report))
    for note in report["tables"]:
        print_table(note["title"], note["rows"])
    print_table("Ledger", _ledger_rows(report))
    print_table("Engine", engine_rows(report))
    _console().print(f"Report: {path}", soft_wrap=True)


def print_table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """On the terminal; `rows` are plain text, whatever they hold."""
    if not rows:
        return
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row.values()))
    _console().print(table)


def harmless(text: str) -> str:
    """Without what would command a terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def artifact_key(name: str) -> str:
    """`name` as Prefect wants the keys of artifacts: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _publish(report: dict[str, Any]) -> None:
    key = artifact_key(f"{report['pipeline']}-{report['preset']}")
    create_table_artifact(summary_rows(report), key=f"{key}-result", description="95 % intervals, clustered by problem")
    create_table_artifact(_ledger_rows(report), key=f"{key}-ledger", description="What each stage took and cost")
    create_table_artifact(engine_rows(report), key=f"{key}-engine", description="Rollouts beside naive and the floor")
    for note in report["tables"]:
        create_table_artifact(note["rows"], key=artifact_key(f"{key}-{note['title']}"), description=note["title"])
    lines = [
        f"- **{entry['model']}** against {entry['against']}: tokens × {entry['tokens_ratio']:.3f}, "
        f"accuracy {100 * entry['accuracy_delta']:+.1f} points"
        for entry in report["comparisons"]
    ]
    warnings = [f"**Warning:** {warning}\n" for warning in report["warnings"]]
    create_markdown_artifact("\n".join(["# Result", *warnings, *lines]), key=f"{key}-summary")
