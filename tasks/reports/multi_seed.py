"""Results of several seeds for publication: a Markdown table, a plot, and the seed results behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from conf.errors import ReadableError
from conf.multi_seed import MultiSeed
from models.files import atomic_write
from tasks.reports.frames import report_frames, result_frame
from tasks.reports.layout import formatted, markdown, result_table, with_interval
from tasks.reports.seed_results import SeedResult, SeedResultError, load_seed_result, save_seed_result
from tasks.runtime.context import RunContext

START, END = "<!-- claims of {}: written by `make claims` -->", "<!-- end of claims of {} -->"
RESULTS, PLOT, SEED_RESULTS = "docs/results.md", "docs/claims-{}.svg", "docs/outcomes"
COLUMNS = [
    "model",
    "accuracy %",
    "tokens",
    "accuracy − base, points",
    "tokens ÷ base",
    "efficiency",
    "AES",
    "attention FLOPs, base right / wrong",
    "wrong → right (base)",
    "training rows",
    "build TFLOPs",
    "break-even queries",
]
"""Of `result_table`, those that docs/results.md shows."""


class MissingMarkers(ReadableError):
    """A file of results without the two marker lines that enclose the table."""


def validate_markers(target: str, preset: str) -> None:
    """Raises MissingMarkers if docs/results.md in `target` lacks the marker lines."""
    results = Path(target) / RESULTS
    start, end = START.format(preset), END.format(preset)
    text = results.read_text() if results.is_file() else ""
    if target and not 0 <= text.find(start) < text.find(end):
        raise MissingMarkers(f"{results}: no lines {start!r} and {end!r}; write them where the results belong")


def load_earlier_results(ctx: RunContext, settings: MultiSeed) -> dict[int, SeedResult]:
    """Results of seeds that were run before, by seed. Raises SeedResultError for results of other settings."""
    folder = Path(settings.reuse_results_from)
    if not settings.reuse_results_from:
        return {}
    if not folder.is_dir():
        raise SeedResultError(f"{folder}: no such folder; correct reuse_results_from, or leave it out to run all seeds")
    base = ctx.resources.model(settings.of.model).digest
    found = {seed: load_seed_result(folder, settings.preset, settings.of, seed, base) for seed in settings.seeds}
    for seed in (seed for seed, result in found.items() if result):
        ctx.progress.note(f"seed {seed}: result read from {folder}")
    return {seed: result for seed, result in found.items() if result}


def publish_seed_result(ctx: RunContext, result: SeedResult, target: str, preset: str) -> None:
    """Writes the result into the run's folder, and into `target` if given."""
    folders = [ctx.directory.path, Path(target) / SEED_RESULTS] if target else [ctx.directory.path]
    save_seed_result(result, preset, folders)


def publish_report(ctx: RunContext, report: dict[str, Any], target: str, preset: str) -> None:
    """Writes `claims.md` and `claims.svg` into the run's folder, and into docs/results.md of `target` if given.

    Raises MissingMarkers.
    """
    table, plot = results_markdown(report), ctx.directory.path / "claims.svg"
    (ctx.directory.path / "claims.md").write_text(table)
    draw_pareto(report, plot)
    if target:
        validate_markers(target, preset)
        start, end, shown = START.format(preset), END.format(preset), PLOT.format(preset)
        before, _, rest = (Path(target) / RESULTS).read_text().partition(start)
        after = rest.partition(end)[2]
        picture = f"![accuracy against tokens, every model]({Path(shown).name})"
        atomic_write(Path(target) / RESULTS, f"{before}{start}\n{table}\n{picture}\n{end}{after}")
        atomic_write(Path(target) / shown, plot.read_text())


def results_markdown(report: dict[str, Any]) -> str:
    """The pooled figures as Markdown: what was run, one row per model, then the same for the other benchmarks."""
    frames = report_frames(report)
    results = result_frame(frames)
    base = report["models"][0]
    seeds = ", ".join(map(str, report["seeds"]))
    head = (
        f"Seeds {seeds} together: {base['problems']} problems, {base['samples']} samples a model, on "
        f"{report['written_on']}. 95 % intervals are clustered by problem, differences paired; they are about these "
        f"trainings, one a seed and model"
    )
    code = "\n\nCode: " + ", ".join(f"{name} {told}" for name, told in report["versions"].items())
    code += f". Settings: preset {report['preset']} of {report['pipeline']}; all are in the run's report.json.\n\n"
    seeds_shown = ": the column by seed shows how much trainings differ." if report["by_seed"] else "."
    main = _models_table(results[results["benchmark"] == report["benchmark"]])
    text = head + seeds_shown + code + markdown(main.assign(**_by_seed(frames["by_seed"], results["model"])))
    if report["vs_method"]:
        text += f"\nThe controls against {report['vs_method'][0]['against']}, on the same problems:\n\n"
        text += markdown(_controls_table(frames["vs_method"], report["benchmark"]))
    for table in report["tables"]:
        if table["is_pooled"]:
            text += f"\n{table['title']}:\n\n{markdown(pd.DataFrame(table['rows']))}"
    for name, found in report["others"].items():
        text += f"\nOn {name}, {found['models'][0]['problems']} problems:\n\n"
        text += markdown(_models_table(results[results["benchmark"] == name]))
    return text


def _models_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row per model, the method in bold."""
    table = result_table(results)
    return table.assign(model=table["model"].mask(table["role"] == "method", "**" + table["model"] + "**"))[COLUMNS]


def _by_seed(figures: pd.DataFrame, models: pd.Series) -> dict[str, Any]:
    """A column with each model's points and token ratio in each seed; no column without several seeds."""
    if figures.empty:
        return {}
    compared = figures.dropna(subset="tokens_ratio")
    texts = formatted("{:+.1f} at {:.3f}", 100 * compared["accuracy_delta"], compared["tokens_ratio"])
    by_model = texts.groupby(compared["model"]).agg("; ".join)
    return {"by seed": by_model.reindex(models.unique()).fillna("").tolist()}


def _controls_table(vs_method: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    controls = vs_method[vs_method["benchmark"] == benchmark]
    return pd.DataFrame(
        {
            "control": controls["model"],
            "accuracy − method, points": with_interval(controls, "accuracy_delta", "{:.1f}", 100),
            "tokens ÷ method": with_interval(controls, "tokens_ratio", "{:.3f}"),
        }
    )


def draw_pareto(report: dict[str, Any], path: Path) -> None:
    """Plots accuracy against tokens, both relative to the base, with intervals. Up and to the left is better."""
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
        # The method's label is on the other side of its point: the nearest control is often its own ablation.
        offset, side = ((-6, -12), "right") if is_method else ((6, 4), "left")
        axes.annotate(pair["model"], (x, y), xytext=offset, textcoords="offset points", color=color, ha=side)
    axes.margins(x=0.15)
    axes.set_xlabel("generated tokens ÷ base")
    axes.set_ylabel("accuracy − base, points")
    with mpl.rc_context({"svg.hashsalt": "brevity"}):  # the same figures give the same file
        figure.savefig(path, metadata={"Date": None})


def _arms(value: float, interval: Sequence[float | None]) -> list[list[float]] | None:
    low, high = interval
    return None if low is None or high is None else [[value - low], [high - value]]
