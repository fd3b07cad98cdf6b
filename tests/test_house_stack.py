"""What a cached run need not load, and the places that the repository keeps for results."""

import subprocess
import sys

import pytest

from conf.load import PRESETS
from tasks.reports.multi_seed import validate_markers
from tests.test_house import ROOT


def test_a_cached_run_does_not_pay_for_torch():
    probe = "import sys, tasks.runtime.context; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True, cwd=ROOT).strip() == "False"


@pytest.mark.parametrize("pipeline", sorted(path.stem for path in (PRESETS / "multi-seed").glob("*.toml")))
def test_the_readme_can_take_the_claims(pipeline: str):
    validate_markers(str(ROOT), pipeline)
