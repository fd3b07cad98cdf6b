"""Tables as people read them: DataFrames of text, for the terminal, Markdown and Prefect."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.reports.frames import report_frames, result_frame

PLAIN_WIDTH = 160
"""Columns of a table where the width of the terminal is unknown, as in a log file."""
MAX_OPENERS = 40
"""Sentence openers in a table; the report holds more."""
NONE = "–"
OWN = ["model", "role", "accuracy %", "tokens", "truncated %", "failed %"]
"""Columns of a model's own figures; all others compare it with the base."""
SUMMARY = [
    "model",
    "role",
    "accuracy %",
    "tokens",
    "accuracy − base, points",
    "tokens ÷ base",
    "efficiency",
    "truncated %",
    "failed %",
    "build TFLOPs",
    "break-even queries",
]


def report_tables(report: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables of a report by title, without empty ones. Raises as `report_frames` does."""
    frames = report_frames(report)
    ledger = {"Ledger": ledger_table(frames["ledger"])}
    if "sentence_openers" in frames:
        return {"Sentence openers": opener_table(frames["sentence_openers"], report["traces"])} | ledger
    results = result_frame(frames)
    tables = {
        "Result": summary_table(results[results["benchmark"] == report["benchmark"]]),
        **({"Pass@1, % (mean tokens)": benchmark_table(results)} if report["others"] else {}),
        **group_tables(frames["by_level"], "level"),
        **group_tables(frames["by_subject"], "subject"),
        **budget_tables(frames["by_budget"]),
        **{table["title"]: pd.DataFrame(table["rows"]).fillna("") for table in report["tables"]},
        **ledger,
        "Engine": engine_table(frames["ledger"]),
    }
    return {title: table for title, table in tables.items() if len(table)}


def summary_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row per model; a column for failed completions only where there are any."""
    return result_table(results)[[name for name in SUMMARY if name != "failed %" or results["failed"].any()]]


def result_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row per row of `result_frame`, with every column that a report may show."""
    build = results["build_flops"].where(results["build_flops"] > 0)
    queries = with_interval(results, "queries", "{:,.0f}").where(results["queries"].notna(), "not significant")
    flops = results["attention_flops_right"], results["attention_flops_wrong"]
    table = pd.DataFrame(
        {
            "model": results["model"],
            "role": results["role"],
            "accuracy %": with_interval(results, "accuracy", "{:.1f}", 100),
            "tokens": formatted("{:.1f}", results["mean_tokens"]),
            "truncated %": formatted("{:.1f}", 100 * results["truncated"]),
            "failed %": formatted("{:.2f}", 100 * results["failed"]),
            "accuracy − base, points": with_interval(results, "accuracy_delta", "{:.1f}", 100),
            "tokens ÷ base": with_interval(results, "tokens_ratio", "{:.3f}"),
            "efficiency": formatted("{:.2f}", results["efficiency"]),
            "AES": formatted("{:.2f}", results["aes"]),
            "attention FLOPs, base right / wrong": formatted("{:+.0%} / {:+.0%}", *flops),
            "wrong → right (base)": formatted(
                "{:.0%} ({:.0%})", results["wrong_to_right"], results["wrong_to_right_of_base"]
            ),
            "training rows": formatted("{:,.0f}", results["trained_on"].where(results["trained_on"] > 0)),
            "build TFLOPs": formatted("{:.2f}", build / 1e12),
            "break-even queries": queries.where(build.notna(), NONE),
        }
    )
    table.loc[results["against"].isna(), table.columns.difference(OWN)] = ""
    return table


def formatted(form: str, *columns: pd.Series) -> pd.Series:
    """`form` filled in with the columns' values, row by row; a dash where any is missing."""
    rows = zip(*columns, strict=True)
    texts = [NONE if any(pd.isna(value) for value in row) else form.format(*row) for row in rows]
    return pd.Series(texts, index=columns[0].index, dtype="str")


def with_interval(frame: pd.DataFrame, name: str, form: str, scale: float = 1) -> pd.Series:
    """`value [low, high]` of the column `name`; the value alone where its interval is infinite."""
    value, low, high = (scale * frame[name + end] for end in ("", "_low", "_high"))
    return formatted(f"{form} [{form}, {form}]", value, low, high).where(
        low.notna() & high.notna(), formatted(form, value)
    )


def benchmark_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row per model, one column per benchmark, as the papers print them; empty if not evaluated there."""
    return _crossed(results, "model", "benchmark").reset_index(names="model")


def group_tables(figures: pd.DataFrame, group: str) -> dict[str, pd.DataFrame]:
    """By title: for each benchmark with several levels or subjects, one row per group and one column per model."""
    tables = {}
    for name, rows in figures.groupby("benchmark", sort=False):
        if rows[group].nunique() > 1:
            table = _crossed(rows.sort_values(group, kind="stable"), group, "model").reset_index(names=group)
            table.insert(1, "problems", rows.groupby(group)["problems"].max().to_numpy())
            title = f"Accuracy by {group}, % (mean tokens)"
            tables[title if figures["benchmark"].nunique() == 1 else f"{title}, {name}"] = table.astype("str")
    return tables


def budget_tables(figures: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By title: for each benchmark, accuracy and truncated completions of each model at each token budget."""
    tables = {}
    for name, rows in figures.groupby("benchmark", sort=False):
        cells = formatted("{:.1f} ({:.0f} %)", 100 * rows["accuracy"], 100 * rows["truncated"])
        table = rows.assign(cell=cells).pivot(index="budget", columns="model", values="cell")
        title = "Accuracy at a token budget, % (truncated)"
        shown = table[rows["model"].unique()].reset_index().astype("str")
        tables[title if figures["benchmark"].nunique() == 1 else f"{title}, {name}"] = shown
    return tables


def _crossed(figures: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """`accuracy % (mean tokens)` by `rows` and `columns`, both in order of first appearance."""
    cells = formatted("{:.1f} ({:.0f})", 100 * figures["accuracy"], figures["mean_tokens"])
    table = figures.assign(cell=cells).pivot(index=rows, columns=columns, values="cell")
    return table.reindex(index=figures[rows].unique(), columns=figures[columns].unique()).fillna("")


def ledger_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """One row per step: rows in and out, tokens, time, FLOPs; money where any was spent."""
    if ledger.empty:
        return ledger
    table = pd.DataFrame(
        {
            "stage": ledger["stage"],
            "cached": ledger["cached"].map({True: "yes", False: ""}),
            "rows in": formatted("{}", ledger["rows_in"]),
            "rows out": formatted("{}", ledger["rows_out"]),
            "dropped": ledger["dropped"].map(_listed),
            "counts": ledger["counts"].map(_listed),
            "prompt tokens": formatted("{:,}", ledger["prompt_tokens"]),
            "cached prompt tokens": formatted("{:,}", ledger["cached_prompt_tokens"]),
            "generated tokens": formatted("{:,}", ledger["generated_tokens"]),
            "seconds": formatted("{:.0f}", ledger["seconds"]),
            "FLOPs": formatted("{:.2g}", ledger["flops"]),
            "unverified": formatted("{}", ledger["unverified"]),
        }
    )
    return table.assign(money=formatted("{:.4g}", ledger["money"])) if ledger["money"].any() else table


def _listed(counts: str) -> str:
    return ", ".join(f"{name} {count}" for name, count in json.loads(counts).items())


def engine_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """One row per step that used an engine: its work relative to the naive way and to the minimum, and its load."""
    if ledger.empty:
        return ledger
    ledger = ledger[(ledger["engine_busy"] > 0) | ledger["rollouts"].notna()]
    rollouts = ledger["rollouts"].where(ledger["rollouts"] > 0)
    prefilled = ledger["prompt_tokens"] - ledger["cached_prompt_tokens"]
    # Completions from the store were not prefilled here: the bounds shrink with their share.
    drawn = 1 - ledger["reused_completions"] / rollouts
    seconds = ledger["engine_busy"] + ledger["engine_idle"]
    return pd.DataFrame(
        {
            "stage": ledger["stage"],
            "from the store": formatted("{:,}", ledger["reused_completions"]),
            "rollouts": formatted("{:,.0f}", rollouts),
            "÷ naive": _quotient(rollouts, ledger["rollouts_naive"]),
            "÷ floor": _quotient(rollouts, ledger["rollouts_floor"]),
            "prompt tokens computed": formatted("{:,}", prefilled),
            "prompt ÷ naive": _quotient(prefilled, drawn * ledger["prefill_naive"]),
            "prompt ÷ floor": _quotient(prefilled, drawn * ledger["prefill_floor"]),
            "engine seconds": formatted("{:.1f}", seconds),
            "busy %": formatted("{:.1f}", 100 * ledger["engine_busy"] / seconds.where(seconds > 0)),
            "tail seconds": formatted("{:.1f}", ledger["engine_tail"]),
        }
    ).replace(NONE, "")


def _quotient(values: pd.Series, reference: pd.Series) -> pd.Series:
    """Nothing where either is 0."""
    return formatted("{:.3f}", values.where(values != 0) / reference.where(reference != 0))


def opener_table(openers: pd.DataFrame, traces: int) -> pd.DataFrame:
    """The most frequent sentence openers, and every marker; `openers` has the fields of SentenceOpener."""
    shown = openers[(openers.reset_index().index < MAX_OPENERS) | openers["is_marker"]]
    return pd.DataFrame(
        {
            "opener": shown["text"],
            "marker": shown["is_marker"].map({True: "yes", False: ""}),
            "sentences": formatted("{}", shown["count"]),
            "traces %": formatted("{:.1f}", 100 * shown["traces"] / traces),
            "position": formatted("{:.2f}", shown["position"].astype("float64")).replace(NONE, ""),
        }
    )


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table. `DataFrame.to_markdown` needs a package that is not installed."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype("str").to_numpy().tolist()]
    cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def print_table(title: str, table: pd.DataFrame) -> None:
    """On the terminal. Cells are plain text: neither rich's markup nor a terminal's control characters count."""
    shown = Table(title=plain(title), title_justify="left")
    for name in table.columns:
        shown.add_column(plain(name))
    for row in table.itertuples(index=False):
        shown.add_row(*map(plain, row))
    console().print(shown)


def plain(cell: Any) -> Text:
    return Text(strip_control_chars(str(cell)))


def strip_control_chars(text: str) -> str:
    """Without the characters that would command a terminal; line breaks and tabs stay."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
