"""The page of a run in its folder, linked from the terminal's last line and from Prefect."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from prefect.artifacts import create_link_artifact

from conf.evaluation import Evaluated
from tasks.reports.layout import console
from tasks.reports.page.answers import answer_views
from tasks.reports.page.page import PAGE_FILE, write_page
from tasks.reports.page.views import ProblemView
from tasks.reports.report import artifact_key
from tasks.reports.seed_results import ExperimentResult
from tasks.runtime.context import RunContext
from tasks.runtime.progress import API_AWAY


def write_run_page(
    ctx: RunContext, settings: Evaluated, report: Mapping[str, Any], result: ExperimentResult | None
) -> None:
    """Writes `report.html` into the run's folder. `result`: the experiment whose thoughts are shown, if any."""
    problems = _views(ctx, settings, result) if result else ()
    path = write_page(ctx.directory.path / PAGE_FILE, report, problems)
    console().print(f"Page: {path} (opens in any browser; brevity view shows it on a port)", soft_wrap=True)
    try:
        key = artifact_key(f"{report['pipeline']}-{report['preset']}-page")
        create_link_artifact(path.as_uri(), link_text=str(path), key=key, description="The page of the run")
    except API_AWAY as error:
        ctx.progress.note(f"not on Prefect's page, because its server did not answer ({error})", logging.WARNING)


def _views(ctx: RunContext, settings: Evaluated, result: ExperimentResult) -> Iterator[ProblemView]:
    if result.views:
        yield from result.views()
    yield from answer_views(ctx, settings, result)
