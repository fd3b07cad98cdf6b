"""The page of a run in its folder, named by the terminal's last line and linked from Prefect."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from conf.evaluation import Evaluated
from tasks.reports.layout import console
from tasks.reports.page.answers import answer_views
from tasks.reports.page.page import write_page
from tasks.reports.page.views import ProblemView
from tasks.reports.seed_results import ExperimentResult
from tasks.runtime.context import RunContext

logger = logging.getLogger(__name__)


def write_run_page(
    ctx: RunContext, settings: Evaluated, report: Mapping[str, Any], result: ExperimentResult | None
) -> None:
    """Writes the page into the run's folder. `result`: the experiment whose thoughts are shown, if any.

    The report is there by then. A fault in the page is reported, and does not fail a run that took days.
    """
    notes: list[str] = []
    try:
        problems = _views(ctx, settings, result, notes) if result else ()
        path = write_page(ctx.directory.page, report, problems, notes)
    except Exception:
        logger.exception("the page could not be made")
        ctx.progress.note(f"the page could not be made, which is a fault of this software; see {ctx.directory.report}")
        return
    console().print(f"Page: {path} (opens in any browser; brevity view shows it on a port)", soft_wrap=True)


def _views(ctx: RunContext, settings: Evaluated, result: ExperimentResult, notes: list[str]) -> Iterator[ProblemView]:
    """The answers first, which are few: the file may have no room for all traces."""
    yield from answer_views(ctx, settings, result, notes)
    if result.views:
        yield from result.views()
