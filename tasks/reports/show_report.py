"""The report of a finished run, read from its folder: on the terminal, as Markdown, CSV or Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.text import Text

from conf.errors import ReadableError
from models.files import atomic_write
from tasks.reports.frames import report_frames, result_frame
from tasks.reports.layout import console, markdown, print_table, report_tables, strip_control_chars
from tasks.reports.old_names import with_new_names
from tasks.runtime.run_directory import REPORT_FILE

FORMATS = ("table", "md", "csv", "parquet")


class ReportError(ReadableError):
    """A folder that holds no report, or one that cannot be read."""


def show_report(run: Path, format: str) -> None:
    """Shows the report of the folder `run` in one of FORMATS. Raises ReportError.

    `table` and `md` print every table, `csv` one row per benchmark and model with all figures. `parquet` writes a file
    for each of `report_frames` into the folder, and prints the paths.
    """
    report = load_report(run)
    try:
        frames, tables = report_frames(report), report_tables(report)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(
            f"{run / REPORT_FILE}: not a report of this version ({type(error).__name__}: {error}); run it again: "
            f"finished steps come from the cache"
        ) from None
    if format == "table":
        print_report(report.get("warnings", []), tables)
    elif format == "md":
        print(strip_control_chars(report_markdown(report, tables)), end="")
    elif format == "csv":
        print(strip_control_chars(csv_frame(frames).to_csv(index=False)), end="")
    elif format == "parquet":
        print(*write_parquet(run, frames), sep="\n")
    else:
        raise ReportError(f"format {format!r}: none of {', '.join(FORMATS)}")


def load_report(run: Path) -> dict[str, Any]:
    """The content of `report.json`, under the names of this version. Raises ReportError."""
    path = run / REPORT_FILE
    try:
        report = json.loads(path.read_text(), object_hook=with_new_names)
    except OSError:
        raise ReportError(f"{run}: no {REPORT_FILE}; name the folder of a finished run, such as runs/latest") from None
    except ValueError as error:
        raise ReportError(f"{path}: no JSON ({error}); run it again: finished steps come from the cache") from None
    if not isinstance(report, dict):
        raise ReportError(f"{path}: holds no report; name the folder of a finished run, such as runs/latest")
    return report


def print_report(warnings: list[str], tables: Mapping[str, pd.DataFrame]) -> None:
    for warning in warnings:
        console().print(Text(strip_control_chars(f"Warning: {warning}"), style="bold"), soft_wrap=True)
    for title, table in tables.items():
        print_table(title, table)


def report_markdown(report: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> str:
    """The tables under headings, the warnings first."""
    warnings = [f"**Warning:** {warning}\n" for warning in report.get("warnings", [])]
    sections = [f"## {title}\n\n{markdown(table)}" for title, table in tables.items()]
    return "\n".join([f"# Report of {report['pipeline']} {report['preset']}\n", *warnings, *sections])


def csv_frame(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All figures of each model on each benchmark; of the marker pipeline, the sentence openers."""
    return frames["sentence_openers"] if "sentence_openers" in frames else result_frame(frames)


def write_parquet(run: Path, frames: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Writes each frame that has rows into `run`, and returns the paths."""
    written = {run / f"{name}.parquet": frame for name, frame in frames.items() if len(frame)}
    for path, frame in written.items():
        atomic_write(path, frame.to_parquet(index=False))
    return list(written)
