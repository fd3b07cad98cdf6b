"""Imports of a cached run, and the markers for results in the documents."""

import subprocess
import sys

import pytest

from conf.load import PRESETS
from tasks.reports.multi_seed import validate_markers
from tests.test_house import ROOT


def test_a_cached_run_does_not_import_torch():
    probe = "import sys, tasks.runtime.context; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True, cwd=ROOT).strip() == "False"


@pytest.mark.parametrize("preset", sorted(path.stem for path in (PRESETS / "multi-seed").glob("*.toml")))
def test_results_can_be_published_to_the_documents(preset: str):
    validate_markers(str(ROOT), preset)
