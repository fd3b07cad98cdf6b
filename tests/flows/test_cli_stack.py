"""Mistakes that only a started flow can see are told in one line, too."""

import subprocess
import sys
from pathlib import Path


def test_a_missing_file_of_problems_is_told_without_a_stack_trace(tmp_path: Path):
    changes = ("problems.type=file", "problems.path=none.jsonl", f"storage.root={tmp_path}")
    arguments = [part for change in changes for part in ("--set", change)]
    run = subprocess.run([sys.executable, "-m", "flows", "run", "dto", *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert "error: none.jsonl: no such file; correct problems.path" in run.stderr
    assert "Traceback" not in run.stderr + run.stdout
