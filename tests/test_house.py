"""Package names resolve to this repository, and pure packages import no framework."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["flows", "tasks", "models", "reasoning", "conf"])
def test_each_package_is_from_this_repository(name: str):
    assert Path(importlib.import_module(name).__file__ or "").parent == ROOT / name


@pytest.mark.parametrize("name", ["reasoning.evaluation", "reasoning.dto", "reasoning.answers.verifier", "conf.load"])
def test_algorithms_and_settings_load_no_framework(name: str):
    probe = f"import sys, {name}; print([m for m in ('torch', 'prefect', 'transformers', 'vllm') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True, cwd=ROOT).strip() == "[]"
