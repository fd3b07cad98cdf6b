"""The marker report with a scripted model."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conf.load import load
from conf.markers import MarkerReport
from flows.markers import run_markers
from tasks.runtime.context import RunContext
from tasks.runtime.progress import Progress
from tests.flows.world import report_of, scripted

pytestmark = pytest.mark.usefixtures("plain_steps")
SMALL = ("problems.count=8", "problems.levels=[1,2,3,4]", "sampling.samples=2", "segmentation.markers=['Hmm', 'Nay']")


def report(root: Path) -> dict[str, Any]:
    settings = load(MarkerReport, "tiny", (*SMALL, f"storage.root={root}"))
    with RunContext(
        "markers",
        settings.storage,
        settings.engine,
        make_engine=lambda *_: scripted(),
        progress=Progress(Console(file=StringIO())),
    ) as ctx:
        return report_of(run_markers, ctx, settings)


def test_the_report_counts_markers_and_other_openers(tmp_path: Path):
    result = report(tmp_path)
    rows = {row["text"]: row for row in result["sentence_openers"]}
    assert result["traces"] == 16
    assert rows["Hmm"]["is_marker"]
    assert 0 < rows["Hmm"]["traces"] <= rows["Hmm"]["count"]
    assert (rows["Nay"]["count"], rows["Nay"]["position"]) == (0, None)
    # Frequent openers that are no markers in these settings are reported, too.
    assert not rows["Wait"]["is_marker"]
    assert rows["Wait"]["position"] > 0.3
