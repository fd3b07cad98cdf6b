"""The marker report with a scripted model."""

from pathlib import Path

import pytest

from conf.load import load
from conf.markers import MarkerReport
from flows.markers import run_markers
from tests.flows.world import ScriptedRun

pytestmark = pytest.mark.usefixtures("plain_steps")
SMALL = ("problems.count=8", "problems.levels=[1,2,3,4]", "sampling.samples=2", "segmentation.markers=['Hmm', 'Nay']")


def test_the_report_counts_markers_and_other_openers(tmp_path: Path):
    settings = load(MarkerReport, "tiny", (*SMALL, f"storage.root={tmp_path}"))
    result = ScriptedRun("markers", settings, run_markers).report
    rows = {row["text"]: row for row in result["sentence_openers"]}
    assert result["traces"] == 16
    assert rows["Hmm"]["is_marker"]
    assert 0 < rows["Hmm"]["traces"] <= rows["Hmm"]["count"]
    assert (rows["Nay"]["count"], rows["Nay"]["position"]) == (0, None)
    # Frequent openers that are no markers in these settings are reported, too.
    assert not rows["Wait"]["is_marker"]
    assert rows["Wait"]["position"] > 0.3
