"""What a run that finds everything in the cache need not load."""

import subprocess
import sys

from tests.test_house import ROOT


def test_a_cached_run_does_not_pay_for_torch():
    probe = "import sys, tasks.workplace; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True, cwd=ROOT).strip() == "False"
