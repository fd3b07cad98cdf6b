"""DTO on the real Prefect, vLLM and TRL: killed twice, then completed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
SMALL = (
    "problems.count=16",
    "problems.levels=[1,2,3]",
    "sampling.samples=2",
    "benchmark.problems.count=6",
    "benchmark.sampling.samples=2",
    "engine.max_num_seqs=16",
    "probing.sampling.samples=4",
    "finalizing.sampling.samples=4",
    "training.global_batch_size=8",
    "training.per_device_train_batch_size=8",
)
GONE_WITHIN = 10
"""Seconds."""


def start(root: Path) -> subprocess.Popen[str]:
    settings = [part for change in (*SMALL, f"storage.root={root}") for part in ("--set", change)]
    command = [sys.executable, "-m", "flows", "run", "dto", "--preset", "tiny", *settings]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(root: Path) -> dict[str, Any]:
    run = start(root)
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    return json.loads((root / "latest" / "report.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.mark.parametrize("moment", [r"sample: \d+/\d+ prompts", r"simpo: \d+ steps"])
def test_sigkill_leaves_no_process_behind(root: Path, moment: str):
    """Killed during sampling; then resumed, and killed during training."""
    run = start(root)
    assert run.stderr
    assert any(re.search(moment, line) for line in run.stderr)
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) > 3  # Prefect's server, vLLM or the trainer, and their guards
    run.kill()
    run.communicate()
    assert psutil.wait_procs(family, GONE_WITHIN)[1] == []


def test_the_same_command_then_completes(root: Path):
    report = finish(root)
    lines = {line["stage"]: line for line in report["ledger"]}
    assert lines["sample-traces"]["cached"]
    assert lines["sample-traces"]["reused_completions"] > 0
    assert [model["name"] for model in report["models"]] == ["base", "dto"]
    assert all(model["samples"] == 12 for model in report["models"])
    assert lines["train-simpo"]["rows_in"] > 0
    assert lines["evaluate"]["generated_tokens"] > 0
    assert (root / "latest" / "vllm.log").exists()
