"""Charts of a report as SVG pictures. Every figure in them is also in a table of the page."""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.reports.frames import records

COLORS = {"base": "#6b7280", "method": "#c2410c", "control": "#2563eb", "reference": "#7c3aed"}
OTHERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_BARS = 24
"""Stages or groups in one chart; the tables hold all."""


class Chart(NamedTuple):
    """A picture with its title and what it shows, for those who do not see it."""

    title: str
    alt: str
    url: str
    """A `data:` URL."""


def charts_of(frames: Mapping[str, pd.DataFrame], benchmark: str) -> list[Chart]:
    """The charts of a report's main benchmark, and of its ledger. `frames`: as `report_frames` makes them."""

    def main(name: str) -> pd.DataFrame:
        return frames[name][frames[name]["benchmark"] == benchmark]

    ledger, levels, subjects = frames["ledger"], main("by_level"), main("by_subject")
    drawn: list[tuple[str, str, pd.DataFrame, Callable[[pd.DataFrame], Figure]]] = [
        (
            "Accuracy against tokens",
            "A point per model: up is more accurate, left shorter.",
            main("models"),
            _tokens,
        ),
        ("Accuracy at a token budget", "The same completions, each cut at the budget.", main("by_budget"), _budgets),
        ("Accuracy by level", "A line per model.", levels, lambda rows: _groups(rows, "level")),
        ("Accuracy by subject", "A line per model.", subjects, lambda rows: _groups(rows, "subject")),
        ("Rows from step to step", "What each step got, passed on and dropped.", ledger, _flow),
        ("Where the tokens went", "Generated and computed prompt tokens of each step.", ledger, _spent),
        ("Where the time went", "Seconds of each step, when its result was made.", ledger, _seconds),
        ("Where the money went", "Cost of auxiliary models by step.", _paid(ledger), _money),
    ]
    return [Chart(title, alt, _url(draw(rows))) for title, alt, rows, draw in drawn if len(rows) > 1]


def _url(figure: Figure) -> str:
    file = io.BytesIO()
    # Text stays text, so that the browser's fonts draw it, also Chinese.
    with mpl.rc_context({"svg.hashsalt": "brevity", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _axes(height: float = 3.6, width: float = 6.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def plain(text: Any) -> str:
    """`text` without mathematics: matplotlib reads dollars as such."""
    return str(text).replace("$", r"\$")[:60]


def _tokens(models: pd.DataFrame) -> Figure:
    figure, axes = _axes()
    for marker, row in zip(_markers(len(models)), records(models), strict=True):
        x, y = row["mean_tokens"], 100 * row["accuracy"]
        x_error = _arms(x, row["mean_tokens_low"], row["mean_tokens_high"])
        y_error = _arms(y, 100 * row["accuracy_low"], 100 * row["accuracy_high"])
        color = COLORS[row["role"]]
        axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt=marker, color=color, capsize=2, label=plain(row["model"]))
    axes.set_xlabel("mean tokens per completion")
    axes.set_ylabel("accuracy, %")
    _legend(figure)
    return figure


def _arms(value: float, low: float, high: float) -> list[list[float]] | None:
    return None if pd.isna(low) or pd.isna(high) else [[max(0.0, value - low)], [max(0.0, high - value)]]


def _budgets(figures: pd.DataFrame) -> Figure:
    figure, axes = _axes()
    _lines(axes, figures.sort_values("budget"), "budget")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("token budget")
    axes.set_ylabel("accuracy, %")
    _legend(figure)
    return figure


def _groups(figures: pd.DataFrame, group: str) -> Figure:
    figure, axes = _axes()
    shown = figures.sort_values(group, kind="stable")
    if group == "subject":
        names = shown[group].drop_duplicates().head(MAX_BARS)
        shown = shown[shown[group].isin(names)].assign(subject=lambda rows: rows["subject"].map(plain))
        axes.tick_params(axis="x", rotation=45)
    _lines(axes, shown, group)
    axes.set_xlabel(group)
    axes.set_ylabel("accuracy, %")
    _legend(figure)
    return figure


def _lines(axes: Axes, figures: pd.DataFrame, x: str) -> None:
    models = figures.groupby("model", sort=False)
    for marker, (name, rows) in zip(_markers(len(models)), models, strict=True):
        color = COLORS[str(rows["role"].iloc[0])]
        axes.plot(rows[x], 100 * rows["accuracy"], marker=marker, color=color, label=plain(name), linewidth=1.2)


def _markers(count: int) -> list[str]:
    return [OTHERS[index % len(OTHERS)] for index in range(count)]


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")


def _flow(ledger: pd.DataFrame) -> Figure:
    """Rows out in one colour, each reason for dropping in another."""
    lines = records(ledger.head(MAX_BARS))
    figure, axes = _axes(0.6 + 0.26 * len(lines), 7.5)
    for place, line in enumerate(lines):
        made = line["rows_in"] if line["stage"].startswith("train-") else line["rows_out"]
        parts = [("", made), *json.loads(line["dropped"]).items()]
        scale = max(line["rows_in"], made, 1)
        _stack(axes, place, [(name, count / scale) for name, count in parts])
        axes.text(1.02, place, f"{line['rows_in']:,} → {line['rows_out']:,}", va="center", fontsize=7)
    axes.set_yticks(range(len(lines)), [plain(line["stage"]) for line in lines], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    return figure


def _stack(axes: Axes, place: int, parts: Sequence[tuple[str, float]]) -> None:
    start = 0.0
    for number, (name, share) in enumerate(parts):
        color = "#0f766e" if number == 0 else f"C{number % 10}"
        axes.barh(place, share, left=start, color=color, alpha=1 if number == 0 else 0.55, height=0.7)
        if name and share > 0.08:
            axes.text(start + share / 2, place, plain(name), ha="center", va="center", fontsize=6)
        start += share


def _paid(ledger: pd.DataFrame) -> pd.DataFrame:
    return ledger[ledger["money"] > 0] if len(ledger) else ledger


def _seconds(ledger: pd.DataFrame) -> Figure:
    return _bars(ledger, "seconds")


def _money(ledger: pd.DataFrame) -> Figure:
    return _bars(ledger, "money")


def _bars(ledger: pd.DataFrame, column: str) -> Figure:
    totals = ledger.groupby("stage", sort=False)[column].sum().head(MAX_BARS)
    figure, axes = _axes(0.9 + 0.26 * len(totals), 7.5)
    axes.barh(list(map(plain, totals.index)), totals, color="#0f766e")
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(column)
    return figure


def _spent(ledger: pd.DataFrame) -> Figure:
    computed = ledger["prompt_tokens"] - ledger["cached_prompt_tokens"]
    spent = pd.DataFrame({"stage": ledger["stage"], "generated": ledger["generated_tokens"], "prompt": computed})
    totals = spent.groupby("stage", sort=False).sum().head(MAX_BARS)
    figure, axes = _axes(0.9 + 0.26 * len(totals), 7.5)
    axes.barh(list(map(plain, totals.index)), totals["generated"], color="#0f766e", label="generated")
    axes.barh(
        list(map(plain, totals.index)), totals["prompt"], left=totals["generated"], color="#94a3b8", label="prompt"
    )
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("tokens")
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure
