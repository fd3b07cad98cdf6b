"""CoT distillation with images on the bundled vision-language model, with the real vLLM and TRL."""

import json
from pathlib import Path
from typing import Any

import pytest

from conf.cot_distillation import CotDistillation
from conf.load import load
from flows.cot_distillation import cot_distillation
from tests.flows.real_runs import stages

pytestmark = pytest.mark.usefixtures("prefect")


def settings(folder: Path, *changes: str) -> CotDistillation:
    small = (
        "problems={type='boards', count=24, levels=[1, 2]}",
        "benchmarks.boards={type='boards', count=24, levels=[1, 2]}",
        "variants=['sft']",
        "sampling.samples=2",
        "benchmark_sampling.samples=2",
        "selection.max_traces=1",
        "sft={num_train_epochs=1, global_batch_size=4, per_device_train_batch_size=4, learning_rate=1e-4}",
        "dpo={global_batch_size=4, per_device_train_batch_size=4, learning_rate=1e-6}",
        "engine.max_num_seqs=32",
        f"storage.root={folder}",
    )
    return load(CotDistillation, "tiny-vision", (*small, *changes))


def shares(entries: list[dict[str, Any]]) -> dict[str, float]:
    return {entry["name"]: entry["accuracy"] for entry in entries}


def test_a_run_with_images(tmp_path: Path):
    report = json.loads(cot_distillation(settings=settings(tmp_path)).read_text())
    lines = stages(report)
    assert lines["sample-traces"]["rows_out"] == 48
    assert lines["estimate-prefix-values"]["rows_out"] > 10
    assert lines["compress-by-value"]["rows_out"] > 2
    assert lines["train-sft"]["rows_in"] == lines["train-dpo"]["rows_in"] > 2
    assert [model["name"] for model in report["models"]] == ["base", "sft+dpo", "sft"]
    looking, other = shares(report["models"]), shares(report["others"]["boards, with other images"]["models"])
    assert all(looking[name] > 0.5 > 2 * other[name] for name in looking)
    page = (tmp_path / "latest" / "report.html").read_text()
    assert "img-src data:" in page

    again = json.loads(cot_distillation(settings=settings(tmp_path)).read_text())
    assert all(line["cached"] for line in again["ledger"])
