"""DTO on the real Prefect, vLLM and TRL, by the command line: killed twice, then completed."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.flows.real_runs import Shapes, dto_changes, options, stages

ROOT = Path(__file__).parent.parent.parent
TINY = (
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


@pytest.fixture(scope="module")
def start(root: Path, shape_models: Callable[[Path], Shapes] | None) -> Callable[[], subprocess.Popen[str]]:
    """Starts the run: the paper's preset on a shape model, or the bundled model's."""
    preset, changes = "tiny", TINY
    if shape_models:
        preset, changes = "paper-r1-1.5b", dto_changes(shape_models(root), "r1-distill-qwen")
    command = [sys.executable, "-m", "flows", "run", "dto", "--preset", preset]
    command += options([*changes, f"storage.root={root}"])
    return lambda: subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("moment", [r"sample: \d+/\d+ prompts", r"simpo: \d+ steps"])
def test_sigkill_leaves_no_process_behind(start: Callable[[], subprocess.Popen[str]], moment: str):
    """Killed during sampling; then resumed, and killed during training."""
    run = start()
    assert run.stderr
    assert any(re.search(moment, line) for line in run.stderr)
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) > 3  # Prefect's server, vLLM or the trainer, and their guards
    run.kill()
    run.communicate()
    assert psutil.wait_procs(family, GONE_WITHIN)[1] == []


def test_the_same_command_then_completes(start: Callable[[], subprocess.Popen[str]], root: Path):
    run = start()
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    report = json.loads((root / "latest" / "report.json").read_text())
    lines = stages(report)
    assert lines["sample-traces"]["cached"]
    assert lines["sample-traces"]["reused_completions"] > 0
    assert [model["name"] for model in report["models"]] == ["base", "dto"]
    problems, samples = (2, 4) if report["preset"] != "tiny" else (6, 2)
    assert all(model["samples"] == problems * samples for model in report["models"])
    assert lines["train-simpo"]["rows_in"] > 0
    assert lines["evaluate"]["generated_tokens"] > 0
    assert (root / "latest" / "vllm.log").exists()
