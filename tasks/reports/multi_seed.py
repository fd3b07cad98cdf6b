"""Results as readers of docs/results.md meet them: a Markdown table, a plot, and what both are made of.

Knows: a report's layout, Markdown, matplotlib. Must not know: how figures arose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from conf.errors import ReadableError
from conf.multi_seed import MultiSeed
from models.files import atomic_write
from tasks.reports.report import percent, queries, ratio
from tasks.reports.seed_results import SeedResult, SeedResultError, load_seed_result, save_seed_result
from tasks.runtime.context import RunContext

START, END = "<!-- claims of {}: written by `make claims` -->", "<!-- end of claims of {} -->"
RESULTS, PLOT, OUTCOMES = "docs/results.md", "docs/claims-{}.svg", "docs/outcomes"


class MissingMarkers(ReadableError):
    """A file of results without the two lines between which the table goes."""


def validate_markers(target: str, pipeline: str) -> None:
    """Raises MissingMarkers when docs/results.md in `target` cannot take the table."""
    results = Path(target) / RESULTS
    start, end = START.format(pipeline), END.format(pipeline)
    text = results.read_text() if results.is_file() else ""
    if target and not 0 <= text.find(start) < text.find(end):
        raise MissingMarkers(f"{results}: no lines {start!r} and {end!r}; write them where the results belong")


def load_earlier_results(ctx: RunContext, settings: MultiSeed) -> dict[int, SeedResult]:
    """Of the seeds that were examined before, by seed. Raises OutcomeError for those of other claims."""
    folder = Path(settings.reuse_results_from)
    if not settings.reuse_results_from:
        return {}
    if not folder.is_dir():
        raise SeedResultError(f"{folder}: no such folder; correct earlier, or leave it out to run all seeds")
    base = ctx.resources.model(settings.of.model).digest
    found = {seed: load_seed_result(folder, settings.of, seed, base) for seed in settings.seeds}
    for seed in (seed for seed, result in found.items() if result):
        ctx.progress.note(f"seed {seed}: examined before, read from {folder}")
    return {seed: result for seed, result in found.items() if result}


def publish_seed_result(ctx: RunContext, result: SeedResult, target: str) -> None:
    """Into the run's folder, and into `target` where it is named."""
    save_seed_result(result, [ctx.directory.path, Path(target) / OUTCOMES] if target else [ctx.directory.path])


def publish_report(ctx: RunContext, report: dict[str, Any], target: str, pipeline: str) -> None:
    """Writes `claims.md` and `claims.svg` into the run's folder, and into `target` where it is named.

    Raises MissingMarkers.
    """
    table, plot = report_markdown(report), ctx.directory.path / "claims.svg"
    (ctx.directory.path / "claims.md").write_text(table)
    draw_pareto(report, plot)
    if target:
        validate_markers(target, pipeline)
        start, end, shown = START.format(pipeline), END.format(pipeline), PLOT.format(pipeline)
        before, _, rest = (Path(target) / RESULTS).read_text().partition(start)
        after = rest.partition(end)[2]
        picture = f"![accuracy against tokens, every model]({Path(shown).name})"
        atomic_write(Path(target) / RESULTS, f"{before}{start}\n{table}\n{picture}\n{end}{after}")
        atomic_write(Path(target) / shown, plot.read_text())


def report_markdown(report: dict[str, Any]) -> str:
    """The pooled figures as Markdown: what was run, one line per model, and the same for the other benchmarks."""
    base = report["models"][0]
    seeds = ", ".join(map(str, report["seeds"]))
    head = (
        f"Seeds {seeds} together: {base['problems']} problems, {base['samples']} samples a model, on "
        f"{report['written_on']}. 95 % intervals are clustered by problem, differences paired; they are about these "
        f"trainings, one a seed and model"
    )
    shown = ": how much trainings differ shows in the column by seed.\n\n" if report["by_seed"] else ".\n\n"
    text = head + shown + _table(report["models"], report["comparisons"], report["by_seed"])
    if report["vs_method"]:
        text += f"\nThe controls beside {report['vs_method'][0]['against']}, on the same problems:\n\n"
        text += _markdown([_beside(pair) for pair in report["vs_method"]])
    for note in report["tables"]:
        if note["is_pooled"]:
            text += f"\n{note['title']}:\n\n{_markdown(note['rows'])}"
    for name, found in report["others"].items():
        text += f"\nOn {name}, {found['models'][0]['problems']} problems:\n\n"
        text += _table(found["models"], found["comparisons"], [])
    return text


def _table(
    models: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]], seeds: Sequence[dict[str, Any]]
) -> str:
    against = {entry["model"]: entry for entry in comparisons}
    lines = [_line(model, against.get(model["name"])) | _by_seed(model["name"], seeds) for model in models]
    return _markdown(lines)


def _markdown(lines: Sequence[dict[str, str]]) -> str:
    rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _beside(pair: dict[str, Any]) -> dict[str, str]:
    return {
        "control": pair["model"],
        "accuracy − method, points": percent(pair["accuracy_delta"], pair["accuracy_delta_ci"]),
        "tokens ÷ method": ratio(pair["tokens_ratio"], pair["tokens_ratio_ci"]),
    }


def _line(model: dict[str, Any], pair: dict[str, Any] | None) -> dict[str, str]:
    name = f"**{model['name']}**" if model["role"] == "method" else model["name"]
    first = {
        "model": name,
        "accuracy %": percent(model["accuracy"], model["accuracy_ci"]),
        "tokens": f"{model['mean_tokens']:.1f}",
    }
    names = (
        "accuracy − base, points",
        "tokens ÷ base",
        "efficiency",
        "AES",
        "attention FLOPs, right / wrong before",
        "wrong → right (by chance)",
        "trained on",
        "built for, TFLOP",
        "paid back after, queries",
    )
    return first | dict(zip(names, _compared(pair) if pair else [""] * len(names), strict=True))


def _by_seed(name: str, seeds: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The model's points and ratio in each seed; no column where there is one seed only."""
    if not seeds:
        return {}
    pairs = [pair for seed in seeds for pair in seed["comparisons"] if pair["model"] == name]
    told = (f"{100 * pair['accuracy_delta']:+.1f} at {pair['tokens_ratio']:.3f}" for pair in pairs)
    return {"by seed": "; ".join(told)}


def _compared(pair: dict[str, Any]) -> list[str]:
    split, even = pair["by_base_correctness"], pair["break_even"]
    return [
        percent(pair["accuracy_delta"], pair["accuracy_delta_ci"]),
        ratio(pair["tokens_ratio"], pair["tokens_ratio_ci"]),
        _number(pair["efficiency"], "{:.2f}"),
        _number(pair["aes"], "{:.2f}"),
        _two(split, "attention_flops_right", "attention_flops_wrong", "{:+.0%} / {:+.0%}"),
        _two(split, "wrong_to_right", "wrong_to_right_of_base", "{:.0%} ({:.0%})"),
        f"{pair['trained_on']:,.0f}" if pair["trained_on"] else "–",
        f"{even['build_flops'] / 1e12:.2f}" if even["build_flops"] else "–",
        queries(even) if even["build_flops"] else "–",
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _two(values: dict[str, float | None] | None, first: str, second: str, form: str) -> str:
    if values is None or values[first] is None or values[second] is None:
        return "–"
    return form.format(values[first], values[second])


def draw_pareto(report: dict[str, Any], path: Path) -> None:
    """Accuracy against tokens, both relative to the base, with their intervals. Up and to the left is better."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="0.8", zorder=0)
    axes.axvline(1, color="0.8", zorder=0)
    axes.annotate("base", (1, 0), xytext=(5, 5), textcoords="offset points")
    roles = {model["name"]: model["role"] for model in report["models"]}
    for pair in report["comparisons"]:
        x, y = pair["tokens_ratio"], 100 * pair["accuracy_delta"]
        is_method = roles[pair["model"]] == "method"
        color = "C3" if is_method else "C0"
        axes.errorbar(
            x,
            y,
            xerr=_arms(x, pair["tokens_ratio_ci"]),
            yerr=_arms(y, [None if end is None else 100 * end for end in pair["accuracy_delta_ci"]]),
            fmt="o",
            color=color,
            capsize=2,
        )
        # The method's name stands on the other side of its point: the nearest control is often its own ablation.
        ctx, side = ((-6, -12), "right") if is_method else ((6, 4), "left")
        axes.annotate(pair["model"], (x, y), xytext=ctx, textcoords="offset points", color=color, ha=side)
    axes.margins(x=0.15)
    axes.set_xlabel("generated tokens ÷ base")
    axes.set_ylabel("accuracy − base, points")
    with mpl.rc_context({"svg.hashsalt": "brevity"}):  # the same figures give the same file
        figure.savefig(path, metadata={"Date": None})


def _arms(value: float, interval: Sequence[float | None]) -> list[list[float]] | None:
    low, high = interval
    return None if low is None or high is None else [[value - low], [high - value]]
