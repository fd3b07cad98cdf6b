"""Writes the page of a run: figures, charts and tables of its report, and the thought viewer's data.

It knows the report and views of problems. It must not know how a pipeline made them.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from tasks.reports.frames import report_frames
from tasks.reports.layout import report_tables
from tasks.reports.page.blocks import Blocks
from tasks.reports.page.charts import charts_of
from tasks.reports.page.views import ProblemView

ASSETS = Path(__file__).parent / "assets"
SPLIT = "<!-- blocks -->"
"""Where the template is cut: blocks are written one after the other, and never held together."""


def write_page(
    path: Path, report: Mapping[str, Any], problems: Iterable[ProblemView] = (), notes: Sequence[str] = ()
) -> Path:
    """Writes the page to `path`, by way of a temporary file. `notes`: what it does not show; read after `problems`."""
    script, style = ((ASSETS / name).read_text() for name in ("page.js", "page.css"))
    page = _template().render(
        report=report,
        headline=headline(report),
        tables=report_tables(report),
        charts=charts_of(report_frames(report), report["benchmark"]),
        script=Markup(script),
        style=Markup(style),
        policy=policy(script, style),
    )
    before, after = page.split(SPLIT)
    blocks, temporary = Blocks(), path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(before)
            for number, block in enumerate(blocks.pack(problems)):
                file.write(f'<script type="application/octet-stream" id="block-{number}">{block}</script>\n')
            file.write(f'<script type="application/octet-stream" id="index">{blocks.index()}</script>\n')
            too_many = f"{blocks.left_out:,} more problems did not fit into this file." if blocks.left_out else ""
            said = " ".join(filter(None, [*notes, too_many]))
            file.write(f'<data id="page-notes" value="{escape(said)}"></data>\n{after}')
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@cache
def _template() -> Any:
    loader = FileSystemLoader(ASSETS)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template("page.html")


def policy(script: str, style: str) -> str:
    """A content security policy that allows this script, this style and embedded pictures, and nothing else."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        f"base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """What came out and what it rests on, in sentences."""
    models = {entry["name"]: entry for entry in report["models"]}
    method = next((name for name, entry in models.items() if entry["role"] == "method"), "")
    found = next((entry for entry in report["comparisons"] if entry["model"] == method), None)
    base = report["models"][0]
    result = _sentence(found) if found else ""
    seeds = f"{'seeds' if len(report['seeds']) > 1 else 'seed'} {', '.join(map(str, report['seeds']))}"
    rests = (
        f"{base['problems']} problems of {report['benchmark']}, {base['samples']} completions a model, {seeds}, one "
        f"training a seed and model, on {report['written_on']}. In brackets: 95 % intervals, clustered by problem."
    )
    return {"result": result, "rests": rests, "method": method, "even": _break_even(found) if found else ""}


def _sentence(found: Mapping[str, Any]) -> str:
    tokens, low_high = 100 * found["tokens_ratio"], found["tokens_ratio_ci"]
    points, ends = 100 * found["accuracy_delta"], found["accuracy_delta_ci"]
    side = "higher" if points >= 0 else "lower"
    return (
        f"{found['model']} takes {tokens:.0f} %{_interval(low_high, 100, '.0f')} of the tokens of {found['against']}; "
        f"its accuracy is {abs(points):.1f} points {side}{_interval(ends, 100, '+.1f')}."
    )


def _interval(ends: Any, scale: float, form: str) -> str:
    low, high = ends or (None, None)
    return "" if low is None or high is None else f" [{scale * low:{form}}, {scale * high:{form}}]"


def _break_even(found: Mapping[str, Any]) -> str:
    queries = found["break_even"]["queries"]
    if not queries:
        return "The saving is not significant: it does not pay back what building the model took."
    return f"Building the model took as much compute as it saves in {queries:,.0f} queries."
